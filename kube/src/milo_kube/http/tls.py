"""TLS over an asyncio transport, with little memory per connection.

asyncio's own TLS keeps a read buffer of 256 KiB for each connection. With thousands of idle watches, these buffers
would take most of the memory of a process, and idle clients could exhaust the memory of a server. An idle watch takes
25 KiB here, and 290 KiB with asyncio's TLS. With a read buffer of 4 KiB (`max_size`), asyncio's TLS takes 42 KiB,
because it also holds OpenSSL's write buffer.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

from milo_kube.costly_steps import Turns
from milo_kube.http.tls_records import RECORDS_WITHOUT_DATA, Reading, ServerHello

HANDSHAKE_BYTES = 16 << 10
"""Maximum bytes that a peer may send before the handshake is complete, most of them certificates. OpenSSL buffers a
multiple of this number, and may need 6 ms for each certificate: an exponent may be as long as an RSA key of 3072 bits.
"""
CLIENT_BYTES = 8 << 10
"""The same for a client: OpenSSL keeps its certificates, and one of 30 KiB with many names takes 600 KiB."""
_RECORD = 16 << 10


def server_context() -> ssl.SSLContext:
    """Return a context for a server, without a certificate. It agrees on keys by P-256 alone, which every client has:
    OpenSSL accepts finite fields too, and a recorded ClientHello with 8,192 bits takes it 160 ms each time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ecdh_curve("prime256v1")
    return context


