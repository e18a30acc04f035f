"""Limits how many calls of the same owners are in the queue of gRPC, which all clients of a listener share."""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Generic, Protocol, TypeAlias, TypeVar

MOST_QUEUED = 16
"""From how many calls on in the queue others of the same owners wait. gRPC takes one in some five iterations of the
event loop, each of which takes several milliseconds while many lists and snapshots are made."""
QUEUED_S = 1.0
"""After which time a call counts as taken. Those that gRPC rejects never are: of unknown methods, and of clients with
too many streams. Calls that their clients cancel stay in the queue."""
ROUND_S = 0.005
IDLE_ROUNDS = 20
"""The queue counts as empty if gRPC takes no call in so many rounds, each of at least one iteration. While hundreds of
streams are written to, gRPC may only be slow."""
MAX_OWNERS = 10_000

P = TypeVar("P")
Owners: TypeAlias = tuple[str, ...]


class HeldConnection(Protocol):
    """A connection with calls that wait."""

    def serve_held(self) -> None:
        """Ask again whether they may be served."""


class CallQueue(Generic[P]):
    """The calls in the queue, and the connections with calls that are to enter it."""

    def __init__(self, rejected: Callable[[P], None]) -> None:
        """`rejected` is called with the peer of a call that gRPC has rejected."""
        self._rejected = rejected
        self._queued: dict[Owners, deque[tuple[float, P]]] = {}
        """When the calls entered the queue, and their peers."""
        self._held: dict[Owners, dict[HeldConnection, None]] = {}
        self._rounds = 0
        """How many rounds have passed since gRPC took a call, or the queue was found empty."""
        self._has_taken = True
        """Whether gRPC has taken a call since the queue was found empty."""
        self._round: asyncio.TimerHandle | None = None

    def wait_s(self, connection: HeldConnection, owners: Owners, now: float) -> float:
        """Return 0 if calls of this connection may enter, or after how many seconds to ask again. Unless it is asked
        before, `serve_held` is called as soon as gRPC has taken others."""
        queued = self._queued.get(owners)
        while queued and now >= queued[0][0] + QUEUED_S:
            queued.popleft()
        if queued is None or len(queued) < MOST_QUEUED:
            return 0.0
        self._held.setdefault(owners, {})[connection] = None
        self._watch()
        return queued[0][0] + QUEUED_S - now

    def enter(self, connection: HeldConnection, owners: Owners, peer: P, calls: int, now: float) -> None:
        self.forget(connection, owners)
        self._queued.setdefault(owners, deque()).extend([(now, peer)] * calls)
        if len(self._queued) > MAX_OWNERS:
            del self._queued[next(iter(self._queued))]

    def taken(self, owners: Owners) -> None:
        """Note that gRPC took a call."""
        self._rounds, self._has_taken = 0, True
        if queued := self._queued.get(owners):
            queued.popleft()
            if not queued:
                del self._queued[owners]
        if (held := self._held.get(owners)) and not (queued and len(queued) >= MOST_QUEUED):
            connection = next(iter(held))
            self.forget(connection, owners)
            connection.serve_held()

    def forget(self, connection: HeldConnection, owners: Owners) -> None:
        """Note that no call of this connection waits."""
        if held := self._held.get(owners):
            held.pop(connection, None)
            if not held:
                del self._held[owners]

    def _watch(self) -> None:
        if self._round is None and self._held:
            self._round = asyncio.get_running_loop().call_later(ROUND_S, self._end_round)

    def _end_round(self) -> None:
        self._round = None
        self._rounds += 1
        if self._rounds >= IDLE_ROUNDS:
            self._rounds = 0
            queued, held = self._queued, self._held
            self._queued, self._held = {}, {}
            if not self._has_taken:
                for _, peer in chain.from_iterable(queued.values()):
                    self._rejected(peer)
            self._has_taken = False
            for connections in held.values():
                for connection in connections:
                    connection.serve_held()
        self._watch()
