"""Connection limits: the maximum per listener, and the shares of unauthenticated clients and owners. Pure."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import msgspec

from milo_discoveryd.server.connections.listener import Listener

T = TypeVar("T", bound=Hashable)

RESERVED = 512
"""File descriptors reserved for API servers, probes, commands, files and the HTTP port. Without the reserve, many
clients could keep the daemon from reconnecting to its API server."""


def fit_connections(listeners: Sequence[Listener], descriptors: int) -> list[Listener]:
    """Lower the connection limits to what the file descriptors allow, in proportion."""
    left = descriptors - min(RESERVED, descriptors // 2)
    wanted = sum(each.connections * each.descriptors for each in listeners)
    return [
        msgspec.structs.replace(each, connections=min(each.connections, max(1, each.connections * left // wanted)))
        for each in listeners
    ]


class ConnectionSlots(Generic[T]):
    """The connections of one listener.

    Unauthenticated ones get at most half of the slots. Each owner of authenticated ones takes at most as many as it
    leaves free, so there is always one for another owner.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._share = max(1, limit // 2)
        self._unauthenticated: dict[T, None] = {}
        self._authenticated: dict[T, frozenset[str]] = {}
        self._owners: Counter[str] = Counter()

    def admit(self, connection: T) -> T | None:
        """Add an unauthenticated connection. If the slots are full, remove and return the oldest unauthenticated one.

        Raises ConnectionLimitError if there is no such connection to remove.
        """
        evicted = None
        if len(self) >= self._limit or len(self._unauthenticated) >= self._share:
            if not self._unauthenticated:
                raise ConnectionLimitError(f"connection limit ({self._limit}) of the listener reached")
            evicted = next(iter(self._unauthenticated))
            del self._unauthenticated[evicted]
        self._unauthenticated[connection] = None
        return evicted

    def authenticate(self, connection: T, owners: Iterable[str]) -> None:
        """Count the connection for each of its owners: a certificate with more names gets no larger share.

        Raises ConnectionLimitError if one of them has reached its share.
        """
        for owner in (owners := frozenset(owners)):
            if self._owners[owner] >= max(1, self._limit - len(self._authenticated)):
                raise ConnectionLimitError(f"connection limit ({self._owners[owner]}) reached for {owner}")
        self._unauthenticated.pop(connection, None)
        self._authenticated[connection] = owners
        self._owners.update(owners)

    def remove(self, connection: T) -> None:
        self._unauthenticated.pop(connection, None)
        for owner in self._authenticated.pop(connection, ()):
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    def __len__(self) -> int:
        return len(self._unauthenticated) + len(self._authenticated)


class ConnectionLimitError(Exception):
    """A connection is refused because a connection limit is reached."""