class _ClientHandshake(NamedTuple):
    hello: ServerHello
    turns: Callable[[Callable[[], None]], object]


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """One side of a TLS connection: a transport for a protocol, and the protocol of the transport below."""

    __slots__ = (
        *("_below", "_client", "_failure", "_handshake", "_handshake_bytes", "_incoming", "_is_closing", "_is_planned"),
        *("_made", "_outgoing", "_protocol", "_reading", "_tls", "_unsent"),
    )

    def __init__(
        self,
        protocol: Callable[[str | None], asyncio.Protocol],
        context: ssl.SSLContext,
        server_name: str | None,
        *,
        alpn: Sequence[str] = (),
        turns: Turns | None = None,
    ) -> None:
        """`server_name`: the name to verify; None for the server's side. `alpn`: the protocols to offer. `protocol` is
        called with the protocol that the server selected. `turns`: those of the client's side."""
        super().__init__()
        self._made = protocol
        self._protocol: asyncio.Protocol | None = None
        """None until the handshake is complete."""
        if alpn:
            context.set_alpn_protocols(list(alpn))  # wrap_bio copies the protocols
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._below: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self._handshake: asyncio.Future[None] | None = loop.create_future()
        """None once `handshake` has returned."""
        self._handshake_bytes = 0
        """Number of bytes that the peer has sent for the handshake."""
        self._client = None if server_name is None else _ClientHandshake(ServerHello(), turns or loop.call_soon)
        """None for the server's side, and after the handshake."""
        self._reading = Reading()
        self._is_planned = False
        """Whether another step was planned."""
        self._unsent: list[bytes] = []
        """Data to send that OpenSSL accepts only after it has read more data from the peer."""
        self._failure: Exception | None = None
        self._is_closing = False

    async def handshake(self) -> None:
        """Wait until the connection is secure. Raises OSError."""
        assert self._handshake is not None
        try:
            await self._handshake
        except BaseException:
            self.abort()
            raise
        self._handshake = None
        if self._is_closing:
            raise ConnectionResetError("closed after the TLS handshake")

    # --- asyncio.Protocol, for the transport below ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        if self._is_closing:  # `abort` was called before there was anything to close
            self._below.abort()
        else:
            self._shake_hands()

    def data_received(self, data: bytes) -> None:
        self._reading.add(data)
        if self._is_planned or self._client is not None:
            self._continue()
        else:
            self._step()

    def eof_received(self) -> None:
        if self._protocol is not None:
            self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._reading.is_full = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._reading.is_full = self._reading.is_choked = False
        self._continue()
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        if self._protocol is None:
            self._end_handshake(self._failure or exc or ConnectionResetError("closed during the TLS handshake"))
        else:
            self._protocol.connection_lost(self._failure or exc)
        # Free the buffers now: a traceback can keep this object alive until the garbage collector runs.
        del self._tls, self._incoming, self._outgoing
        self._reading = Reading()

    # --- asyncio.Transport, for the protocol above ---

    def write(self, data: Any) -> None:
        if not self._is_closing:
            whole = bytes(data)
            self._unsent += [whole[start : start + _RECORD] for start in range(0, len(whole), _RECORD)]
            self._encrypt()

    def close(self) -> None:
        """Send close_notify, and close without waiting for the peer's."""
        if self._is_closing:
            return
        self._is_closing = True
        with suppress(ssl.SSLError):  # does not wait for the peer's close_notify
            self._tls.unwrap()
        self._flush()
        if self._below is not None:
            self._below.close()

    def abort(self) -> None:
        self._is_closing = True
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._reading.is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading.is_paused:
            self._reading.is_paused = False
            self._continue()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None, "the handshake is not complete"
        return self._protocol

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "handshake_bytes":
            return self._handshake_bytes
        return self._tls if name == "ssl_object" else self._transport.get_extra_info(name, default)

    # --- internals ---

    @property
    def _transport(self) -> asyncio.Transport:
        assert self._below is not None, "not connected"
        return self._below

    @property
    def _is_shaking_hands(self) -> bool:
        return self._handshake is not None and not self._handshake.done()

    def _step(self) -> None:
        """Decrypt what was received, within the bounds of one iteration of the event loop."""
        reading = self._reading
        reading.begin_turn()
        while not self._is_closing and (piece := reading.take()):
            if self._handshake is not None and not self._handshake.done():
                self._shake_hands(piece)
                if self._is_shaking_hands or self._failure is not None:
                    continue
                self._client, reading.without_data = None, 0
            else:
                self._incoming.write(piece)
            self._decrypt()
            if reading.without_data > RECORDS_WITHOUT_DATA:
                self._fail(ConnectionAbortedError("the peer sent too many TLS records without data"))
        self._continue()

    def _planned_step(self) -> None:
        self._is_planned = False
        try:
            self._step()
        except BaseException:
            self.abort()  # as the event loop does if `data_received` fails
            raise

    def _continue(self) -> None:
        """Decrypt or read further when that is possible."""
        if self._is_closing or self._below is None:
            return
        reading = self._reading
        if not (reading.has_data or reading.is_blocked):
            self._below.resume_reading()
            return
        self._below.pause_reading()
        if not (reading.is_blocked or self._is_planned):
            self._is_planned = True
            turns = asyncio.get_running_loop().call_soon if self._client is None else self._client.turns
            turns(self._planned_step)

    def _shake_hands(self, piece: bytes = b"") -> None:
        try:
            if self._client is not None and not self._client.hello.is_read:
                self._client.hello.read(piece)
            self._incoming.write(piece)
            self._handshake_bytes += len(piece)
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._handshake_bytes > (CLIENT_BYTES if self._tls.server_side else HANDSHAKE_BYTES):
                self._fail_handshake(
                    ConnectionAbortedError("the peer sent too many bytes before the TLS handshake was complete")
                )
        except OSError as error:  # includes ssl.SSLError
            self._fail_handshake(error)
        else:
            self._flush()
            self._end_handshake(None)

    def _fail_handshake(self, error: OSError) -> None:
        self._fail(error)
        self._end_handshake(error)

    def _end_handshake(self, error: Exception | None) -> None:
        assert self._handshake is not None
        if self._handshake.done():
            return
        if error is None:
            self._handshake.set_result(None)
            self._protocol = self._made(self._tls.selected_alpn_protocol())
            self._protocol.connection_made(self)
        else:
            self._handshake.set_exception(error)
            self._handshake.exception()  # marked as retrieved, in case nothing awaits the handshake

    def _decrypt(self) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        has_replies = False
        try:
            while data := self._tls.read(_RECORD):
                self._reading.decrypted(len(data))
                has_replies = has_replies or self._outgoing.pending > 0
                protocol.data_received(data)
        except ssl.SSLWantReadError:
            has_replies = has_replies or self._outgoing.pending > 0
            self._encrypt()
            if has_replies:
                self._reading.is_choked = self._reading.is_full
        except ssl.SSLZeroReturnError:
            self._end_of_data()
        except ssl.SSLError as error:
            self._fail(error)
        else:
            self._end_of_data()  # the peer has sent close_notify

    def _end_of_data(self) -> None:
        self.eof_received()
        self.close()  # this transport has no half-close

    def _encrypt(self) -> None:
        try:
            while self._unsent:
                self._tls.write(self._unsent[0])
                del self._unsent[0]
                self._flush()  # record by record: OpenSSL keeps a buffer of the size that it has had once
            # For each session ticket that it reads, OpenSSL allocates a write buffer of 16 KiB, which the next write
            # releases. A watch may not write again for hours; an empty write sends nothing, but releases the buffer.
            self._tls.write(b"")
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._fail(error)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and self._below is not None and not self._below.is_closing():
            self._below.write(self._outgoing.read())

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._flush()  # sends the TLS alert
        self._is_closing = True
        self._transport.close()
