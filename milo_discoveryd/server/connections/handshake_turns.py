"""The order of TLS handshakes, and which connections make room for others before they are authenticated. Pure."""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable
from itertools import count
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T", bound=Hashable)

UNAUTHENTICATED = 128
"""Maximum number of handshakes of a listener. One takes few round trips."""
SILENT = 512
"""Maximum number of connections that have sent nothing yet. Those that have may fill 64 KiB of the kernel: fewer wait.
"""
TURN_S = 1.0
"""How long a handshake keeps its place from suspect networks. This limits the signatures for those who never answer."""
_FEW = 8
_MAX_NETWORKS = 10_000

_Key = tuple[int, int, int]


class Turn(NamedTuple, Generic[T]):
    begun: T | None = None
    evicted: T | None = None
    """The connection whose place it got."""
    wait_s: float = math.inf
    """When to ask again if none begins; earlier if there is a new one."""


class HandshakeTurns(Generic[T]):
    """The connections of one listener that are not authenticated: those that have sent nothing are *silent*, others
    wait for one of the places for handshakes, about an eighth of the limit.

    A network is *suspect* once a connection from it has failed, until one is authenticated. Its connections wait for
    those of all others, and for those of networks that failed before it; and the oldest of them make room first. So a
    client from elsewhere is served soon, whatever those do that have no certificate.
    """

    def __init__(self, limit: int) -> None:
        self._places = min(limit, max(_FEW, limit // 8), UNAUTHENTICATED)
        self._most_silent = min(limit, SILENT)
        self._networks: dict[T, str] = {}
        self._counts: Counter[str] = Counter()
        self._silent: dict[bool, dict[T, None]] = {False: {}, True: {}}
        """The silent connections, by whether their network was suspect when last looked at; the oldest first."""
        self._waiting: list[tuple[_Key, T]] = []
        """The others, in the order of their turns."""
        self._keys: dict[T, _Key] = {}
        self._begun: dict[bool, dict[T, float]] = {False: {}, True: {}}
        """When handshakes began, as in `_silent`."""
        self._suspects: dict[str, int] = {}
        """The number of the last failure of a network; the earliest first."""
        self._numbers = count(1)

    def __len__(self) -> int:
        return len(self._networks)

    def is_suspect(self, network: str) -> bool:
        return network in self._suspects

    def failed(self, network: str) -> None:
        self._suspects.pop(network, None)
        self._suspects[network] = next(self._numbers)
        if len(self._suspects) > _MAX_NETWORKS:
            del self._suspects[next(iter(self._suspects))]

    def authenticated(self, connection: T) -> None:
        if (network := self.remove(connection)) is not None:
            self._suspects.pop(network, None)

    def arrive(self, connection: T, network: str) -> T | None:
        """Add a silent connection. Return one that has to make room, if any."""
        is_full = sum(map(len, self._silent.values())) >= self._most_silent
        if is_full and not self._silent[True]:
            for one in [one for one in self._silent[False] if self._networks[one] in self._suspects]:
                del self._silent[False][one]
                self._silent[True][one] = None
        self._networks[connection] = network
        self._counts[network] += 1
        self._silent[network in self._suspects][connection] = None
        if not is_full:
            return None
        if self._silent[True]:
            return next(iter(self._silent[True]))
        return max(self._silent[False], key=lambda one: self._counts[self._networks[one]])

    def hear(self, connection: T) -> T | None:
        """Let the connection, which has sent something, wait for its turn. Return one that has to make room, if any:
        the last in the order."""
        for silent in self._silent.values():
            silent.pop(connection, None)
        network = self._networks[connection]
        self._wait(connection, (self._suspects.get(network, 0), self._counts[network], next(self._numbers)))
        return self._waiting[-1][1] if len(self._waiting) > self._places else None

    def _wait(self, connection: T, key: _Key) -> None:
        self._keys[connection] = key
        insort(self._waiting, (key, connection))

    def first(self) -> T | None:
        """Return which connection has the next turn, if any waits."""
        while self._waiting:
            (failure, *rest), connection = self._waiting[0]
            if (latest := self._suspects.get(self._networks[connection], 0)) <= failure:
                return connection
            del self._waiting[0]
            self._wait(connection, (latest, rest[0], rest[1]))
        return None

    def next(self, now: float) -> Turn[T]:
        """Return whose handshake begins."""
        if (connection := self.first()) is None:
            return Turn()
        is_suspect, evicted = self._keys[connection][0] > 0, None
        if sum(map(len, self._begun.values())) >= self._places:
            evicted, began = next(iter((self._begun[True] or self._begun[False]).items()))
            if is_suspect and (wait_s := began + TURN_S - now) > 0:
                return Turn(wait_s=wait_s)
            self.remove(evicted)
        del self._waiting[0], self._keys[connection]
        self._begun[is_suspect][connection] = now
        return Turn(connection, evicted)

    def remove(self, connection: T) -> str | None:
        """Forget the connection. Return its network, or None if it is not here."""
        network = self._networks.pop(connection, None)
        if network is None:
            return None
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]
        for each in (*self._silent.values(), *self._begun.values()):
            each.pop(connection, None)  # type: ignore[attr-defined]
        if (key := self._keys.pop(connection, None)) is not None:
            del self._waiting[bisect_left(self._waiting, key, key=lambda one: one[0])]
        return network
