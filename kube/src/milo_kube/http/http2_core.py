"""The sans-I/O core of an HTTP/2 client connection: bytes and requests in, bytes and messages out.

The library h2 implements frames, header compression and stream states.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

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

from milo_kube.http.connection import OVERHEAD_LIMIT, Refusal
from milo_kube.rate_limit import Rate, TokenBucket

STREAM_WINDOW = 256 << 10
"""Backpressure: maximum unread bytes of a response body. With more, the server has to wait."""
_STREAM_LIMIT = 1000
"""Maximum concurrent streams per connection, if the server allows more or sets no limit."""
_CONNECTION_WINDOW = 1 << 30
"""Larger than the windows of all streams together, so that one slow reader does not block other streams."""
FRAMES_AT_ONCE = 64
"""Maximum number of frames that are processed in one iteration of the event loop."""
OVERHEAD_FRAMES = Rate(per_second=20.0, burst=1000.0)
"""Rate limit for frames without content, beyond the credit from requests and content. A higher rate is treated as an
attack."""
_FRAMES_PER_REQUEST = 20
_BYTES_PER_FRAME = 512
"""How many bytes of a request's body add one frame to the credit: servers extend the window as they read."""
_CREDIT_LIMIT = 10_000
_SHORT_DATA = 32
"""A DATA frame adds to the credit for frames without content only if its own content is at least this long."""
_FRAME_HEADER = 9
_LARGEST_FRAME = 16_384
_DATA = 0
_PADDED = 0x8
_HIGHEST_STREAM_ID = (1 << 31) - 1
_CONFIGURATION = H2Configuration(client_side=True, header_encoding=None)


class Fields(msgspec.Struct, frozen=True):
    """Header fields of the response, of an interim response, or of the trailers."""

    stream_id: int
    fields: Sequence[tuple[bytes, bytes]]
    is_head: bool


class Body(msgspec.Struct, frozen=True):
    """A piece of the body. Its padding counts towards the flow-control window as well."""

    stream_id: int
    data: bytes
    padding: int


class Ended(msgspec.Struct, frozen=True):
    """The server has sent the whole response."""

    stream_id: int


class Reset(msgspec.Struct, frozen=True):
    """The server has reset the stream; with a refusal, it did not process the request."""

    stream_id: int
    code: str
    refusal: Refusal | None


class GoingAway(msgspec.Struct, frozen=True):
    """The server accepts no further streams, and refuses those after `last_stream_id`."""

    last_stream_id: int
    refusal: Refusal


StreamMessage = Fields | Body | Ended | Reset
InvalidHttp2 = ProtocolError


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
                SettingCodes.MAX_CONCURRENT_STREAMS: 100,  # limits pushed streams, which ENABLE_PUSH=0 forbids
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: OVERHEAD_LIMIT,
            },
        )


