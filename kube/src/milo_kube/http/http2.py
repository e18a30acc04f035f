"""An HTTP/2 client connection, which carries many exchanges at the same time."""

import asyncio
import re
from collections.abc import Iterable
from typing import ClassVar, cast

from milo_kube.http import errors
from milo_kube.http.connection import Refusal, Response, check_header, close_at_once
from milo_kube.http.errors import TransportError
from milo_kube.http.headers import SentHeaders, each_header
from milo_kube.http.http2_core import (
    Body,
    Ended,
    Fields,
    GoingAway,
    Http2Core,
    InvalidHttp2,
    Reset,
    StreamMessage,
)

PING_AFTER_S = 30.0
"""Time without received data after which a PING checks a connection that has open requests."""
PING_WITHIN_S = 15.0
_STATUS = re.compile(rb"[1-9][0-9]{2}")
_CONNECTION_HEADERS = frozenset({"host", "connection", "keep-alive", "proxy-connection", "transfer-encoding"})


class Http2Connection(asyncio.Protocol):
    """An HTTP/2 connection. Error messages contain `origin`."""

    __slots__ = (
        *("_check", "_core", "_failure", "_is_pinged", "_loop", "_loss", "_next_turn", "_origin", "_read_at"),
        *("_responses", "_transport", "_waiter", "handshake_bytes", "requests"),
    )
    is_multiplexed: ClassVar = True

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._read_at = self._loop.time()
        self._core = Http2Core(self._read_at)
        self._transport: asyncio.Transport | None = None
        self._responses: dict[int, _Http2Response] = {}
        self._failure: TransportError | None = None
        self._loss: TransportError | None = None
        """Why the transport was closed, while frames that arrived before are still processed."""
        self._waiter: asyncio.Future[None] | None = None
        self._is_pinged = False
        self._check: asyncio.TimerHandle | None = None
        self._next_turn: asyncio.Handle | None = None
        self.requests = 0
        self.handshake_bytes = 0

    @property
    def is_usable(self) -> bool:
        return (
            self._failure is None
            and self._loss is None
            and self._core.accepts_requests
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def has_room(self) -> bool:
        return len(self._responses) < self._core.stream_limit

    @property
    def is_idle(self) -> bool:
        return not self._responses

    async def ready(self) -> None:
        """Wait for the server's settings, which limit the streams. Raises TransportError."""
        if not self._core.has_settings and self._failure is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure.copy()
        if self._core.is_going_away:
            raise TransportError("connect", f"{self._origin} sent GOAWAY before it accepted a request")

    def send(self, method: str, target: str, headers: SentHeaders, body: bytes = b"") -> Response:
        sent = [*each_header(headers)]
        authority = next(value for name, value in sent if name == "Host")
        fields = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", target)]
        for name, value in sent:
            check_header(name, value)
            if name.lower() not in _CONNECTION_HEADERS:
                fields.append((name.lower(), value))
        self.requests += 1
        response = _Http2Response(self._origin, self)
        if self._failure is not None:
            response.failed(self._failure)
            return response
        response.stream_id = stream_id = self._core.begin(fields, body)
        self._responses[stream_id] = response
        self._flush()
        if self._check is None:
            self._read_at = self._loop.time()
            self._check = self._loop.call_later(PING_AFTER_S, self._check_liveness)
        return response

    def finished(self, response: "_Http2Response") -> None:
        """End the exchange; the stream is reset unless both sides have ended it."""
        if self._responses.pop(response.stream_id, None) is not None and self._failure is None:
            self._core.end(response.stream_id)
            self._flush()

    def consumed(self, stream_id: int, size: int) -> None:
        """Extend the flow-control window by `size` bytes of a body that were read."""
        if size and self._failure is None:
            self._core.consume(stream_id, size)
            self._flush()

    def abort(self) -> None:
        close_at_once(self._transport)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.handshake_bytes = transport.get_extra_info("handshake_bytes", 0)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._failure is not None:
            return
        self._read_at, self._is_pinged = self._loop.time(), False
        self._core.frames.feed(data)
        self._process_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        self._loss = errors.from_exchange(exc, self._origin)
        if not self._core.frames.has_frame:
            self._fail(self._loss)
        elif self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._begin_turn)

    # --- internals ---

    def _process_frames(self) -> None:
        """Process the limited number of frames that is allowed per iteration of the event loop, so that no server can
        block it."""
        try:
            messages = self._core.take_messages(self._read_at)
        except InvalidHttp2 as error:
            self._flush()  # GOAWAY with the reason
            self._fail(TransportError("closed", f"{self._origin} sent invalid HTTP/2: {errors.reason(error)}"))
            return
        if messages is None:
            return
        for message in messages:
            self._received(message)
        if self._core.has_settings or self._core.is_going_away:
            self._wake()
        self._flush()
        if self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._next_turn = None
        self._core.frames.begin_turn()
        if self._failure is not None or self._transport is None:
            return
        self._process_frames()
        has_frame = self._core.frames.has_frame
        if self._loss is None:
            (self._transport.pause_reading if has_frame else self._transport.resume_reading)()
        elif not has_frame:
            self._fail(self._loss)

    def _received(self, message: StreamMessage | GoingAway) -> None:
        if isinstance(message, GoingAway):
            for stream_id in [response for response in self._responses if response > message.last_stream_id]:
                self._responses[stream_id].refused(message.refusal)
        elif (response := self._responses.get(message.stream_id)) is not None:
            response.received(message)
        elif isinstance(message, Body):
            self.consumed(message.stream_id, len(message.data) + message.padding)

    def _check_liveness(self) -> None:
        self._check = None
        if self._failure is not None or not self._responses:
            return
        quiet_s = self._loop.time() - self._read_at
        if self._is_pinged:
            self._fail(TransportError("timeout", f"{self._origin} did not answer a PING within {PING_WITHIN_S:g} s"))
            return
        wait_s = PING_AFTER_S - quiet_s
        if wait_s <= 0:
            wait_s, self._is_pinged = PING_WITHIN_S, True
            self._core.ping()
            self._flush()
        self._check = self._loop.call_later(wait_s, self._check_liveness)

    def _flush(self) -> None:
        if self._transport is not None and (data := self._core.data_to_send()):
            self._transport.write(data)

    def _fail(self, error: TransportError) -> None:
        """Close the connection, and fail every request on it."""
        if self._failure is not None:
            return
        self._failure = error
        if self._check is not None:
            self._check.cancel()
            self._check = None
        self.abort()
        self._wake()
        for response in list(self._responses.values()):
            response.failed(error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Http2Response(Response):
    __slots__ = ("_connection", "stream_id")

    def __init__(self, origin: str, connection: Http2Connection) -> None:
        super().__init__(origin)
        self._connection = connection
        self.stream_id = 0

    def close(self) -> None:
        self._consumed(len(self._body))
        self._body.clear()
        self._connection.finished(self)

    def _consumed(self, size: int) -> None:
        self._connection.consumed(self.stream_id, size)

    # Called by the connection.

    def received(self, message: StreamMessage) -> None:
        self.has_begun = True
        match message:
            case Body(_, data, padding):
                self._connection.consumed(self.stream_id, padding)
                if data and not self._is_complete:
                    self._received_body(data)
                    if self._received_overhead(0):
                        self._connection.finished(self)
            case Fields(_, fields, is_head):
                if self._received_overhead(sum(len(name) + len(value) for name, value in fields)):
                    self._connection.finished(self)
                if is_head:
                    self._received_response(fields)
            case Ended():
                self._is_complete = True
                self.is_reusable = self._failure is None
            case Reset(_, _, Refusal() as refusal):
                self.refused(refusal)
            case Reset(_, code):
                self.failed(TransportError("closed", f"{self.origin} reset the stream: {code}"))
        self._wake()

    def refused(self, refusal: Refusal) -> None:
        """Fail the exchange: the server did not process the request."""
        self.refusal = refusal
        self.failed(TransportError("closed", f"{self.origin} refused the request without processing it"))
        self._connection.finished(self)

    def failed(self, error: TransportError) -> None:
        if not self._is_complete:
            self._fail(error)
        self._wake()

    # --- internals ---

    def _received_response(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        status = b""
        for name, value in fields:
            if name == b":status":
                status = value
            else:
                self.headers.add(name, value)
        if _STATUS.fullmatch(status):
            self._received_head(int(status))
        else:
            self.failed(TransportError("closed", f"{self.origin} sent an invalid status"))
