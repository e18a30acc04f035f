"""A client connection, and the response to the request that was sent over it."""

import asyncio
import re
import zlib
from collections.abc import Mapping
from typing import cast

import httptools

from milo_kube.http import errors
from milo_kube.http.errors import TransportError
from milo_kube.http.headers import Headers

OVERHEAD_LIMIT = 64 << 10
"""Maximum bytes of headers, chunk sizes and trailers between two pieces of body: bounds the memory they use."""
_BUFFER_LIMIT = 512 << 10
"""Backpressure: with more unread bytes of body, reading from the socket is paused."""
_UNZIP_AT_ONCE = 1 << 20
_HEADER_VALUE = re.compile(r"[^\r\n\0]*")


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection with one exchange at a time. Error messages name `origin`."""

    __slots__ = ("_is_lost", "_loss", "_origin", "_response", "_transport", "requests")

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._is_lost = False
        self._loss: Exception | None = None
        self.requests = 0

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected"
        return self._transport

    @property
    def is_usable(self) -> bool:
        return not self._is_lost and self._transport is not None and not self._transport.is_closing()

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> "Response":
        assert self._response is None, "one exchange at a time"
        lines = [f"{method} {target} HTTP/1.1"]
        for name, value in headers.items():
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"the header {name} contains a line break or NUL")
            lines.append(f"{name}: {value}")
        self.requests += 1
        self._response = response = Response(self._origin, self)
        if self._is_lost:
            response.connection_lost(self._loss)
        else:
            self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return response

    def finished(self, response: "Response") -> None:
        """End the exchange; the connection is closed unless the response was read completely."""
        if response is not self._response:
            return
        self._response = None
        if not response.is_reusable:
            self.abort()

    def abort(self) -> None:
        """Close at once: sends the TLS close_notify, and does not wait for the peer's."""
        if self._transport is not None:
            self._transport.close()
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._response is None:
            self.abort()  # data without a request
        else:
            self._response.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost, self._loss = True, exc
        if self._response is not None:
            self._response.connection_lost(exc)


class Response:
    """A response whose body is read while it arrives."""

    __slots__ = (
        *("_buffered", "_chunks", "_connection", "_ends_with_connection", "_failure", "_has_head", "_is_complete"),
        *("_is_paused", "_overhead", "_parser", "_unzip", "_waiter"),
        *("has_begun", "headers", "is_reusable", "origin", "phrase", "status"),
    )

    def __init__(self, origin: str, connection: Connection) -> None:
        self.headers = Headers()
        self.status = 0
        self.phrase = ""
        self.has_begun = False
        """Whether at least one byte was received."""
        self.is_reusable = False
        """Whether it was received completely, so that the connection can be reused."""
        self.origin = origin
        self._connection = connection
        self._parser = httptools.HttpResponseParser(self)
        self._has_head = False
        self._is_complete = False
        self._ends_with_connection = False
        self._failure: TransportError | None = None
        self._overhead = 0
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._unzip: zlib._Decompress | None = None
        self._is_paused = False
        self._waiter: asyncio.Future[None] | None = None

    async def head(self, silence_s: float | None) -> None:
        """Wait for status and headers. Raises TransportError."""
        while not self._has_head:
            if self._failure is not None:
                raise self._failure
            await self._more(silence_s)

    async def read(self, silence_s: float | None = None) -> bytes:
        """Return the next piece of the body, of any size; empty at its end. Raises TransportError."""
        while True:
            if self._unzip is not None and self._unzip.unconsumed_tail:
                return self._unzipped(self._unzip.unconsumed_tail)
            if self._chunks:
                data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._buffered = 0
                if self._is_paused:
                    self._is_paused = False
                    self._connection.transport.resume_reading()
                if self._unzip is None:
                    return data
                if piece := self._unzipped(data):
                    return piece
                continue
            if self._failure is not None:
                raise self._failure
            if self._is_complete:
                return self._end_of_zipped()
            await self._more(silence_s)

    def close(self) -> None:
        """Return the connection for reuse, or close it if the body was not read to its end."""
        self._connection.finished(self)

    async def _more(self, silence_s: float | None) -> None:
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        try:
            if silence_s is None:  # saves the cost of a timer
                await waiter
            else:
                async with asyncio.timeout(silence_s):
                    await waiter
        except TimeoutError:
            raise TransportError("timeout", f"{self.origin} sent nothing within the timeout") from None
        finally:
            self._waiter = None

    def _unzipped(self, data: bytes) -> bytes:
        assert self._unzip is not None
        try:
            return self._unzip.decompress(data, _UNZIP_AT_ONCE)
        except zlib.error:
            raise self._fail(TransportError("closed", f"{self.origin} sent a body that is not valid gzip")) from None

    def _end_of_zipped(self) -> bytes:
        if self._unzip is not None and not self._unzip.eof:
            raise self._fail(TransportError("closed", f"{self.origin} sent a gzip body that is cut off"))
        return b""

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        self.has_begun = True
        if self._is_complete:
            self._connection.abort()  # more data than the response declared
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._is_complete:
                self._fail(TransportError("closed", f"{self.origin} sent an invalid HTTP response: {error}"))
            self.is_reusable = False
            self._connection.abort()
        except httptools.HttpParserUpgrade:
            self._fail(TransportError("closed", f"{self.origin} switched to another protocol without a request"))
            self._connection.abort()
        if self._overhead > OVERHEAD_LIMIT:
            self._fail(TransportError("closed", f"{self.origin} sent more than {OVERHEAD_LIMIT} bytes of headers"))
            self._connection.abort()
        if self._buffered > _BUFFER_LIMIT and not self._is_paused and not self._is_complete:
            self._is_paused = True
            self._connection.transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_reusable = False
        if not self._is_complete and self._failure is None:
            if error is None and self._has_head and self._ends_with_connection:
                self._is_complete = True
            else:
                self._failure = errors.from_exchange(error, self.origin)
        self._wake()

    def _fail(self, error: TransportError) -> TransportError:
        self._failure = self._failure or error
        self.is_reusable = False
        return error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._is_complete:
            raise ValueError("a second response without a request")

    def on_status(self, status: bytes) -> None:
        self.phrase = status.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # trailers are ignored
            self.headers.add(name, value)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            return
        self._has_head = True
        self._ends_with_connection = not {"content-length", "transfer-encoding"} & set(self.headers)
        encoding = self.headers.get("Content-Encoding", "identity").lower()
        if encoding in ("gzip", "x-gzip"):
            self._unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        elif encoding != "identity":
            self._fail(TransportError("closed", f"{self.origin} used a content encoding that was not requested"))

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if not self._has_head:  # an interim response: the final one follows
            self.headers.clear()
            return
        self._is_complete = True
        self.is_reusable = self._failure is None and self._parser.should_keep_alive()