class FrameBudget:
    """A buffer of received bytes. It returns a limited number of frames at a time, so that no server blocks the
    loop."""

    __slots__ = ("_credit", "_frames_left", "_overhead", "_unread")

    def __init__(self, now: float) -> None:
        self._unread = b""
        """Received bytes that have not been processed yet: an incomplete frame, or more frames than are processed at
        once."""
        self._frames_left = FRAMES_AT_ONCE
        self._overhead = TokenBucket(OVERHEAD_FRAMES, now)
        self._credit = 0
        """Number of frames without content that are accepted before the rate limit applies."""

    def pay_for_request(self, body_bytes: int) -> None:
        self._credit = min(self._credit + _FRAMES_PER_REQUEST + body_bytes // _BYTES_PER_FRAME, _CREDIT_LIMIT)

    def feed(self, data: bytes) -> None:
        self._unread = self._unread + data if self._unread else data

    def begin_turn(self) -> None:
        """Allow further frames: the event loop has begun another iteration."""
        self._frames_left = FRAMES_AT_ONCE

    @property
    def has_frame(self) -> bool:
        return len(self._unread) >= _FRAME_HEADER + int.from_bytes(self._unread[:3])

    def take_frames(self, now: float) -> bytes:
        """Return the complete frames to process now. Raises ProtocolError."""
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
            elif self._overhead.take(now):
                raise DenialOfServiceError("too many frames without content")
            self._frames_left -= 1
            position = end
        if position:
            self._unread = received[position:]
        return received[:position]


class Http2Core:
    """The state of a connection. Its owner writes `data_to_send` after each call."""

    __slots__ = ("_h2", "_unsent", "frames", "has_settings", "is_going_away")

    def __init__(self, now: float) -> None:
        self._h2 = _Protocol()
        self._unsent: dict[int, memoryview] = {}
        """The parts of request bodies that the server does not accept yet, by stream."""
        self.frames = FrameBudget(now)
        self.has_settings = False
        """Whether the server's settings, which limit the streams, have arrived."""
        self.is_going_away = False
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - self._h2.inbound_flow_control_window)

    @property
    def stream_limit(self) -> int:
        return min(self._h2.remote_settings.max_concurrent_streams, _STREAM_LIMIT)

    @property
    def accepts_requests(self) -> bool:
        return not self.is_going_away and self._h2.highest_outbound_stream_id + 2 <= _HIGHEST_STREAM_ID

    def begin(self, fields: Iterable[tuple[str, str]], body: bytes) -> int:
        """Send a request; return the stream of its response."""
        self.frames.pay_for_request(len(body))
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, fields, end_stream=not body)
        if body:
            self._unsent[stream_id] = memoryview(body)
            self._send_body(stream_id)
        return stream_id

    def end(self, stream_id: int) -> None:
        """Reset the stream unless both sides have ended it."""
        self._unsent.pop(stream_id, None)
        with suppress(StreamClosedError):
            self._h2.reset_stream(stream_id, ErrorCodes.CANCEL)

    def consume(self, stream_id: int, size: int) -> None:
        """Extend the flow-control window, so that the server can send `size` more bytes of the body."""
        self._h2.acknowledge_received_data(size, stream_id)

    def ping(self) -> None:
        self._h2.ping(bytes(8))

    def data_to_send(self) -> bytes:
        return self._h2.data_to_send()

    def take_messages(self, now: float) -> Sequence[StreamMessage | GoingAway] | None:
        """Process the complete frames that this iteration of the event loop may process; return None if there are none.

        Raises InvalidHttp2; `data_to_send` then has a GOAWAY with the reason.
        """
        try:
            frames = self.frames.take_frames(now)
        except ProtocolError as error:
            with suppress(ProtocolError):
                self._h2.close_connection(error.error_code)
            raise
        if not frames:
            return None
        return [message for event in self._h2.receive_data(frames) if (message := self._message(event)) is not None]

    def _message(self, event: Event) -> StreamMessage | GoingAway | None:
        match event:
            case DataReceived(stream_id=int(stream_id), data=bytes(data), flow_controlled_length=int(length)):
                return Body(stream_id, data, length - len(data))
            case (
                ResponseReceived(stream_id=int(stream_id))
                | InformationalResponseReceived(stream_id=int(stream_id))
                | TrailersReceived(stream_id=int(stream_id))
            ):
                return Fields(stream_id, event.headers or (), is_head=isinstance(event, ResponseReceived))
            case StreamEnded(stream_id=int(stream_id)):
                return Ended(stream_id)
            case StreamReset(stream_id=int(stream_id), error_code=code):
                self._unsent.pop(stream_id, None)
                return Reset(stream_id, code.name if isinstance(code, ErrorCodes) else str(code), _REFUSALS.get(code))
            case ConnectionTerminated():
                self.is_going_away = True
                requires_http_1 = event.error_code == ErrorCodes.HTTP_1_1_REQUIRED
                refusal = Refusal.REQUIRES_HTTP_1 if requires_http_1 else Refusal.TRY_AGAIN
                return GoingAway(event.last_stream_id or 0, refusal)
            case RemoteSettingsChanged():
                self.has_settings = True
                self._send_bodies()
            case WindowUpdated():
                self._send_bodies()
            case _:
                pass
        return None

    def _send_bodies(self) -> None:
        for stream_id in list(self._unsent):
            with suppress(StreamClosedError):  # the stream was reset in the same read
                self._send_body(stream_id)

    def _send_body(self, stream_id: int) -> None:
        unsent = self._unsent[stream_id]
        while unsent:
            size = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size, len(unsent))
            if size <= 0:
                return
            piece, self._unsent[stream_id] = unsent[:size], unsent[size:]
            unsent = self._unsent[stream_id]
            self._h2.send_data(stream_id, bytes(piece), end_stream=not unsent)
        del self._unsent[stream_id]


_REFUSALS: dict[object, Refusal] = {
    ErrorCodes.REFUSED_STREAM: Refusal.TRY_AGAIN,
    ErrorCodes.HTTP_1_1_REQUIRED: Refusal.REQUIRES_HTTP_1,
}
