"""A daemon that starts during an outage of its source serves the stored clusters as stale."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from milo_discovery import DiscoveryClient, Event, EventType, SourceState
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_discoveryd.state_file.encoding import StateOrigin, StoredFleet, decode
from milo_discoveryd.state_file.state_file import FILE
from milo_sandbox import Sandbox
from tests.support.eventually import LIMIT_S, eventually
from tests.support.stored_fleets import encode


class Setting:
    def __init__(self, directory: Path, sandbox: Sandbox) -> None:
        self.state = directory / "state"
        self.state.mkdir()
        self.sandbox = sandbox
        self.address = f"unix://{directory}/d.sock"
        self.origin = StateOrigin(sandbox.url, "project")
        self._flags = {
            "discovery_kubeconfig": str(sandbox.write_kubeconfig(directory / "kubeconfig")),
            "listen": (self.address,),
            "http_listen": "off",
            "state_directory": str(self.state),
            "connectivity.interval": "off",  # results of probes are not tested here
        }

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[DiscoveryClient]:
        task = asyncio.create_task(Daemon(load(self._flags, {}, None)).serve())
        try:
            async with DiscoveryClient(self.address) as client:
                yield client
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    async with Sandbox() as sandbox:
        for name in ("alpha", "beta"):
            sandbox.projects.create(name, ready=True)
        yield Setting(tmp_path, sandbox)


async def test_restored_clusters_are_served_as_stale_and_compared_with_the_next_list(setting: Setting) -> None:
    async with setting.daemon() as client, client.watch() as watch:
        await watch.synced()
        before = {name: cluster.engaged_at for name, cluster in watch.clusters.items()}
        await eventually((setting.state / FILE).exists)
    await setting.sandbox.stop()
    async with setting.daemon() as client, client.watch() as watch:
        await watch.synced()
        assert {name: cluster.engaged_at for name, cluster in watch.clusters.items()} == before
        assert watch.source is not None
        assert watch.source.state is SourceState.STALE
        assert (await client.list()).total_size == 2
        setting.sandbox.projects.delete("beta")
        setting.sandbox.projects.create("gamma", ready=True)
        await setting.sandbox.start()
        await eventually(lambda: set(watch.clusters) == {"alpha", "gamma"})
        await eventually(lambda: watch.source is not None and watch.source.state is SourceState.STREAMING)
        async with asyncio.timeout(LIMIT_S):
            ended = await anext(event async for event in watch if event.type is EventType.DISENGAGED)
        assert (ended.cluster.name, ended.reason.name) == ("beta", "DELETED")


async def test_age_of_restored_clusters_counts_from_the_loss_of_the_source(setting: Setting) -> None:
    async with setting.daemon() as client, client.watch() as watch:
        await watch.synced()
    await setting.sandbox.stop()
    lost_at = time.time()
    for _ in range(2):
        async with setting.daemon() as client, client.watch() as watch:
            await watch.synced()
            assert watch.source is not None
            assert watch.source.state is SourceState.STALE
        assert decode((setting.state / FILE).read_bytes(), setting.origin).current_at < lost_at


async def test_cluster_missing_from_state_file_stays_engaged_for_resuming_subscribers(setting: Setting) -> None:
    """F35: the daemon was killed before its last state was written."""
    event_types: list[EventType] = []
    async with DiscoveryClient(setting.address) as client, client.watch() as watch, asyncio.TaskGroup() as tasks:

        async def follow() -> None:
            async for event in watch:
                event_types.append(event.type)  # noqa: PERF401 - recorded as it arrives

        following = tasks.create_task(follow())
        async with setting.daemon():
            await eventually(lambda: set(watch.clusters) == {"alpha", "beta"})
        whole = decode((setting.state / FILE).read_bytes(), setting.origin)
        (alpha,) = (kept for kept in whole.clusters if kept.target.name == "alpha")
        (setting.state / FILE).write_bytes(encode(StoredFleet(setting.origin, whole.current_at, (alpha,))))
        await setting.sandbox.stop()
        async with setting.daemon() as newcomer:
            async with newcomer.watch() as fresh:
                await fresh.synced()
                assert set(fresh.clusters) == {"alpha"}
            await eventually(
                lambda: watch.connected and watch.source is not None and watch.source.state is SourceState.STALE
            )
            assert set(watch.clusters) == {"alpha", "beta"}
            await setting.sandbox.start()
            await eventually(lambda: watch.source is not None and watch.source.state is SourceState.STREAMING)
            assert set(watch.clusters) == {"alpha", "beta"}
        following.cancel()
    assert event_types == [EventType.ENGAGED, EventType.ENGAGED]


async def test_resuming_subscriber_is_served_from_a_state_file_of_its_revision(setting: Setting) -> None:
    """The subscriber is served at once, although the source is unavailable, also after a second restart."""
    async with DiscoveryClient(setting.address) as client, client.watch() as watch, asyncio.TaskGroup() as tasks:
        items: list[str] = []

        async def follow() -> None:
            async for item in watch.feed():
                items.append(item.type.name if isinstance(item, Event) else type(item).__name__)  # noqa: PERF401

        following = tasks.create_task(follow())
        async with setting.daemon():
            await eventually(lambda: items.count("ENGAGED") == 2)
        await setting.sandbox.stop()
        for restarts in (1, 2):
            async with setting.daemon():
                await eventually(lambda: items.count("Synced") == 1 + restarts)  # noqa: B023
                assert watch.source is not None
                assert watch.source.state is SourceState.STALE
                assert set(watch.clusters) == {"alpha", "beta"}
        following.cancel()
    assert items.count("ENGAGED") == 2
    assert "DISENGAGED" not in items


async def test_truncated_state_file_is_ignored(setting: Setting) -> None:
    (setting.state / FILE).write_bytes(b"milo-discoveryd state 1 0000")
    async with setting.daemon() as client, client.watch() as watch:
        await watch.synced()
        assert set(watch.clusters) == {"alpha", "beta"}
