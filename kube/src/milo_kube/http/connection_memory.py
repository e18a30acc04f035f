"""The memory of the connections of several clients, within a limit.

OpenSSL keeps the certificates of a server while a connection is open, and what it has read of the CAs, in a multiple of
their size: others choose both.
"""

import asyncio
import math
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from milo_kube.costly_steps import Turns
from milo_kube.http.connection import Connection
from milo_kube.http.tls import TlsTransport

_CONNECTION_BYTES = 25 << 10
_PER_HANDSHAKE_BYTE = 54
"""Certificates take some 16 times their size, and 54 times if all of it is empty names."""
_PER_PEM_BYTE = 40
"""The same, of three quarters of the text."""


class _Evictable(Protocol):
    def evict(self) -> None:
        """Close the connection at once, and release its memory."""


class ConnectionMemory:
    """Beyond the limit, idle connections are closed, the oldest first, and then those that take more than their share,
    the largest first. CAs that take more than their share, and do not fit, are refused.

    What takes less than its share is never closed or refused, whatever others take.
    """

    def __init__(self, limit: float = math.inf, share: float = math.inf) -> None:
        """`limit` and `share`: bytes, as estimated by the CAs and what the servers have sent for their handshakes."""
        self._limit = limit
        self._share = share
        self._used = 0
        self._handshakes: dict[_Evictable, int] = {}
        self._authorities: Counter[bytes] = Counter()
        """How many users share each text of CAs, which counts once."""
        self._idle: dict[Connection, Callable[[], None]] = {}
        """How to close each idle connection; the one that has been idle for longest is first."""

    def take_authorities(self, pem: bytes) -> bool:
        """Count one more user of CAs; return False if they do not fit."""
        if not self._authorities[pem]:
            size = len(pem) * _PER_PEM_BYTE
            self._close_idle(size)
            if size > self._share and self._used + size > self._limit:
                return False
            self._used += size
        self._authorities[pem] += 1
        return True

    def release_authorities(self, pem: bytes) -> None:
        self._authorities[pem] -= 1
        if not self._authorities[pem]:
            del self._authorities[pem]
            self._used -= len(pem) * _PER_PEM_BYTE

    def add_handshake(self, connection: _Evictable, size: int) -> None:
        """Count `size` bytes that a server has sent for its handshake, before OpenSSL reads them. This may evict the
        connection itself."""
        self._handshakes[connection] = self._handshakes.get(connection, 0) + size * _PER_HANDSHAKE_BYTE
        self._used += size * _PER_HANDSHAKE_BYTE
        self._close_idle()
        while self._used > self._limit and self._handshakes:
            largest = max(self._handshakes, key=self._handshakes.__getitem__)
            if self._handshakes[largest] <= self._share:
                return
            largest.evict()

    def remove_handshake(self, connection: _Evictable) -> None:
        self._used -= self._handshakes.pop(connection, 0)

    def add_idle(self, connection: Connection, close: Callable[[], None]) -> None:
        """Add an idle connection. `close` closes it, and removes it from here."""
        self._idle[connection] = close
        self._used += _CONNECTION_BYTES
        self._close_idle()

    def remove_idle(self, connection: Connection) -> None:
        if self._idle.pop(connection, None) is not None:
            self._used -= _CONNECTION_BYTES

    def _close_idle(self, needed: int = 0) -> None:
        while self._used + needed > self._limit and self._idle:
            next(iter(self._idle.values()))()


class CountedTls(TlsTransport):
    """The client's side of a TLS connection, whose memory is counted before OpenSSL takes it."""

    __slots__ = ("_memory",)

    def __init__(
        self,
        protocol: Callable[[str | None], asyncio.Protocol],
        context: ssl.SSLContext,
        server_name: str,
        memory: ConnectionMemory,
        *,
        alpn: Sequence[str],
        turns: Turns,
    ) -> None:
        super().__init__(protocol, context, server_name, alpn=alpn, turns=turns)
        self._memory = memory

    def _shake_hands(self, piece: bytes = b"") -> None:
        if piece:
            self._memory.add_handshake(self, len(piece))
        if not self._is_closing:
            super()._shake_hands(piece)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._memory.remove_handshake(self)

    def abort(self) -> None:
        super().abort()
        self._memory.remove_handshake(self)

    def evict(self) -> None:
        error = ConnectionAbortedError("its certificates take too much memory beside those of other servers")
        self._failure = self._failure or error
        if self._is_shaking_hands:
            self._end_handshake(error)
        self.abort()
