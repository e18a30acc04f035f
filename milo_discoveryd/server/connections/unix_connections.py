"""Divides the connections that gRPC accepts at a Unix socket fairly among users.

gRPC for Python neither exposes the user of a connection nor limits connections per user, and an acceptor would copy
every byte. But the accepted sockets are file descriptors of this process: the kernel reports the user of each socket,
and gRPC handles a socket that is shut down in the same way as one that the client closed. The sockets are inspected
only when the number of open descriptors shows that there may be too many connections.
"""

import asyncio
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.peer_credentials import peer_uid
from milo_discoveryd.server.connections.connection_budget import (
    CONNECTION_REFUSED,
    TAKEN,
    ConnectionLimitError,
    ConnectionSlots,
)
from milo_discoveryd.server.connections.listener import Listener
from milo_discoveryd.server.paced_audit import PacedAudit

CALM_S = 0.1
FLOODED_S = 0.02
"""Interval of checks while there are too many connections. It is so short that a client that reconnects at once cannot
exceed gRPC's own limit between two checks."""
_DESCRIPTORS = "/proc/self/fd"


class _GrpcConnection(NamedTuple):
    descriptor: int
    """The kernel assigns the lowest free number, so the highest are usually those of the newest connections."""
    inode: int
    """Identifies the socket: at any time, gRPC may close the descriptor, and another socket may get the same number."""
    owner: str


class UnixConnections:
    def __init__(self, listener: Listener, bound: str, audit: PacedAudit) -> None:
        """`bound` is the path to which the socket was bound, before it was renamed."""
        self._listener = listener
        self._bound = bound
        self._audit = audit
        self._count = 0
        """The number of open descriptors at the last check."""
        self._others = 0
        """A lower bound on the number of descriptors that are not connections of this listener."""

    async def run(self) -> None:
        while True:
            is_flooded = False
            with suppress(OSError):  # raised if no descriptor is free for reading the directory
                is_flooded = self._check()
            await asyncio.sleep(FLOODED_S if is_flooded else CALM_S)

    def _check(self) -> bool:
        """Shut down excess connections. Return whether there were any."""
        # Reading the directory would take most of the CPU time of an idle daemon. Linux before 6.2 reports a size of 0.
        count = os.stat(_DESCRIPTORS).st_size or len(_descriptors())  # noqa: PTH116 - pathlib takes twice as long
        closed, self._count = max(self._count - count, 0), count
        self._others = max(self._others - closed, 0)
        if self._count - self._others <= self._listener.connections:
            return False
        accepted = sorted(self._accepted(_descriptors()))
        self._others = self._count - len(accepted)
        self._divide(accepted)
        return len(accepted) > self._listener.connections

    def _divide(self, accepted: Iterable[_GrpcConnection]) -> None:
        slots: ConnectionSlots[_GrpcConnection] = ConnectionSlots(self._listener.connections)
        excess = []
        for connection in accepted:
            try:
                if (evicted := slots.authenticate(connection, (connection.owner,))) is not None:
                    excess.append((evicted, TAKEN))
            except ConnectionLimitError as error:
                excess.append((connection, str(error)))
        for connection, why in excess:
            self._shut_down(connection, why)

    def _accepted(self, descriptors: Iterable[str]) -> Iterator[_GrpcConnection]:
        for descriptor in map(int, descriptors):
            with suppress(OSError), _duplicate(descriptor) as duplicate:
                listens = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if duplicate.getsockname() == self._bound and not listens:
                    yield _GrpcConnection(descriptor, os.fstat(duplicate.fileno()).st_ino, f"uid {peer_uid(duplicate)}")

    def _shut_down(self, ended: _GrpcConnection, why: str) -> None:
        with suppress(OSError), _duplicate(ended.descriptor) as duplicate:
            if os.fstat(duplicate.fileno()).st_ino == ended.inode:
                duplicate.shutdown(socket.SHUT_RDWR)
                caller = Caller(listener=self._listener.name, peer="unix:")
                self._audit.refused(caller, "", CONNECTION_REFUSED, problem=f"{ended.owner}: {why}")


def _descriptors() -> list[str]:
    return os.listdir(_DESCRIPTORS)  # noqa: PTH208 - pathlib takes several times as long


@contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket]:
    """Duplicate a descriptor, which gRPC may close at any time. Raises OSError if it is not a socket."""
    own = os.dup(descriptor)
    try:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=own)
    except OSError:
        os.close(own)
        raise
    with connected:
        yield connected
