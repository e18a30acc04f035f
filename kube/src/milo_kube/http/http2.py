"""An HTTP/2 client connection, which carries many exchanges at the same time.

Frames, header compression and the states of streams are those of the library h2.
"""

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import cast

try:
    from h2.config import H2Configuration
    from h2.connection import ConnectionInputs, H2Connection, H2ConnectionStateMachine
    from h2.errors import ErrorCodes
    from h2.events import (
        ConnectionTerminated,
        DataReceived,
        Event,
        InformationalResponseReceived,
        RemoteSettingsChanged,
        ResponseReceived,
        StreamEnded,
        StreamReset,
        TrailersReceived,
        WindowUpdated,
    )
    from h2.exceptions import DenialOfServiceError, FrameTooLargeError, ProtocolError, StreamClosedError
    from h2.settings import SettingCodes, Settings
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "HTTP/2 needs the package h2 of the extra milo-kube[http2]; in a clone of the repository: "
        "pip install './kube[http2]'",
        name=error.name,
    ) from error

from milo_kube.http import errors
from milo_kube.http.connection import OVERHEAD_LIMIT, Refusal, Response, check_header, close_at_once
from milo_kube.http.errors import TransportError
from milo_kube.http.headers import SentHeaders, each_header
from milo_kube.rate_limit import Rate, TokenBucket

STREAM_WINDOW = 256 << 10
"""Backpressure: maximum unread bytes of a response body. With more, the server has to wait."""
_STREAM_LIMIT = 1000
"""Maximum concurrent streams per connection, if the server allows more or sets no limit."""
_CONNECTION_WINDOW = 1 << 30
"""Larger than the windows of all streams together, so that one slow reader does not block other streams."""
PING_AFTER_S = 30.0
"""Silence after which a PING checks the connection."""
PING_WITHIN_S = 15.0
FRAMES_AT_ONCE = 64
"""Frames that are processed between two iterations of the event loop."""
OVERHEAD_FRAMES = Rate(per_second=20.0, burst=1000.0)
"""Frames without content, beyond those that requests and content pay for. A server that sends more is attacking."""
_FRAMES_PER_REQUEST = 20
_CREDIT_LIMIT = 10_000
_SHORT_DATA = 32
"""Content of a DATA frame that is shorter does not pay for other frames."""
_FRAME_HEADER = 9
_LARGEST_FRAME = 16_384
_DATA = 0
_PADDED = 0x8
_HIGHEST_STREAM_ID = (1 << 31) - 1
_CONFIGURATION = H2Configuration(client_side=True, header_encoding=None)
_STATUS = re.compile(rb"[1-9][0-9]{2}")
_CONNECTION_HEADERS = frozenset({"host", "connection", "keep-alive", "proxy-connection", "transfer-encoding"})


class _OpenAfterGoAway(H2ConnectionStateMachine):
    """The states of a connection whose accepted streams continue after GOAWAY, as RFC 9113 requires."""

    def process_input(self, input_: ConnectionInputs) -> list[Event]:
        return [] if input_ is ConnectionInputs.RECV_GOAWAY else super().process_input(input_)


class _Protocol(H2Connection):
    MAX_CLOSED_STREAMS = 4096  # the default would hold some MiB for each connection

    def clear_outbound_data_buffer(self) -> None:
        """Do not clear the buffer: h2 would drop acknowledgments that precede a GOAWAY."""

    def __init__(self) -> None:
        super().__init__(_CONFIGURATION)
        self.state_machine = _OpenAfterGoAway()
        self.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_CONCURRENT_STREAMS: 100,  # for forbidden streams of the server
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: OVERHEAD_LIMIT,
            },
        )


