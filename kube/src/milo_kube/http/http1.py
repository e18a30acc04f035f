"""An HTTP/1.1 client connection, and the response to the request that was sent over it."""

import asyncio
from typing import ClassVar, cast

import httptools

from milo_kube.http import errors
from milo_kube.http.connection import OVERHEAD_LIMIT, Response, check_header, close_at_once
from milo_kube.http.errors import TransportError
from milo_kube.http.headers import SentHeaders, each_header

_BUFFER_LIMIT = 128 << 10
"""Backpressure: with more unread bytes of body, reading from the socket is paused. Hundreds of servers can answer
at one moment."""
_FIELD_BYTES = 32
"""Counted for each header field besides its text, as in HTTP/2: short fields take many times their size in memory."""


class Http1Connection(asyncio.Protocol):
    """An HTTP/1.1 connection with one exchange at a time. Error messages contain `origin`."""

    __slots__ = ("_is_lost", "_loss", "_origin", "_response", "_transport", "handshake_bytes", "requests")
    is_multiplexed: ClassVar = False

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._transport: asyncio.Transport | None = None
        self._response: _Http1Response | None = None
        self._is_lost = False
        self._loss: Exception | None = None
        self.requests = 0
        self.handshake_bytes = 0

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected"
        return self._transport

    @property
    def is_usable(self) -> bool:
        return not self._is_lost and self._transport is not None and not self._transport.is_closing()

    @property
    def has_room(self) -> bool:
        return self._response is None

    @property
    def is_idle(self) -> bool:
        return self._response is None

    async def ready(self) -> None:
        pass

    def send(self, method: str, target: str, headers: SentHeaders, body: bytes = b"") -> "_Http1Response":
        assert self._response is None, "a request was sent before the response to the previous one"
        lines = [f"{method} {target} HTTP/1.1"]
        for name, value in each_header(headers):
            check_header(name, value)
            lines.append(f"{name}: {value}")
        self.requests += 1
        self._response = response = _Http1Response(self._origin, self)
        if self._is_lost:
            response.connection_lost(self._loss)
        else:
            self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return response

    def finished(self, response: Response) -> None:
        """End the exchange, and close the connection unless it can be reused."""
        if response is not self._response:
            return
        self._response = None
        if not response.is_reusable:
            self.abort()

    def abort(self) -> None:
        close_at_once(self._transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.handshake_bytes = transport.get_extra_info("handshake_bytes", 0)

    def data_received(self, data: bytes) -> None:
        if self._response is None:
            self.abort()  # data without a request
        else:
            self._response.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost, self._loss = True, exc
        if self._response is not None:
            self._response.connection_lost(exc)


class _Http1Response(Response):
    __slots__ = ("_connection", "_ends_with_connection", "_fields_size", "_is_paused", "_parser", "phrase")

    def __init__(self, origin: str, connection: Http1Connection) -> None:
        super().__init__(origin)
        self._connection = connection
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._ends_with_connection = False
        self._fields_size = 0
        self._is_paused = False
        self.phrase = ""

    def close(self) -> None:
        self._connection.finished(self)
        self._parser = None  # the two refer to each other: what was received is freed at once

    def _consumed(self, size: int) -> None:
        if self._is_paused:
            self._is_paused = False
            self._connection.transport.resume_reading()

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        self.has_begun = True
        if self._is_complete:
            self._connection.abort()  # more data than the response declared
            return
        self._overhead += len(data)
        assert self._parser is not None, "fed after the exchange"
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._is_complete:
                self._fail(TransportError("closed", f"{self.origin} sent an invalid HTTP response: {error}"))
            self.is_reusable = False
            self._connection.abort()
        except httptools.HttpParserUpgrade:
            self._fail(TransportError("closed", f"{self.origin} switched protocols, but no upgrade was requested"))
            self._connection.abort()
        if self._received_overhead(0):
            self._connection.abort()
        if len(self._body) > _BUFFER_LIMIT and not self._is_paused and not self._is_complete:
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

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._is_complete:
            raise ValueError("a second response without a request")

    def on_status(self, status: bytes) -> None:
        self.phrase = status.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields_size += len(name) + len(value) + _FIELD_BYTES
        if self._fields_size > OVERHEAD_LIMIT:
            self._refuse_overhead()
            raise ValueError("too many header fields")
        if not self._has_head:  # trailers are ignored
            self.headers.add(name, value)

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        self._received_head(status)
        self._ends_with_connection = not {"content-length", "transfer-encoding"} & set(self.headers)

    def on_body(self, body: bytes) -> None:
        self._received_body(body)

    def on_message_complete(self) -> None:
        if not self._has_head:  # an interim response: the final response follows
            self.headers.clear()
            return
        assert self._parser is not None
        self._is_complete = True
        self.is_reusable = self._failure is None and self._parser.should_keep_alive()
