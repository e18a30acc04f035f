"""Restart of the daemon beside an API server that was restored from a backup: subscribers keep the known clusters."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from milo_discovery import Event, EventType, SourceState, Synced, Watch
from milo_discoveryd.state_file.state_file import FILE
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.support.eventually import eventually


class Subscriber:
    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.events: list[str] = []
        self.syncs = 0

    async def run(self) -> None:
        async for item in self.watch.feed():
            if isinstance(item, Event) and item.type in (EventType.ENGAGED, EventType.DISENGAGED):
                self.events.append(f"{item.type.name} {item.cluster.name}")
            self.syncs += isinstance(item, Synced)

    @property
    def source(self) -> tuple[SourceState, str] | None:
        status = self.watch.source
        return None if status is None else (status.state, status.reason)


@asynccontextmanager
async def following(workspace: Workspace) -> AsyncIterator[Subscriber]:
    async with workspace.client() as client, client.watch() as watch:
        subscriber = Subscriber(watch)
        running = asyncio.create_task(subscriber.run())
        yield subscriber
        running.cancel()


async def end(daemon: DaemonProcess, how: signal.Signals) -> None:
    if how is signal.SIGTERM:
        await daemon.terminate()
    else:
        await daemon.kill()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_resuming_subscriber_is_served_while_removals_are_held_after_a_restore(
    workspace: Workspace, how: signal.Signals
) -> None:
    projects, state = workspace.sandbox.projects, workspace.directory / "state"
    for name in ("alpha", "beta"):
        projects.create(name, ready=True)
    backup = workspace.sandbox.snapshot()
    projects.create("gamma", ready=True)
    for number in range(20):
        projects.label("gamma", {"number": str(number)})
    settings = {"state_directory": str(state), "removals": {"verify_after": "1s"}}
    async with workspace.daemon(**settings) as daemon, following(workspace) as subscriber:
        await daemon.start()
        await eventually(lambda: len(subscriber.events) == 3, within_s=60)
        await eventually(lambda: (state / FILE).exists() and b"gamma" in (state / FILE).read_bytes(), within_s=60)

        await end(daemon, how)
        workspace.sandbox.restore(backup)
        subscriber.events.clear()
        await daemon.start()

        await eventually(lambda: subscriber.syncs == 2, within_s=60)
        await eventually(lambda: subscriber.source == (SourceState.CATCHING_UP, "RemovalsHeld"), within_s=60)
        projects.create("delta", ready=True)
        await eventually(lambda: subscriber.events == ["ENGAGED delta"], within_s=60)
        assert set(subscriber.watch.clusters) == {"alpha", "beta", "gamma", "delta"}

        daemon.signal(signal.SIGUSR2)
        await eventually(lambda: subscriber.events == ["ENGAGED delta", "DISENGAGED gamma"], within_s=120)
        await eventually(lambda: subscriber.source == (SourceState.STREAMING, ""), within_s=60)
