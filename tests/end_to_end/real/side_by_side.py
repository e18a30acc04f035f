"""Milo's own provider and the daemon on one server with one scenario, and the events of each."""

import asyncio
import contextlib
import re
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

from milo_discovery import DiscoveryClient, Event, EventType
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.scenarios import kubeconfig
from tests.end_to_end.scenarios.objects import Objects
from tests.end_to_end.scenarios.steps import Mode, Scenario
from tests.support.eventually import eventually

_STARTED_WITHIN_S = 180.0
_AGREED_WITHIN_S = 20.0
_QUIET_S = 1.0
_FIRST = "the-first"
_OF_EVERY_SELECTOR = {"env": "prod"}
"""Labels that match the label selector of every scenario that has one."""
_PORT = re.compile(r"127\.0\.0\.1:\d+")

ClusterEvents: TypeAlias = Sequence[str]
"""The events of one cluster, in order; an engagement with its endpoint."""
EventsByCluster: TypeAlias = Mapping[str, ClusterEvents]


class EventRecorder:
    """The recorded events of the daemon or of the provider."""

    def __init__(self) -> None:
        self._events_by_cluster: dict[str, list[str]] = defaultdict(list)

    def tell(self, what: str, name: str, endpoint: str) -> None:
        at = f" at {_PORT.sub('127.0.0.1', endpoint)}" if what == "ENGAGED" else ""
        self._events_by_cluster[name].append(what + at)

    def forget(self, name: str) -> None:
        del self._events_by_cluster[name]

    def events(self) -> EventsByCluster:
        return {name: tuple(story) for name, story in sorted(self._events_by_cluster.items())}


class RealServerPool(Protocol):
    """Provides real servers for scenario runs."""

    def acquire(self, mode: Mode, directory: Path) -> AbstractAsyncContextManager[RealApi]: ...


class SideBySide:
    """Provides real servers, each with a running peer, which has Milo's provider, and a daemon with a subscriber."""

    def __init__(self, servers: RealServerPool, peer: Path, scenario: Scenario) -> None:
        self._servers = servers
        self._peer = peer
        self._selector = str(scenario.settings.get("label_selector", ""))
        self.provider = EventRecorder()
        self.daemon = EventRecorder()

    @asynccontextmanager
    async def acquire(self, mode: Mode, directory: Path) -> AsyncIterator[RealApi]:
        async with self._servers.acquire(mode, directory) as server:
            peer = await asyncio.create_subprocess_exec(
                str(self._peer),
                f"--kubeconfig={server.kubeconfig}",
                f"--mode={mode}",
                f"--label-selector={self._selector}",
                stdout=asyncio.subprocess.PIPE,
            )
            assert peer.stdout is not None
            listening = [
                asyncio.create_task(self._listen_to_provider(peer.stdout)),
                asyncio.create_task(self._listen_to_daemon(directory / "discovery.sock")),
            ]
            try:
                await self._provider_watches(server)
                yield server
                await self._settled()
            finally:
                for task in listening:
                    task.cancel()
                peer.send_signal(signal.SIGTERM)
                await asyncio.wait((*listening, asyncio.create_task(peer.wait())))

    async def _provider_watches(self, server: RealApi) -> None:
        """Wait until the provider reports a test object, since it does not report its own start."""
        access = kubeconfig.read(server.kubeconfig)
        async with Objects(server.mode, access, has_controllers=server.has_controllers) as objects:
            await objects.create(_FIRST, labels=_OF_EVERY_SELECTOR, ready=True)
            await eventually(lambda: len(self.provider.events().get(_FIRST, ())) == 1, within_s=_STARTED_WITHIN_S)
            await objects.clear()
            await eventually(lambda: len(self.provider.events().get(_FIRST, ())) == 2, within_s=_STARTED_WITHIN_S)
        self.provider.forget(_FIRST)

    async def _settled(self) -> None:
        """Wait until daemon and provider have reported the same events; give up after `_AGREED_WITHIN_S`.

        Events that became equal during the wait must still be equal after `_QUIET_S`.
        """
        with contextlib.suppress(TimeoutError):
            while self.daemon.events() != self.provider.events():
                await eventually(
                    lambda: self.daemon.events() == self.provider.events(),
                    within_s=_AGREED_WITHIN_S,
                )
                await asyncio.sleep(_QUIET_S)

    async def _listen_to_provider(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            _, what, name, *endpoint = line.decode().split()
            self.provider.tell(what, name, endpoint[0] if endpoint else "")

    async def _listen_to_daemon(self, socket: Path) -> None:
        # A client that connects earlier would back off, and miss the first events.
        await eventually(socket.exists, within_s=_STARTED_WITHIN_S)
        async with DiscoveryClient(f"unix://{socket}") as client, contextlib.aclosing(client.watch().feed()) as feed:
            async for event in feed:
                if isinstance(event, Event) and event.type is not EventType.UPDATED:
                    self.daemon.tell(event.type.name, event.cluster.name, event.cluster.endpoint)
