"""Two connections made one: what comes in at either goes out at the other, as fast as that takes it."""

import asyncio
import socket
import ssl
from typing import cast

FLUSH_S = 5.0
"""For what is still to be sent on one side when the other has ended."""


class ProxySide(asyncio.Protocol):
    """One of the two. Nothing is read before they are joined, and no more than the other side takes."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self._took = False
        self.has_sent_eof = False
        self._other: ProxySide | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._other is None:
            self._transport.pause_reading()

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected yet"
        return self._transport

    def certificate(self) -> bytes:
        """That of the other end, verified, as DER."""
        found = self.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(found, bytes)
        return found

    async def take(
        self, connected: socket.socket, context: ssl.SSLContext | None = None, *, handshake_s: float | None = None
    ) -> None:
        """A connection that was made to us; from here on, it is this one's to close. Raises OSError."""
        self._took = True
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: self,
            connected,
            ssl=context,
            ssl_handshake_timeout=handshake_s,
            ssl_shutdown_timeout=None if context is None else FLUSH_S,
        )

    def close(self) -> None:
        """When what was written is sent. Once only: closed twice, a TLS transport can't be aborted (in Python 3.11)."""
        if not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        if self._transport is not None and not self.lost.done():
            self._transport.abort()

    def drop(self, connected: socket.socket) -> None:
        """At once. A socket that a transport has is left to it: closed beneath it, its number would soon be that of
        another connection, which would then end with this one."""
        if not self._took:
            connected.close()
        self.abort()

    def join(self, other: "ProxySide") -> None:
        self._other = other
        for data in self._early:
            other.transport.write(data)
        self._early.clear()
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            # Asked to pause, a transport may have read once more already.
            self._early.append(data)
        elif not self._other.transport.is_closing():
            self._other.transport.write(data)

    def eof_received(self) -> bool:
        """Whether the connection stays open in the other direction. With TLS on either side there is no such thing."""
        self.has_sent_eof = True
        if self._other is None or self._other.has_sent_eof:
            return False
        if not (self.transport.can_write_eof() and self._other.transport.can_write_eof()):
            return False
        self._other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


async def proxy(one: ProxySide, other: ProxySide) -> bool:
    """Until either is lost; then both are, and what the one still had to say has reached the other, if that reads.

    Whether the other hung up on the one, which had not said all yet.
    """
    one.join(other)
    other.join(one)
    try:
        await asyncio.wait((one.lost, other.lost), return_when=asyncio.FIRST_COMPLETED)
        hung_up = other.lost.done() and not (one.lost.done() or one.has_sent_eof)
        for leg in (one, other):
            leg.close()
        await asyncio.wait((one.lost, other.lost), timeout=FLUSH_S)
        return hung_up
    finally:
        for leg in (one, other):
            leg.abort()
