"""Errors of the discovery source: the daemon reports them to subscribers, retries and keeps running."""

from pathlib import Path
from typing import Any

import yaml

from milo_discovery import EngagementReason
from milo_discovery._gen import discovery_pb2 as pb
from milo_sandbox.certificates import issue_identity
from milo_sandbox.rights import EVERYTHING, Rule
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.streams import Stream

SECRET = "4f9d-not-for-logs"
STREAMING = pb.SourceStatus.STATE_STREAMING
STALE = pb.SourceStatus.STATE_STALE


async def first_status(stream: Stream, state: "pb.SourceStatus.State.ValueType") -> pb.SourceStatus:
    """Return the first status with that state; no other message may come before it."""
    while True:
        batch = await stream.batch()
        assert not batch.events
        if batch.HasField("source") and batch.source.state == state:
            return batch.source


def written(workspace: Workspace, document: dict[str, Any]) -> str:
    path: Path = workspace.directory / "other-kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return str(path)


async def test_untrusted_ca_is_reported_as_tls_failed(workspace: Workspace) -> None:
    (workspace.directory / "ca.pem").write_bytes(issue_identity("127.0.0.1").ca_pem)
    document = workspace.sandbox.kubeconfig()
    del document["clusters"][0]["cluster"]["certificate-authority-data"]
    document["clusters"][0]["cluster"]["certificate-authority"] = str(workspace.directory / "ca.pem")
    async with workspace.daemon(discovery_kubeconfig=written(workspace, document)) as daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            status = await first_status(stream, STALE)
        assert status.reason == "TlsFailed"
        assert "certificate" in status.message
        assert await daemon.terminate() == 0
        assert "Traceback" not in daemon.output


async def test_missing_rights_are_reported_as_forbidden_until_granted(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    token = workspace.sandbox.token("poor", rules=[])
    path = written(workspace, workspace.sandbox.kubeconfig(token=token))
    async with workspace.daemon(discovery_kubeconfig=path) as daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            status = await first_status(stream, STALE)
            assert status.reason == "Forbidden"
            assert "poor" in status.message
            workspace.sandbox.rights.grant("poor", [EVERYTHING])
            batches = await stream.until_synced()
        assert [event.cluster.name for batch in batches for event in batch.events] == ["alpha"]


async def test_revoked_rights_disengage_nothing(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    path = written(workspace, workspace.sandbox.kubeconfig(token=workspace.sandbox.token("poor", rules=[EVERYTHING])))
    async with workspace.daemon(discovery_kubeconfig=path) as daemon, workspace.client() as client:
        await daemon.start()
        async with workspace.stream() as stream:
            await stream.until_synced()
            workspace.sandbox.rights.grant("poor", [])
            workspace.sandbox.drop_watches()
            assert (await first_status(stream, STALE)).reason == "Forbidden"
            assert [cluster.name for cluster in await client.list()] == ["alpha"]
            workspace.sandbox.rights.grant("poor", [EVERYTHING])
            await first_status(stream, STREAMING)


async def test_unconfirmable_deletion_disengages_nothing(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    rules = [Rule(verbs=frozenset({"list", "watch"}))]
    path = written(workspace, workspace.sandbox.kubeconfig(token=workspace.sandbox.token("poor", rules=rules)))
    async with workspace.daemon(discovery_kubeconfig=path) as daemon, workspace.client() as client:
        await daemon.start()
        async with workspace.stream() as stream:
            await stream.until_synced()
            workspace.sandbox.projects.delete("alpha")
            report = await client.get("alpha")
            while report.engagement.reason is not EngagementReason.CONFIRMING_DELETION:
                report = await client.get("alpha")
            assert report.engagement.engaged
            # An event of alpha would have come before beta's.
            workspace.sandbox.projects.create("beta", ready=True)
            assert [event.cluster.name for event in (await stream.batch()).events] == ["beta"]

            workspace.sandbox.rights.grant("poor", [EVERYTHING])
            [gone] = (await stream.batch()).events
            assert gone.cluster.name == "alpha"
            assert gone.type == pb.ClusterEvent.TYPE_DISENGAGED


async def test_unknown_token_is_reported_as_unauthorized(workspace: Workspace) -> None:
    path = written(workspace, workspace.sandbox.kubeconfig(token=SECRET))
    async with workspace.daemon(discovery_kubeconfig=path) as daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            assert (await first_status(stream, STALE)).reason == "Unauthorized"
        assert SECRET not in daemon.output


async def test_unavailable_api_is_awaited_at_startup(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    await workspace.sandbox.stop()
    async with workspace.daemon() as daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            assert (await first_status(stream, STALE)).reason == "ConnectFailed"
            await workspace.sandbox.start()
            batches = await stream.until_synced()
        assert [event.cluster.name for batch in batches for event in batch.events] == ["alpha"]
