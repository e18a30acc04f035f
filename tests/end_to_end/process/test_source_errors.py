"""Errors of the discovery source: the daemon reports them to subscribers, retries and keeps running."""

from pathlib import Path
from typing import Any

import yaml

from milo_discovery import EngagementReason
from milo_discovery._gen import discovery_pb2 as pb
from milo_sandbox.certificates import issue_identity
from milo_sandbox.rights import EVERYTHING, Rule
from tests.end_to_end.process.conftest import Place
from tests.end_to_end.process.streams import Stream

SECRET = "4f9d-not-for-logs"
STREAMING = pb.SourceStatus.STATE_STREAMING
STALE = pb.SourceStatus.STATE_STALE


async def told(stream: Stream, state: "pb.SourceStatus.State.ValueType") -> pb.SourceStatus:
    """The first status of that state; nothing but it may come until then."""
    while True:
        batch = await stream.batch()
        assert not batch.events
        if batch.HasField("source") and batch.source.state == state:
            return batch.source


def written(place: Place, document: dict[str, Any]) -> str:
    path: Path = place.folder / "other-kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return str(path)


async def test_untrusted_ca_is_reported_as_tls_failed(place: Place) -> None:
    (place.folder / "ca.pem").write_bytes(issue_identity("127.0.0.1").ca_pem)
    document = place.sandbox.kubeconfig()
    del document["clusters"][0]["cluster"]["certificate-authority-data"]
    document["clusters"][0]["cluster"]["certificate-authority"] = str(place.folder / "ca.pem")
    async with place.daemon(discovery_kubeconfig=written(place, document)) as daemon:
        await daemon.start()
        async with place.stream() as stream:
            status = await told(stream, STALE)
        assert status.reason == "TlsFailed"
        assert "certificate" in status.message
        assert await daemon.terminate() == 0
        assert "Traceback" not in daemon.said


async def test_missing_rights_are_reported_as_forbidden_until_granted(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    token = place.sandbox.token("poor", rules=[])
    path = written(place, place.sandbox.kubeconfig(token=token))
    async with place.daemon(discovery_kubeconfig=path) as daemon:
        await daemon.start()
        async with place.stream() as stream:
            status = await told(stream, STALE)
            assert status.reason == "Forbidden"
            assert "poor" in status.message
            place.sandbox.rights.grant("poor", [EVERYTHING])
            batches = await stream.until_synced()
        assert [event.cluster.name for batch in batches for event in batch.events] == ["alpha"]


async def test_revoked_rights_disengage_nothing(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    path = written(place, place.sandbox.kubeconfig(token=place.sandbox.token("poor", rules=[EVERYTHING])))
    async with place.daemon(discovery_kubeconfig=path) as daemon, place.client() as client:
        await daemon.start()
        async with place.stream() as stream:
            await stream.until_synced()
            place.sandbox.rights.grant("poor", [])
            place.sandbox.drop_watches()
            assert (await told(stream, STALE)).reason == "Forbidden"
            assert [cluster.name for cluster in await client.list()] == ["alpha"]
            place.sandbox.rights.grant("poor", [EVERYTHING])
            await told(stream, STREAMING)


async def test_unconfirmable_deletion_disengages_nothing(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    rules = [Rule(verbs=frozenset({"list", "watch"}))]
    path = written(place, place.sandbox.kubeconfig(token=place.sandbox.token("poor", rules=rules)))
    async with place.daemon(discovery_kubeconfig=path) as daemon, place.client() as client:
        await daemon.start()
        async with place.stream() as stream:
            await stream.until_synced()
            place.sandbox.projects.delete("alpha")
            report = await client.get("alpha")
            while report.engagement.reason is not EngagementReason.CONFIRMING_DELETION:
                report = await client.get("alpha")
            assert report.engagement.engaged
            # Had anything been told of alpha meanwhile, it would come before beta.
            place.sandbox.projects.create("beta", ready=True)
            assert [event.cluster.name for event in (await stream.batch()).events] == ["beta"]

            place.sandbox.rights.grant("poor", [EVERYTHING])
            [gone] = (await stream.batch()).events
            assert gone.cluster.name == "alpha"
            assert gone.type == pb.ClusterEvent.TYPE_DISENGAGED


async def test_unknown_token_is_reported_as_unauthorized(place: Place) -> None:
    path = written(place, place.sandbox.kubeconfig(token=SECRET))
    async with place.daemon(discovery_kubeconfig=path) as daemon:
        await daemon.start()
        async with place.stream() as stream:
            assert (await told(stream, STALE)).reason == "Unauthorized"
        assert SECRET not in daemon.said


async def test_unavailable_api_is_awaited_at_startup(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    await place.sandbox.stop()
    async with place.daemon() as daemon:
        await daemon.start()
        async with place.stream() as stream:
            assert (await told(stream, STALE)).reason == "ConnectFailed"
            await place.sandbox.start()
            batches = await stream.until_synced()
        assert [event.cluster.name for batch in batches for event in batch.events] == ["alpha"]
