"""Connection limits: the maximum per listener, and its fair division among owners."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import msgspec

from milo_discoveryd.server.connections.listener import Listener

T = TypeVar("T", bound=Hashable)

CONNECTION_REFUSED = "CONNECTION_REFUSED"
TAKEN = "evicted at the connection limit, for a caller with fewer connections"
UNAUTHENTICATED = 128
"""Maximum number of unauthenticated connections of a listener. A handshake takes few round trips."""
_FEW = 8
RESERVED = 512
"""File descriptors, at most half of all, reserved for API servers, probes, commands, files and the HTTP port. Without
the reserve, many clients could keep the daemon from reconnecting to its API server."""
DESCRIPTORS = 4
"""File descriptors to reserve for each connection: one for the connection, two for the proxied connection to gRPC, and
one for a connection that is not authenticated yet or exceeds the limit."""


def fit_connections(listeners: Sequence[Listener], descriptors: int) -> list[Listener]:
    """Lower the connection limits, all in the same proportion, to what the limit of file descriptors allows."""
    left = descriptors - min(RESERVED, descriptors // 2)
    wanted = sum(listener.connections for listener in listeners) * DESCRIPTORS
    return [
        msgspec.structs.replace(
            listener, connections=min(listener.connections, max(1, listener.connections * left // wanted))
        )
        for listener in listeners
    ]


class ConnectionSlots(Generic[T]):
    """The connections of one listener.

    When all slots are taken, a new connection replaces the newest connection of the owner with the most connections, if
    that owner has at least two more connections than the owner of the new one. Otherwise a new connection whose owner
    has no others replaces the connection that has been idle for longest. So one owner may have all slots, and an owner
    without connections is refused only while every other owner has just one and none is idle. Unauthenticated
    connections have separate slots, about an eighth of the limit; one network may use half of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unauthenticated: dict[T, str] = {}
        """The networks of the unauthenticated connections, the oldest first."""
        self._authenticated: dict[T, frozenset[str]] = {}
        self._owners: Counter[str] = Counter()
        self._calls: Counter[T] = Counter()
        self._idle: dict[T, None] = {}
        """The authenticated connections without calls; the one that has been idle for longest is first."""

    def admit(self, connection: T, network: str) -> T | None:
        """Add an unauthenticated connection. Return the connection that it evicts, if any: at the limit for all
        networks together, the oldest connection of the network with the most connections; at the limit per network, the
        oldest connection of the given network."""
        evicted, networks = None, Counter(self._unauthenticated.values())
        limit = min(self._limit, max(_FEW, self._limit // 8), UNAUTHENTICATED)
        if len(self._unauthenticated) >= limit:
            evicted = self._oldest_of(networks.most_common(1)[0][0])
        elif networks[network] >= max(1, limit // 2):
            evicted = self._oldest_of(network)
        if evicted is not None:
            del self._unauthenticated[evicted]
        self._unauthenticated[connection] = network
        return evicted

    def _oldest_of(self, network: str) -> T:
        return next(connection for connection, its_network in self._unauthenticated.items() if its_network == network)

    def authenticate(self, connection: T, owners: Iterable[str]) -> T | None:
        """Count the connection for each of its owners: a certificate with more names gets no larger share.

        Return the connection that it evicts, if any. Raises ConnectionLimitError if there is no slot: the docstring of
        the class has the rules.
        """
        owners, evicted = frozenset(owners), None
        if len(self._authenticated) >= self._limit:
            (largest, count), *_ = self._owners.most_common(1)
            own = max(self._owners[owner] for owner in owners)
            if count > 1 + own:
                evicted = next(
                    connection
                    for connection, its_owners in reversed(self._authenticated.items())
                    if largest in its_owners
                )
            elif self._idle and not own:
                evicted = next(iter(self._idle))
            else:
                raise ConnectionLimitError(f"connection limit ({self._limit}) of the listener reached")
            self.remove(evicted)
        self._unauthenticated.pop(connection, None)
        self._authenticated[connection] = owners
        self._owners.update(owners)
        return evicted

    def count_call(self, connection: T, change: int) -> None:
        """Count a call that begins (1) or ends (-1) on an authenticated connection; 0 marks a new one as idle."""
        if connection not in self._authenticated:
            return
        self._calls[connection] += change
        if self._calls[connection]:
            self._idle.pop(connection, None)
        else:
            self._idle[connection] = None

    def remove(self, connection: T) -> None:
        self._unauthenticated.pop(connection, None)
        self._idle.pop(connection, None)
        self._calls.pop(connection, None)
        for owner in self._authenticated.pop(connection, ()):
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    def __len__(self) -> int:
        return len(self._unauthenticated) + len(self._authenticated)


class ConnectionLimitError(Exception):
    """A connection is refused because a connection limit is reached."""
