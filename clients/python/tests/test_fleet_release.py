"""Tests that a Fleet releases a cluster only after its handler has ended, even if the cleanup takes long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from milo_discovery import Cluster, EngagedCluster, Event, EventType, Fleet
from milo_discovery.events import Connected, StreamNotice, Synced
from milo_discovery.model import DisengageReason, Draining

ALPHA = Cluster(name="alpha", uid="1", endpoint="https://alpha", incarnation="1")
BETA = Cluster(name="beta", uid="2", endpoint="https://beta", incarnation="2")
DRAINING = Draining(reason=DisengageReason.MOVED, deadline=datetime.now(UTC) + timedelta(hours=1))


class Client:
    """A fake client with one watch, whose events the test sends."""

    api_clients = None
    subscriber = "operator-0"

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event | StreamNotice] = asyncio.Queue()
        self.running: set[str] = set()
        self.running_at_release: asyncio.Queue[set[str]] = asyncio.Queue()

    @asynccontextmanager
    async def watch(self, **_options: object) -> AsyncIterator[Client]:
        yield self

    async def feed(self) -> AsyncGenerator[Event | StreamNotice]:
        while True:
            yield await self.events.get()

    async def release(self, cluster: Cluster) -> None:
        self.running_at_release.put_nowait(set(self.running))

    async def end_subscription(self, subscriber: str) -> None:
        pass


@pytest.mark.parametrize("on_drain", ["cancel", "wait"])
async def test_cluster_is_released_only_after_its_handler_has_ended(on_drain: str) -> None:
    client, cleaning, may_end = Client(), asyncio.Event(), asyncio.Event()
    working = {ALPHA.name: asyncio.Event(), BETA.name: asyncio.Event()}
    fleet = Fleet(client, on_drain=on_drain)

    @fleet.on_engage
    async def work(cluster: EngagedCluster) -> None:
        client.running.add(cluster.name)
        working[cluster.name].set()
        try:
            await cluster.drained()
        finally:
            cleaning.set()
            await may_end.wait()
            client.running.discard(cluster.name)

    async with fleet:
        client.events.put_nowait(Event(type=EventType.ENGAGED, cluster=ALPHA))
        await working[ALPHA.name].wait()
        client.events.put_nowait(Event(type=EventType.UPDATED, cluster=replace(ALPHA, draining=DRAINING)))
        await cleaning.wait()
        # The Fleet handles events in order: when BETA's handler runs, the draining of ALPHA was handled.
        client.events.put_nowait(Event(type=EventType.ENGAGED, cluster=BETA))
        await working[BETA.name].wait()
        assert client.running_at_release.empty()
        may_end.set()
        assert await client.running_at_release.get() == {BETA.name}


async def test_disengage_handler_is_called_with_the_reason_after_the_handler_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, history = Client(), asyncio.Queue[str]()
    cleaned, may_end = asyncio.Event(), asyncio.Event()
    fleet = Fleet(client)

    @fleet.on_engage
    async def work(cluster: EngagedCluster) -> None:
        history.put_nowait(f"engaged {cluster.uid}")
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
            await may_end.wait()
            history.put_nowait(f"ended {cluster.uid}: {cluster.disengage_reason and cluster.disengage_reason.name}")

    @fleet.on_disengage
    async def disengaged(cluster: EngagedCluster) -> None:
        history.put_nowait(f"disengaged {cluster.uid}: {cluster.disengage_reason and cluster.disengage_reason.name}")
        raise OSError("the handler failed")

    with pytest.raises(RuntimeError, match="only one on_disengage"):
        fleet.on_disengage(disengaged)
    async with fleet:
        client.events.put_nowait(Event(type=EventType.ENGAGED, cluster=ALPHA))
        assert await history.get() == "engaged 1"
        reason = DisengageReason.REPLACED
        client.events.put_nowait(Event(type=EventType.DISENGAGED, cluster=ALPHA, reason=reason))
        client.events.put_nowait(Event(type=EventType.ENGAGED, cluster=replace(ALPHA, uid="3")))
        await cleaned.wait()
        assert history.empty()
        may_end.set()
        assert [await history.get() for _ in range(3)] == ["ended 1: REPLACED", "disengaged 1: REPLACED", "engaged 3"]
    assert [history.get_nowait() for _ in range(history.qsize())] == ["ended 3: None"]
    assert "on_disengage of cluster alpha failed" in caplog.text


async def test_disengage_handler_is_called_in_a_fleet_without_a_handler_and_after_a_drain() -> None:
    client, reasons = Client(), asyncio.Queue[DisengageReason | None]()
    fleet = Fleet(client)

    @fleet.on_disengage
    async def disengaged(cluster: EngagedCluster) -> None:
        reasons.put_nowait(cluster.disengage_reason)

    async with fleet:
        client.events.put_nowait(Event(type=EventType.ENGAGED, cluster=replace(ALPHA, draining=DRAINING)))
        client.events.put_nowait(Event(type=EventType.DISENGAGED, cluster=ALPHA, reason=DisengageReason.DELETED))
        assert await reasons.get() is DisengageReason.DELETED


async def test_fleet_tells_reported_ends_from_those_that_a_snapshot_shows() -> None:
    client, ends = Client(), asyncio.Queue[tuple[str, bool]]()
    fleet = Fleet(client)

    @fleet.on_disengage
    async def disengaged(cluster: EngagedCluster) -> None:
        ends.put_nowait((cluster.uid, cluster.is_end_reported))

    replaced, another = DisengageReason.REPLACED, replace(ALPHA, uid="3")
    async with fleet:
        for item in (
            Connected(resumed=False),
            Event(type=EventType.ENGAGED, cluster=ALPHA),
            Synced(clusters=1),
            Event(type=EventType.DISENGAGED, cluster=ALPHA, reason=replaced),
            Event(type=EventType.ENGAGED, cluster=another),
            Connected(resumed=False),
            Event(type=EventType.DISENGAGED, cluster=another, reason=replaced),
            Event(type=EventType.ENGAGED, cluster=ALPHA),
            Synced(clusters=1),
            Connected(resumed=True),
            Event(type=EventType.DISENGAGED, cluster=ALPHA, reason=replaced),
        ):
            client.events.put_nowait(item)
        assert [await ends.get() for _ in range(3)] == [("1", True), ("3", False), ("1", True)]
