"""A scripted HTTP/2 server, which can violate the protocol."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType

import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, PingReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

HTTP1 = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Accepted:
    """A connection that the server has accepted."""

    def __init__(self, peer: "Peer", number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peer = peer
        self._reader, self._writer = reader, writer
        self.number = number
        self.h2 = H2Connection(
            H2Configuration(client_side=False, header_encoding="utf-8", validate_outbound_headers=False)
        )
        self.h2.local_settings = Settings(client=False, initial_values=peer.settings)
        self.requests: list[dict[str, str]] = []
        self.streams: list[int] = []
        """The stream IDs of the requests."""
        self.bodies: dict[int, bytes] = {}
        self.resets: dict[int, ErrorCodes | int | None] = {}
        self.pings = 0
        self.is_reading = True
        self._ended = asyncio.Event()
        self.is_closed = False

    def answer(
        self,
        stream: int,
        *pieces: bytes,
        status: int = 200,
        headers: Mapping[str, str] = MappingProxyType({}),
        end: bool = True,
    ) -> None:
        """Send a response, or its beginning."""
        self.h2.send_headers(stream, [(":status", str(status)), *headers.items()], end_stream=end and not pieces)
        for number, piece in enumerate(pieces, 1):
            self.h2.send_data(stream, piece, end_stream=end and number == len(pieces))
        self.flush()

    def flush(self) -> None:
        self.send(self.h2.data_to_send())

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._ended.set()
        self._writer.close()

    async def serve(self) -> None:
        try:
            selected = self._writer.get_extra_info("ssl_object").selected_alpn_protocol()
            await (self._http2() if selected == "h2" else self._http1())
        except (OSError, asyncio.IncompleteReadError, ProtocolError):
            pass
        finally:
            self.is_closed = True
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()

    async def _http1(self) -> None:
        while True:
            await self._reader.readuntil(b"\r\n\r\n")
            self.requests.append({})
            self.send(HTTP1)

    async def _http2(self) -> None:
        if self._peer.greeting is None:
            self.h2.initiate_connection()
            self.flush()
        else:
            self.send(self._peer.greeting)
        while data := await self._reader.read(1 << 16):
            if self._peer.greeting is not None:
                continue
            for event in self.h2.receive_data(data):
                self._note(event)
            self.flush()
            if not self.is_reading:
                await self._ended.wait()

    def _note(self, event: Event) -> None:
        match event:
            case RequestReceived(stream_id=int(stream), headers=headers):
                self.requests.append({str(name): str(value) for name, value in headers})
                self.streams.append(stream)
                self.bodies[stream] = b""
                self._peer.begun(self, stream)
            case DataReceived(stream_id=int(stream), data=bytes(data), flow_controlled_length=int(length)):
                self.bodies[stream] += data
                if self._peer.acknowledges:
                    self.h2.acknowledge_received_data(length, stream)
            case StreamReset(stream_id=int(stream)):
                self.resets[stream] = event.error_code
            case StreamEnded(stream_id=int(stream)):
                self._peer.script(self, stream)
            case PingReceived():
                self.pings += 1
            case _:
                pass


Script = Callable[[Accepted, int], None]
"""Called with the connection and the stream of each request."""


class Peer:
    def __init__(
        self,
        script: Script,
        begun: Script,
        settings: dict[SettingCodes, int],
        *,
        greeting: bytes | None,
        acknowledges: bool,
    ) -> None:
        self.script = script
        self.begun = begun
        self.settings = settings
        self.greeting = greeting
        self.acknowledges = acknowledges
        self.url = ""
        self.accepted: list[Accepted] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def requests(self) -> list[dict[str, str]]:
        return [request for connection in self.accepted for request in connection.requests]

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.append(Accepted(self, len(self.accepted) + 1, reader, writer))
        self._tasks.append(asyncio.create_task(self.accepted[-1].serve()))

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)


class Authority:
    """The certificate of the server, and a context that trusts it."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._certificate = self._authority.issue_cert("127.0.0.1", "api.test")
        self._trusting = ssl.create_default_context()
        self._authority.configure_trust(self._trusting)

    @property
    def pem(self) -> str:
        return self._authority.cert_pem.bytes().decode()

    def server(self, alpn: Sequence[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def trusting(self) -> ssl.SSLContext:
        return self._trusting


@asynccontextmanager
async def serving(
    authority: Authority,
    script: Script,
    *,
    settings: dict[SettingCodes, int] | None = None,
    alpn: Iterable[str] = ("h2", "http/1.1"),
    begun: Script = lambda accepted, stream: None,
    greeting: bytes | None = None,
    acknowledges: bool = True,
) -> AsyncIterator[Peer]:
    """Run a server. `begun` is called with the head of each request, before its body.

    With a `greeting`, the server sends nothing else. Without `acknowledges`, it sends no WINDOW_UPDATE frames.
    """
    peer = Peer(script, begun, settings or {}, greeting=greeting, acknowledges=acknowledges)
    server = await asyncio.start_server(peer.accept, "127.0.0.1", 0, ssl=authority.server(list(alpn)))
    peer.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield peer
        for accepted in peer.accepted:
            accepted.close()
        await peer.ended()