class Http2Connection(asyncio.Protocol):
    """An HTTP/2 connection. Error messages name `origin`."""

    __slots__ = (
        *("_check", "_credit", "_failure", "_frames_left", "_h2", "_has_settings", "_is_going_away", "_is_pinged"),
        *("_loop", "_next_turn", "_origin", "_overhead", "_read_at", "_responses", "_transport", "_unread", "_waiter"),
        "requests",
    )

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._h2 = _Protocol()
        self._transport: asyncio.Transport | None = None
        self._responses: dict[int, _Http2Response] = {}
        self._failure: TransportError | None = None
        self._has_settings = False
        self._is_going_away = False
        self._waiter: asyncio.Future[None] | None = None
        self._read_at = self._loop.time()
        self._is_pinged = False
        self._check: asyncio.TimerHandle | None = None
        self._unread = b""
        """Received bytes that are not processed yet: a part of a frame, or more frames than are processed at once."""
        self._frames_left = FRAMES_AT_ONCE
        self._next_turn: asyncio.Handle | None = None
        self._overhead = TokenBucket(OVERHEAD_FRAMES, self._read_at)
        self._credit = 0
        """Frames without content that requests and content have paid for."""
        self.requests = 0

    @property
    def is_usable(self) -> bool:
        return (
            self._failure is None
            and not self._is_going_away
            and self._transport is not None
            and not self._transport.is_closing()
            and self._h2.highest_outbound_stream_id + 2 <= _HIGHEST_STREAM_ID
        )

    @property
    def has_room(self) -> bool:
        return len(self._responses) < min(self._h2.remote_settings.max_concurrent_streams, _STREAM_LIMIT)

    @property
    def is_idle(self) -> bool:
        return not self._responses

    async def ready(self) -> None:
        """Wait for the server's settings, which limit the streams. Raises TransportError."""
        if not self._has_settings and self._failure is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure
        if self._is_going_away:
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
        self._credit = min(self._credit + _FRAMES_PER_REQUEST, _CREDIT_LIMIT)
        response = _Http2Response(self._origin, self)
        if self._failure is not None:
            response.failed(self._failure)
            return response
        response.stream_id = stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, fields, end_stream=not body)
        self._responses[stream_id] = response
        if body:
            response.unsent = memoryview(body)
            self._send_body(response)
        self._flush()
        if self._check is None:
            self._read_at = self._loop.time()
            self._check = self._loop.call_later(PING_AFTER_S, self._check_liveness)
        return response

    def finished(self, response: "_Http2Response") -> None:
        """End the exchange; the stream is reset unless both sides have ended it."""
        if self._responses.pop(response.stream_id, None) is None or self._failure is not None:
            return
        with suppress(StreamClosedError):
            self._h2.reset_stream(response.stream_id, ErrorCodes.CANCEL)
        self._flush()

    def consumed(self, response: "_Http2Response", size: int) -> None:
        """Extend the flow-control window, so that the server can send `size` more bytes of the body."""
        if size and self._failure is None:
            self._h2.acknowledge_received_data(size, response.stream_id)
            self._flush()

    def abort(self) -> None:
        close_at_once(self._transport)

    # --- the protocol of the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - self._h2.inbound_flow_control_window)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._failure is not None:
            return
        self._read_at, self._is_pinged = self._loop.time(), False
        self._unread = self._unread + data if self._unread else data
        self._read_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        while self._has_frame and self._failure is None:
            self._frames_left = FRAMES_AT_ONCE
            self._read_frames()
        self._fail(errors.from_exchange(exc, self._origin))

    # --- internals ---

    def _read_frames(self) -> None:
        """Process as many frames as are allowed in this iteration of the event loop, so that no server blocks it."""
        try:
            size = self._next_frames()
        except ProtocolError as error:
            with suppress(ProtocolError):
                self._h2.close_connection(error.error_code)
            self._refuse(error)
            return
        if size:
            frames, self._unread = self._unread[:size], self._unread[size:]
            try:
                events = self._h2.receive_data(frames)
            except ProtocolError as error:
                self._refuse(error)
                return
            for event in events:
                self._received(event)
            self._flush()
            if self._next_turn is None:
                self._next_turn = self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._next_turn = None
        self._frames_left = FRAMES_AT_ONCE
        if self._failure is None and self._transport is not None:
            self._read_frames()
            (self._transport.pause_reading if self._has_frame else self._transport.resume_reading)()

    def _refuse(self, error: ProtocolError) -> None:
        self._flush()  # GOAWAY with the reason
        self._fail(TransportError("closed", f"{self._origin} sent invalid HTTP/2: {errors.reason(error)}"))

    @property
    def _has_frame(self) -> bool:
        return len(self._unread) >= _FRAME_HEADER + int.from_bytes(self._unread[:3])

    def _next_frames(self) -> int:
        """Return the size of the complete frames to process now. Raises ProtocolError."""
        received, position = self._unread, 0
        while self._frames_left and len(received) - position >= _FRAME_HEADER:
            length = int.from_bytes(received[position : position + 3])
            if length > _LARGEST_FRAME:
                raise FrameTooLargeError("a frame is too long")
            end = position + _FRAME_HEADER + length
            if len(received) < end:
                break
            kind, flags = received[position + 3], received[position + 4]
            padding = received[position + _FRAME_HEADER] + 1 if flags & _PADDED and length else 0
            if kind == _DATA and length - padding >= _SHORT_DATA:
                self._credit = min(self._credit + 1, _CREDIT_LIMIT)
            elif self._credit:
                self._credit -= 1
            elif self._overhead.take(self._read_at):
                raise DenialOfServiceError("too many frames without content")
            self._frames_left -= 1
            position = end
        return position

    def _received(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                self._has_settings = True
                self._wake()
                self._send_bodies()
            case WindowUpdated():
                self._send_bodies()
            case ConnectionTerminated():
                self._go_away(event)
            case (
                ResponseReceived(stream_id=int(stream_id))
                | InformationalResponseReceived(stream_id=int(stream_id))
                | TrailersReceived(stream_id=int(stream_id))
                | DataReceived(stream_id=int(stream_id))
                | StreamEnded(stream_id=int(stream_id))
                | StreamReset(stream_id=int(stream_id))
            ):
                response = self._responses.get(stream_id)
                if response is not None:
                    response.received(event)
                elif isinstance(event, DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
            case _:
                pass

    def _go_away(self, event: ConnectionTerminated) -> None:
        """Begin no further streams, and refuse those that the server does not process."""
        self._is_going_away = True
        self._wake()
        last = event.last_stream_id or 0
        requires_http_1 = event.error_code == ErrorCodes.HTTP_1_1_REQUIRED
        for stream_id, response in list(self._responses.items()):
            if stream_id > last:
                response.refused(Refusal.REQUIRES_HTTP_1 if requires_http_1 else Refusal.TRY_AGAIN)

    def _send_bodies(self) -> None:
        for response in list(self._responses.values()):
            with suppress(StreamClosedError):  # by a reset that was received together with the window
                self._send_body(response)

    def _send_body(self, response: "_Http2Response") -> None:
        stream_id = response.stream_id
        while response.unsent:
            size = min(
                self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size, len(response.unsent)
            )
            if size <= 0:
                return
            piece, response.unsent = response.unsent[:size], response.unsent[size:]
            self._h2.send_data(stream_id, bytes(piece), end_stream=not response.unsent)

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
            self._h2.ping(bytes(8))
            self._flush()
        self._check = self._loop.call_later(wait_s, self._check_liveness)

    def _flush(self) -> None:
        if self._transport is None or not (data := self._h2.data_to_send()):
            return
        self._transport.write(data)

    def _fail(self, error: TransportError) -> None:
        """End the connection and every exchange on it."""
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
    __slots__ = ("_connection", "stream_id", "unsent")

    def __init__(self, origin: str, connection: Http2Connection) -> None:
        super().__init__(origin)
        self._connection = connection
        self.stream_id = 0
        self.unsent: memoryview | bytes = b""
        """The part of the request body that has not been sent."""

    def close(self) -> None:
        self._consumed(self._buffered)
        self._buffered = 0
        self._connection.finished(self)

    def _consumed(self, size: int) -> None:
        self._connection.consumed(self, size)

    # Called by the connection.

    def received(self, event: Event) -> None:
        self.has_begun = True
        match event:
            case InformationalResponseReceived() | TrailersReceived():
                self._received_fields(event.headers or ())
            case ResponseReceived():
                self._received_response(event)
            case DataReceived(data=bytes(data), flow_controlled_length=int(length)):
                self._connection.consumed(self, length - len(data))  # the padding
                if data and not self._is_complete:
                    self._received_body(data)
            case StreamEnded():
                self._is_complete = True
                self.is_reusable = self._failure is None
            case StreamReset():
                self._reset(event)
        self._wake()

    def refused(self, refusal: Refusal) -> None:
        """Fail the exchange: the server did not process the request."""
        self.refusal = refusal
        self.failed(TransportError("closed", f"{self.origin} refused the request before it was processed"))
        self._connection.finished(self)

    def failed(self, error: TransportError) -> None:
        if not self._is_complete:
            self._fail(error)
        self._wake()

    # --- internals ---

    def _received_response(self, event: ResponseReceived) -> None:
        self._received_fields(event.headers)
        status = b""
        for name, value in event.headers:
            if name == b":status":
                status = value
            else:
                self.headers.add(name, value)
        if _STATUS.fullmatch(status):
            self._received_head(int(status))
        else:
            self.failed(TransportError("closed", f"{self.origin} sent an invalid status"))

    def _received_fields(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        if self._received_overhead(sum(len(name) + len(value) for name, value in fields)):
            self._connection.finished(self)

    def _reset(self, event: StreamReset) -> None:
        self.unsent = b""
        match event.error_code:
            case ErrorCodes.REFUSED_STREAM:
                self.refused(Refusal.TRY_AGAIN)
            case ErrorCodes.HTTP_1_1_REQUIRED:
                self.refused(Refusal.REQUIRES_HTTP_1)
            case code:
                name = code.name if isinstance(code, ErrorCodes) else str(code)
                self.failed(TransportError("closed", f"{self.origin} reset the stream: {name}"))
