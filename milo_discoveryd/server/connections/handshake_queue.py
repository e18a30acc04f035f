"""Begins the TLS handshakes of a listener in turn. Until then a connection costs little more than its socket."""

import asyncio
import select
import socket
import time
from collections.abc import Callable

import msgspec

from milo_discoveryd.server.connections.connection_rates import neighborhood
from milo_discoveryd.server.connections.handshake_turns import HandshakeTurns

HANDSHAKE_S = 10.0
LEFT = "closed before the TLS handshake"
EVICTED = "evicted before it was authenticated, for another connection"


class ConnectionOrigin(msgspec.Struct, frozen=True):
    """Where a connection comes from, as far as it is known before it is authenticated."""

    address: str
    counts_as: str
    """Whose connections it counts as: those of the user at a Unix socket, and of the network with TLS. Without either,
    nobody knows, and it counts for itself: any process may use any address of loopback."""


Begin = Callable[[socket.socket, ConnectionOrigin], "asyncio.Task[None]"]
"""Begins to serve a connection."""


Dropped = Callable[[ConnectionOrigin, str], None]
"""Notes that a connection failed before its handshake began, and why."""


class HandshakeQueue:
    def __init__(self, limit: int, begin: Begin, dropped: Dropped) -> None:
        self._turns: HandshakeTurns[socket.socket] = HandshakeTurns(limit)
        self._begin = begin
        self._dropped = dropped
        self._origins: dict[socket.socket, ConnectionOrigin] = {}
        """Those of connections before their turn."""
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks: dict[socket.socket, asyncio.Task[None]] = {}
        self._planned: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of connections before their turn."""
        return len(self._origins)

    def add(self, connected: socket.socket, origin: ConnectionOrigin, *, has_sent: bool) -> None:
        self._origins[connected] = origin
        evicted = self._turns.arrive(connected, neighborhood(origin.counts_as))
        if has_sent:
            self._wait(connected)
            return
        loop = asyncio.get_running_loop()
        problem = f"the TLS handshake did not begin within {HANDSHAKE_S:g} s"
        self._silent[connected] = loop.call_later(HANDSHAKE_S, self._drop, connected, problem)
        loop.add_reader(connected, self._hear, connected)
        if evicted is not None:
            self._drop(evicted, EVICTED)

    def is_suspect(self, origin: ConnectionOrigin) -> bool:
        return self._turns.is_suspect(neighborhood(origin.counts_as))

    def failed(self, origin: ConnectionOrigin) -> None:
        self._turns.failed(neighborhood(origin.counts_as))

    def authenticated(self, connected: socket.socket) -> None:
        self._turns.authenticated(connected)
        self._tasks.pop(connected, None)
        self._plan()

    def ended(self, connected: socket.socket) -> None:
        self._turns.remove(connected)
        self._tasks.pop(connected, None)
        self._plan()

    def close(self) -> None:
        """Close what waits."""
        self._cancel()
        for connected in [*self._origins]:
            self._leave(connected)
            connected.close()

    def _cancel(self) -> None:
        for handle in (self._planned, self._later):
            if handle is not None:
                handle.cancel()
        self._planned = self._later = None

    def _leave(self, connected: socket.socket) -> ConnectionOrigin:
        self._stop_listening(connected)
        return self._origins.pop(connected)

    def _stop_listening(self, connected: socket.socket) -> None:
        if (timer := self._silent.pop(connected, None)) is not None:
            timer.cancel()
            asyncio.get_running_loop().remove_reader(connected)

    def _hear(self, connected: socket.socket) -> None:
        self._stop_listening(connected)
        if has_left(events_of(connected)):
            self._drop(connected, LEFT)
        else:
            self._wait(connected)

    def _wait(self, connected: socket.socket) -> None:
        if (last := self._turns.hear(connected)) is not None:
            self._drop(last, EVICTED)
        self._plan()

    def _drop(self, connected: socket.socket, problem: str) -> None:
        origin = self._leave(connected)
        self._turns.remove(connected)
        connected.close()
        self._dropped(origin, problem)

    def _plan(self) -> None:
        if self._planned is None:
            self._planned = asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin handshakes: one that takes the place of another or is of a suspect network, and all others before."""
        self._cancel()
        while True:
            while (first := self._turns.first()) is not None and has_left(events_of(first)):
                self._drop(first, LEFT)
            turn = self._turns.next(time.monotonic())
            if turn.begun is None:
                break
            if turn.evicted is not None:
                self._tasks.pop(turn.evicted).cancel(EVICTED)
            origin = self._leave(turn.begun)
            self._tasks[turn.begun] = self._begin(turn.begun, origin)
            if turn.evicted is not None or self.is_suspect(origin):
                self._plan()
                return
        if turn.wait_s < HANDSHAKE_S:
            self._later = asyncio.get_running_loop().call_later(turn.wait_s, self._plan)


def events_of(connected: socket.socket) -> int:
    """Return whether the client has sent something, or has closed the connection."""
    poll = select.poll()
    poll.register(connected, select.POLLIN | select.POLLRDHUP)
    return sum(events for _, events in poll.poll(0))


def has_left(events: int) -> bool:
    return bool(events & ~select.POLLIN)
