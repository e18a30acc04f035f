"""A proxy between two connections, with backpressure in both directions."""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, cast

from milo_discoveryd.server.connections.header_blocks import HeaderBlocks
from milo_discoveryd.server.connections.unread import SetLimit, UnreadLimit
from milo_kube.http.tls import TlsTransport

FLUSH_S = 5.0
"""How long buffered data may take to reach one side after the other side has closed."""
READ_BYTES = 2 << 10
"""Maximum bytes of a client that are read in one iteration of the event loop. By default 256 KiB are, which have up to
29,000 frames: a thousand connections would block the loop for half a minute. Requests are rarely longer."""
MOST_TOGETHER = 8
"""Maximum number of streams that are begun by what is written together."""

_Piece: TypeAlias = tuple[bytes, int, float]
"""Some of the data, the number of streams that they begin, and what their frames cost."""


class ProxySide(asyncio.Protocol):
    """One of two proxied connections. It reads only while the other side can be written to."""

    def __init__(self, unread: UnreadLimit) -> None:
        self._unread = unread
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self._took = False
        self.has_sent_eof = False
        self._other: ProxySide | None = None
        self._held: deque[_Piece] = deque()
        """What was read before this side was joined to the other, or is to be served later."""
        self.header_blocks: HeaderBlocks | None = None
        """The header blocks that this side sends, if they are limited: it is a client. Then it is also not read from
        while it does not read, because what it sends has answers."""
        self.is_flooding = False
        """Whether the connection was ended because of its header blocks."""
        self.count_resets: Callable[[int], None] = lambda _: None
        """Called with the number of streams that this side has reset, if its header blocks are limited."""
        self.pause_s: Callable[[int, float], float] = lambda _calls, _cost: 0.0
        """Called with the number of streams that this side begins and what its frames cost, if its header blocks are
        limited. Returns after how many seconds to call again, or `serve_held` is called; 0 if they may be served."""
        self._paused: asyncio.TimerHandle | None = None
        self._is_stalled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._other is None:
            self._transport.pause_reading()

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected yet"
        return self._transport

    def certificate(self) -> bytes:
        """Return the verified certificate of the peer, as DER."""
        encoded = self.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(encoded, bytes)
        return encoded

    async def adopt(
        self, connected: socket.socket, context: ssl.SSLContext | None = None, *, handshake_s: float | None = None
    ) -> None:
        """Take over an accepted connection. Completes the TLS handshake if there is a context. Raises OSError."""
        self._took = True
        loop = asyncio.get_running_loop()
        secured = None if context is None else TlsTransport(lambda _: self, context, None)
        transport, _ = await loop.connect_accepted_socket(lambda: secured or self, connected)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        if secured is None:  # a local client; others need more over long distances
            self._limit(lambda size: connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2))  # is doubled
            return
        try:
            async with asyncio.timeout(handshake_s):
                await secured.handshake()
        except TimeoutError:
            raise ConnectionAbortedError(f"the TLS handshake did not finish within {handshake_s:g} s") from None

    async def connect(self, connected: socket.socket) -> None:
        """Take over a connection to gRPC. Raises OSError."""
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=connected)
        self._limit(lambda size: setattr(transport, "max_size", size))

    def _limit(self, set_limit: SetLimit) -> None:
        if not self.lost.done():
            self._unread.add(self, set_limit)

    def close(self) -> None:
        """Close after buffered data was sent."""
        self.transport.close()

    def abort(self) -> None:
        if self._transport is not None and not self.lost.done():
            self._transport.abort()

    def drop(self, connected: socket.socket) -> None:
        """Close at once. Leave a socket that a transport owns to the transport: another connection could reuse the file
        descriptor before the transport closes it."""
        if not self._took:
            connected.close()
        self.abort()

    def join(self, other: "ProxySide") -> None:
        self._other = other
        self.serve_held()

    def data_received(self, data: bytes) -> None:
        begun, cost = list[int](), 0.0
        if self.header_blocks is not None:
            if not self.header_blocks.accepts(data):
                self.is_flooding = True
                self.abort()
                return
            if resets := self.header_blocks.resets:
                self.header_blocks.resets = 0
                self.count_resets(resets)
            begun, cost = self.header_blocks.begun, self.header_blocks.cost
            self.header_blocks.cost = 0.0
        if self._other is None or self._paused is not None:
            # A paused transport may deliver one more read.
            self._hold(data, begun, cost)
        elif begun or cost:
            self._hold(data, begun, cost)
            self.serve_held()
        elif not self._other.transport.is_closing():
            self._other.transport.write(data)

    def _hold(self, data: bytes, begun: list[int], cost: float) -> None:
        at, calls = 0, len(begun)
        for end in begun[MOST_TOGETHER::MOST_TOGETHER]:
            self._held.append((data[at:end], MOST_TOGETHER, cost))
            at, calls, cost = end, calls - MOST_TOGETHER, 0.0
        self._held.append((data[at:], calls, cost))

    def serve_held(self) -> None:
        """Write what was read to the other side, and read on, unless it is to be served later."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        if self._other is None or self.transport.is_closing() or self._other.transport.is_closing():
            return
        while self._held:
            data, calls, cost = self._held[0]
            if (calls or cost) and (pause_s := self.pause_s(calls, cost)):
                self.transport.pause_reading()
                self._paused = asyncio.get_running_loop().call_later(pause_s, self.serve_held)
                return
            self._held.popleft()
            self._other.transport.write(data)
        self._read_on()

    def _read_on(self) -> None:
        if self._other is None or self.transport.is_closing() or self._paused is not None:
            return
        if not (self._other._is_stalled or (self._is_stalled and self.header_blocks is not None)):
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        """Keep the other direction open, unless one of the two transports cannot half-close, as with TLS."""
        self.has_sent_eof = True
        if self._other is None or self._other.has_sent_eof or self._held:
            return False
        if not (self.transport.can_write_eof() and self._other.transport.can_write_eof()):
            return False
        self._other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        self._is_stalled = True
        self._unread.note(self, is_stalled=True)
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.pause_reading()
        if self.header_blocks is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_stalled = False
        self._unread.note(self, is_stalled=False)
        self._read_on()
        if self._other is not None:
            self._other._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.remove(self)
        if self._paused is not None:
            self._paused.cancel()
        if not self.lost.done():
            self.lost.set_result(None)


async def proxy(one: ProxySide, other: ProxySide) -> bool:
    """Proxy until one side is lost, flush the other, and close both.

    Return whether `other` closed the connection before `one` had sent all its data.
    """
    one.join(other)
    other.join(one)
    try:
        await asyncio.wait((one.lost, other.lost), return_when=asyncio.FIRST_COMPLETED)
        closed_by_other = other.lost.done() and not (one.lost.done() or one.has_sent_eof)
        for side in (one, other):
            side.close()
        await asyncio.wait((one.lost, other.lost), timeout=FLUSH_S)
        return closed_by_other
    finally:
        for side in (one, other):
            side.abort()
