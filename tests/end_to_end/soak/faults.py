"""The faults of a soak test. Each method injects one and returns when it is over."""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.end_to_end.process.streams import Stream
from tests.end_to_end.soak.deployment import Daemon, Deployment
from tests.end_to_end.soak.disk import Disk
from tests.end_to_end.soak.servers import Server

_CROWD = 30
_LONG_S = 65.0
"""Long enough for a hung server to be detected."""

TRANSPORT: Final = "transport"
STUCK: Final = "stuck watches"
"""A stalled watch on an open connection, which only missing bookmarks reveal."""
SERVER: Final = "server"
ANSWERS: Final = "answers"
DAEMON: Final = "daemon"
SUBSCRIBERS: Final = "subscribers"


@dataclass(frozen=True)
class Kind:
    name: str
    group: str
    strike: Callable[[], Awaitable[None]]


class Faults:
    """Injects each kind of fault in turn, in random order."""

    def __init__(self, server: Server, deployment: Deployment, disk: Disk, random: Random) -> None:
        self._server = server
        self._deployment = deployment
        self._disk = disk
        self._random = random
        self._remaining: list[Kind] = []
        self.counts: Counter[str] = Counter()

    def next(self) -> Kind:
        if not self._remaining:
            self._remaining = self.kinds()
            self._random.shuffle(self._remaining)
        kind = self._remaining.pop()
        self.counts[kind.name] += 1
        return kind

    def kinds(self) -> list[Kind]:
        kinds = [
            Kind("API server connections reset", TRANSPORT, self._cut),
            Kind("API server refuses connections", TRANSPORT, self._refuse),
            Kind("API server connections throttled to a trickle", TRANSPORT, self._drip),
            Kind("API server connections blackholed", STUCK, self._swallow),
            Kind("API server killed", SERVER, self._kill_server),
            Kind("API server terminated", SERVER, self._terminate_server),
            Kind("API server stopped for a while", SERVER, self._pause_server),
            Kind("API server compacted", SERVER, self._server.compact),
            Kind("daemon killed", DAEMON, self._kill_daemon),
            Kind("daemon terminated", DAEMON, self._terminate_daemon),
            Kind("daemon stopped for a while", DAEMON, self._pause_daemon),
            Kind("daemon's socket removed", DAEMON, self._remove_socket),
            Kind("second daemon on the same socket", DAEMON, self._second_daemon),
            Kind("disk full", DAEMON, self._fill_disk),
            Kind("subscriber disconnected", SUBSCRIBERS, self._cut_subscriber),
            Kind("subscriber slow", SUBSCRIBERS, self._slow_subscriber),
            Kind("subscriber killed while it reads nothing", SUBSCRIBERS, self._kill_subscriber),
            Kind("subscriber connection blackholed", SUBSCRIBERS, self._swallow_subscriber),
            Kind("subscriber connection reset", SUBSCRIBERS, self._deployment.subscriber_proxy.cut),
            Kind("burst of subscribers", SUBSCRIBERS, self._crowd),
        ]
        return [*kinds, *self._of_sandbox()] if self._server.is_sandbox else kinds

    def _of_sandbox(self) -> list[Kind]:
        return [
            Kind("storm of 429", ANSWERS, lambda: self._answers("overloaded")),
            Kind("500 for everything", ANSWERS, lambda: self._answers("failing", code=500)),
            Kind("503 from a proxy", ANSWERS, lambda: self._answers("failing", code=503)),
            Kind("401 for everything", ANSWERS, lambda: self._answers("unauthorized")),
            Kind("403 for everything", ANSWERS, lambda: self._answers("forbidden")),
            Kind("watch cache being built (429)", ANSWERS, lambda: self._answers("initializing")),
            Kind("paths not yet installed (503)", ANSWERS, lambda: self._answers("installing")),
            Kind("tokens revoked", ANSWERS, self._revoke),
            Kind("lists are empty", ANSWERS, self._empty_lists),
            Kind("definition deleted and recreated", ANSWERS, self._undefine),
            Kind("schema changed", ANSWERS, lambda: self._server.order("change_schema", initializing=self._some_s())),
            Kind("live objects reported as deleted", ANSWERS, lambda: self._server.order("report_recreated", count=3)),
            Kind("watches silent, without bookmarks", STUCK, self._silence),
            Kind("watches ended early", ANSWERS, lambda: self._server.order("end_watches")),
        ]

    def _some_s(self) -> float:
        return self._random.uniform(0.5, 5.0)

    async def _some_time(self) -> None:
        await asyncio.sleep(self._some_s())

    @property
    def _daemons(self) -> list[Daemon]:
        return [self._deployment.faulted, self._deployment.steady]

    # --- connections ---

    async def _cut(self) -> None:
        for daemon in self._daemons:
            await daemon.proxy.cut()

    async def _refuse(self) -> None:
        async with AsyncExitStack() as stack:
            for daemon in self._daemons:
                await stack.enter_async_context(daemon.proxy.refusing())
            await self._some_time()

    async def _drip(self) -> None:
        async with AsyncExitStack() as stack:
            for daemon in self._daemons:
                await stack.enter_async_context(daemon.proxy.dripping())
            await self._some_time()

    async def _swallow(self) -> None:
        async with AsyncExitStack() as stack:
            for daemon in self._daemons:
                await stack.enter_async_context(daemon.proxy.swallowing())
            await self._some_time()

    # --- the server ---

    async def _kill_server(self) -> None:
        await self._server.kill()
        await self._some_time()
        await self._server.start()

    async def _terminate_server(self) -> None:
        await self._server.terminate()
        await self._some_time()
        await self._server.start()

    async def _pause_server(self) -> None:
        self._server.signal(signal.SIGSTOP)
        await asyncio.sleep(_LONG_S if self._random.random() < 0.25 else self._some_s())
        self._server.signal(signal.SIGCONT)

    # --- responses ---

    async def _answers(self, fault: str, **given: object) -> None:
        await self._server.order(fault, **given)
        await self._server.order("drop_watches")
        await self._some_time()
        await self._server.order("clear")

    async def _revoke(self) -> None:
        await self._server.order("revoke_tokens")
        await self._server.order("drop_watches")

    async def _empty_lists(self) -> None:
        await self._server.order("empty_lists")
        await self._server.compact()
        await asyncio.sleep(self._random.uniform(2.0, 12.0))  # may include a second list, which verifies the first
        await self._server.order("clear")
        await self._server.compact()

    async def _undefine(self) -> None:
        await self._server.order("delete_definition")
        await self._some_time()
        await self._server.order("clear")

    async def _silence(self) -> None:
        await self._server.order("silence_watches", silent=True)
        await self._some_time()
        await self._server.order("silence_watches", silent=False)

    # --- the daemon ---

    async def _kill_daemon(self) -> None:
        await self._deployment.faulted.process.kill()
        await self._deployment.faulted.process.start()

    async def _terminate_daemon(self) -> None:
        process = self._deployment.faulted.process
        status = await process.terminate()
        if status != 0:
            raise AssertionError(f"on SIGTERM the daemon exited with status {status}, want 0: {process.tail()}")
        await process.start()

    async def _pause_daemon(self) -> None:
        self._deployment.faulted.process.signal(signal.SIGSTOP)
        await self._some_time()
        self._deployment.faulted.process.signal(signal.SIGCONT)

    async def _remove_socket(self) -> None:
        faulted = self._deployment.faulted
        faulted.socket.unlink()
        status = await faulted.process.ended()
        if status != 1:
            tail = faulted.process.tail()
            raise AssertionError(f"without its socket the daemon exited with status {status}, want 1: {tail}")
        await faulted.process.start()

    async def _second_daemon(self) -> None:
        async with self._deployment.faulted.another() as second:
            await second.spawn()
            status = await second.ended()
            if status != 1 or "in use by another daemon" not in second.output:
                raise AssertionError(
                    f"a second daemon exited with status {status}, want 1, 'in use by another daemon': {second.tail()}"
                )

    async def _fill_disk(self) -> None:
        async with self._disk.full():
            await self._some_time()
            await self._kill_daemon()
            await self._some_time()

    # --- subscribers ---

    async def _cut_subscriber(self) -> None:
        await self._deployment.restless.cut()

    async def _slow_subscriber(self) -> None:
        self._deployment.slow.pause()
        await self._some_time()
        self._deployment.slow.go_on()

    async def _kill_subscriber(self) -> None:
        await self._deployment.end_idling()
        await self._deployment.begin_idling()

    async def _swallow_subscriber(self) -> None:
        async with self._deployment.subscriber_proxy.swallowing():
            await self._some_time()
        await self._deployment.subscriber_proxy.cut()  # the peer would otherwise notice after the TCP timeout only

    async def _crowd(self) -> None:
        address = f"unix://{self._random.choice(self._daemons).socket}"
        crowd = [Stream(address) for _ in range(_CROWD)]
        await asyncio.gather(*(stream.until_synced() for stream in crowd))
        await asyncio.gather(*(stream.close() for stream in crowd))
