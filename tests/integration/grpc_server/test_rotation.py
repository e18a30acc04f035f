"""Kubeconfigs on a stream: with each ENGAGED event, and renewed before expiry."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issuers.issuer import Scope
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs import lease_table
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.kubeconfigs.minter import LeaseListener
from milo_discoveryd.rights import quota
from milo_discoveryd.server.calls.delivery_schedule import DELIVERY_BYTES
from milo_discoveryd.server.calls.grpc_errors import ExhaustedError
from tests.integration.grpc_server.conftest import Subscriber, a_harness, event_texts, not_ready, ready
from tests.support.eventually import LIMIT_S, eventually
from tests.unit.kubeconfigs.backend import Backend, RevokingBackend


def token(event: pb.ClusterEvent) -> str:
    config = json.loads(event.kubeconfig.kubeconfig)
    assert config["current-context"] == event.kubeconfig.cluster == event.cluster.name
    return str(config["users"][0]["user"]["token"])


async def events(subscriber: Subscriber, count: int) -> list[pb.ClusterEvent]:
    """Return the next events, at least `count`."""
    found: list[pb.ClusterEvent] = []
    while len(found) < count:
        found += (await subscriber.batch()).events
    return found


async def snapshot(subscriber: Subscriber) -> list[pb.ClusterEvent]:
    return [event for batch in await subscriber.until_synced() for event in batch.events]


async def test_engaged_events_carry_kubeconfigs_on_request(tmp_path: Path) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        harness.listed(ready("alpha"), ready("beta"))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber, harness.subscriber() as other:
            assert all(token(event) for event in await snapshot(subscriber))
            assert not any(event.HasField("kubeconfig") for event in await snapshot(other))
            harness.seen(ready("gamma"))
            (engaged,) = (await subscriber.batch()).events
            assert (engaged.type, engaged.cluster.name, bool(token(engaged))) == (1, "gamma", True)
            (bare,) = (await other.batch()).events
            assert not bare.HasField("kubeconfig")


async def test_kubeconfig_is_renewed_before_expiry(tmp_path: Path) -> None:
    backend = Backend(life_s=1.5)
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            (engaged,) = await snapshot(subscriber)
            last = engaged
            for _ in range(5):
                (renewed,) = await events(subscriber, 1)
                assert renewed.type == pb.ClusterEvent.TYPE_KUBECONFIG
                assert renewed.cluster == engaged.cluster
                assert token(renewed) != token(last)
                assert renewed.kubeconfig.issued_at.ToMicroseconds() < last.kubeconfig.expires_at.ToMicroseconds()
                last = renewed


async def test_kubeconfig_is_renewed_for_a_subscriber_that_reads_more_slowly_than_clusters_change(
    tmp_path: Path,
) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend(life_s=1.5))]) as harness:
        harness.listed(ready("quiet"), ready("busy"))
        sent, renewed = list[str](), asyncio.Event()

        async def read(data: bytes) -> None:
            sent.extend(event_texts([pb.WatchClustersResponse.FromString(data)]))
            if "KUBECONFIG quiet" in sent:
                renewed.set()
            await asyncio.sleep(0.01)
            harness.seen(ready("busy", version=str(len(sent) + 1), turn=str(len(sent))))

        request = pb.WatchClustersRequest(include_kubeconfigs=True)
        stream = asyncio.create_task(harness.service.watch_clusters(request, Caller(listener="here"), read))
        async with asyncio.timeout(LIMIT_S):
            await renewed.wait()
        stream.cancel()
        await asyncio.wait((stream,))
    assert sent[:3] == ["ENGAGED quiet", "ENGAGED busy", "UPDATED busy"]


async def test_idle_stream_whose_kubeconfigs_were_dropped_for_those_of_another_caller_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        harness.listed(ready("alpha"), ready("beta"))
        monkeypatch.setattr(quota, "DELIVERIES_BYTES", 5 * DELIVERY_BYTES)
        request = pb.WatchClustersRequest(include_kubeconfigs=True, heartbeat_interval=Duration(seconds=3600))

        async def follow(caller: str) -> "asyncio.Task[None]":
            is_sent = asyncio.Event()

            async def read(data: bytes) -> None:
                if len(event_texts([pb.WatchClustersResponse.FromString(data)])) == 2:
                    is_sent.set()

            stream = asyncio.create_task(harness.service.watch_clusters(request, Caller(listener=caller), read))
            await is_sent.wait()
            return stream

        first, second, other = streams = [await follow(caller) for caller in ("one", "one", "other")]
        try:
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(ExhaustedError, match="kubeconfigs of too many clusters"):
                    await second
            assert not first.done()
            assert not other.done()
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.wait(streams)


async def test_kubeconfig_events_do_not_change_revision(tmp_path: Path) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend(life_s=1.5))]) as harness:
        harness.listed(ready("alpha"))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            synced = (await subscriber.until_synced())[-1]
            renewed = await subscriber.batch()
            assert event_texts([renewed]) == ["KUBECONFIG alpha"]
            assert (renewed.revision, renewed.previous_revision) == (synced.revision, synced.revision)
            assert (renewed.synced, renewed.reset) == (True, False)


async def test_failing_credential_issuer_delays_no_event(tmp_path: Path) -> None:
    backend = Backend()
    backend.failure = BackendError("down")
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"), ready("beta"))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            assert not any(event.HasField("kubeconfig") for event in await snapshot(subscriber))
            harness.seen(ready("gamma"))
            assert event_texts([await subscriber.batch()]) == ["ENGAGED gamma"]
            backend.failure = None
            owed = await events(subscriber, 3)
    assert sorted(event_texts([pb.WatchClustersResponse(events=owed)])) == [
        f"KUBECONFIG {name}" for name in ("alpha", "beta", "gamma")
    ]
    assert all(token(event) for event in owed)


async def test_engaged_event_is_sent_without_a_kubeconfig_while_the_issuer_hangs(tmp_path: Path) -> None:
    backend = Backend()
    backend.gate.clear()
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            async with asyncio.timeout(LIMIT_S):
                (bare,) = await snapshot(subscriber)
            assert not bare.HasField("kubeconfig")
            backend.gate.set()
            assert [event.type for event in await events(subscriber, 1)] == [pb.ClusterEvent.TYPE_KUBECONFIG]


async def test_kubeconfig_is_sent_as_soon_as_the_credential_of_its_cluster_is_issued(tmp_path: Path) -> None:
    backend = Backend(Scope.CLUSTER)
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(*(ready(f"p-{number}") for number in range(50)))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            found = [event for event in await snapshot(subscriber) if event.HasField("kubeconfig")]
            found += await events(subscriber, 50 - len(found))
    assert {event.cluster.name for event in found} == {f"p-{number}" for number in range(50)}
    assert all(f"-{event.cluster.name}-" in token(event) for event in found)
    assert len(backend.asked) == 50


async def test_resumed_stream_reissues_kubeconfigs(tmp_path: Path) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        harness.listed(ready("alpha"), ready("beta"), ready("other", env="dev"))
        wanted = pb.ClusterFilter(label_selector="!env")
        async with harness.subscriber(filter=wanted, include_kubeconfigs=True) as subscriber:
            seen = (await subscriber.until_synced())[-1].revision
        harness.seen(ready("gamma"), not_ready("beta"))
        async with harness.subscriber(filter=wanted, include_kubeconfigs=True, resume_revision=seen) as subscriber:
            first = await subscriber.batch()
            assert (first.reset, event_texts([first])) == (False, ["ENGAGED gamma", "DISENGAGED beta NOT_READY"])
            assert token(first.events[0])
            (fresh,) = await events(subscriber, 1)
            assert (fresh.type, fresh.cluster.name, bool(token(fresh))) == (4, "alpha", True)
            harness.seen(ready("delta"))
            assert await subscriber.events() == ["ENGAGED delta"]


async def test_disengaged_cluster_gets_no_kubeconfig_and_its_credential_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_table, "LEAST_RENEWAL_S", 0.0)
    backend = RevokingBackend(life_s=1.5)
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"), ready("beta"))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            await snapshot(subscriber)
            await events(subscriber, 2)
            harness.seen(not_ready("alpha"))
            after: list[str] = []
            while after.count("KUBECONFIG beta") < 4:
                after += event_texts([await subscriber.batch()])
    disengaged = after.index("DISENGAGED alpha NOT_READY")
    assert not [text for text in after[disengaged + 1 :] if "alpha" in text]
    assert [name for name, _ in backend.revoked] == ["alpha"]


async def test_replaced_cluster_gets_new_credential_and_cluster_that_reenters_filter_keeps_its_credential(
    tmp_path: Path,
) -> None:
    backend = Backend(Scope.CLUSTER)
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"))
        async with harness.subscriber(
            filter=pb.ClusterFilter(label_selector="!away"), include_kubeconfigs=True
        ) as reader:
            found = await snapshot(reader)
            found += await events(reader, 1)
            harness.seen(ready("alpha", uid="another", version="2"))
            while event_texts([pb.WatchClustersResponse(events=found)]).count("KUBECONFIG alpha") < 2:
                found += (await reader.batch()).events
            harness.seen(ready("alpha", uid="another", version="3", away="yes"))
            assert await reader.events() == ["DISENGAGED alpha LABELS_CHANGED"]
            harness.seen(ready("alpha", uid="another", version="4"))
            (back,) = await events(reader, 1)
    assert event_texts([pb.WatchClustersResponse(events=found)]) == [
        "ENGAGED alpha",
        "KUBECONFIG alpha",
        "DISENGAGED alpha REPLACED",
        "ENGAGED alpha",
        "KUBECONFIG alpha",
    ]
    assert (back.type, token(back)) == (pb.ClusterEvent.TYPE_ENGAGED, token(found[-1]))
    first, second = (asked.cluster.incarnation for asked in backend.asked if asked.cluster is not None)
    assert first < second


async def test_ten_thousand_kubeconfigs_with_one_credential_are_sent_in_batches_of_limited_size(tmp_path: Path) -> None:
    backend = Backend()
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(*(ready(f"p-{number}") for number in range(10_000)))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            batches = await subscriber.until_synced()
    given = [event for batch in batches for event in batch.events]
    assert len(given) == 10_000
    assert all(event.HasField("kubeconfig") for event in given)
    assert max(batch.ByteSize() for batch in batches) < 1024 * 1024
    assert len(backend.asked) == 1


async def test_mass_engagement_is_sent_in_batches_of_limited_size_with_one_kubeconfig_per_cluster(
    tmp_path: Path,
) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())], authorities=b"C" * 4096) as harness:
        harness.listed()
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            await snapshot(subscriber)
            harness.seen(*(ready(f"p-{number}") for number in range(1500)))
            batches: list[pb.WatchClustersResponse] = []
            given: dict[str, int] = {}
            while sum(given.values()) < 1500:
                batches.append(await subscriber.batch())
                for event in batches[-1].events:
                    given[event.cluster.name] = given.get(event.cluster.name, 0) + event.HasField("kubeconfig")
    assert set(given.values()) == {1}
    assert max(batch.ByteSize() for batch in batches) <= 1024 * 1024 + 8 * 1024


async def test_stream_that_ends_unsubscribes_from_the_issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        subscribe, subscribed = harness.kubeconfigs.subscribe, set[LeaseListener]()

        def counted(listener: LeaseListener) -> Callable[[], None]:
            subscribed.add(listener)
            unsubscribe = subscribe(listener)

            def ended() -> None:
                unsubscribe()
                subscribed.discard(listener)

            return ended

        monkeypatch.setattr(harness.kubeconfigs, "subscribe", counted)
        harness.listed(ready("alpha"))
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            await snapshot(subscriber)
            assert len(subscribed) == 1
        await eventually(lambda: not subscribed)
