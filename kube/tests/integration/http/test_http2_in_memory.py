"""An HTTP/2 connection without sockets: its limits, and streams whose bytes arrive interleaved."""

import asyncio
import itertools
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kube.tests.integration.http.http2_requests import OK_HEAD, rest
from milo_kube.http.errors import TransportError
from milo_kube.http.http2 import Http2Connection
from milo_kube.http.http2_core import FRAMES_AT_ONCE


def connected() -> tuple[Http2Connection, "MemoryTransport"]:
    connection, transport = Http2Connection("https://api.test"), MemoryTransport()
    connection.connection_made(transport)
    connection.data_received(SettingsFrame(0).serialize())
    return connection, transport


HEAD = HeadersFrame(1, OK_HEAD, flags=["END_HEADERS"]).serialize()
FLOODS = {
    "PING": PingFrame(0, bytes(8)),
    "SETTINGS": SettingsFrame(0),
    "WINDOW_UPDATE": WindowUpdateFrame(0, window_increment=1),
    "PRIORITY": PriorityFrame(1, depends_on=0, stream_weight=1),
    "empty DATA": DataFrame(1, b""),
    "one byte of DATA": DataFrame(1, b"x"),
    "padding": DataFrame(1, b"x", flags=["PADDED"], pad_length=200),
}
FRAMES = {name: frame.serialize() for name, frame in FLOODS.items()} | {
    "unknown": bytes.fromhex("000001fe0000000000") + b"x"
}


@pytest.mark.parametrize("one", FRAMES.values(), ids=FRAMES)
async def test_flood_of_frames_without_content_ends_the_connection_and_never_blocks_the_loop(one: bytes) -> None:
    connection, transport = connected()
    response = connection.send("GET", "/", {"Host": "api.test"})
    connection.data_received(HEAD)
    await asyncio.sleep(0)
    processed: list[int] = []
    read = connection._core._h2.receive_data
    connection._core._h2.receive_data = lambda data: processed.append(len(data)) or read(data)  # type: ignore[func-returns-value]
    while not transport.is_closing():
        if not transport.is_paused:
            for _ in range(50):  # several calls, one for each decrypted TLS record
                connection.data_received(one * 10)
        assert sum(processed) <= FRAMES_AT_ONCE * len(one)
        processed.clear()
        await asyncio.sleep(0)
    with pytest.raises(TransportError, match="too many frames without content"):
        await rest(response)


async def test_frames_before_the_loss_of_a_connection_are_processed_in_turns() -> None:
    connection, transport = connected()
    response = connection.send("GET", "/", {"Host": "api.test"})
    connection.data_received(HEAD)
    await asyncio.sleep(0)
    processed: list[int] = []
    read = connection._core._h2.receive_data
    connection._core._h2.receive_data = lambda data: processed.append(len(data)) or read(data)  # type: ignore[func-returns-value]
    one, count = DataFrame(1, bytes(32)).serialize(), 20 * FRAMES_AT_ONCE
    connection.data_received(one * count)
    connection.connection_lost(None)
    assert not connection.is_usable
    turns = 0
    while not connection._failure:
        assert sum(processed) <= 2 * FRAMES_AT_ONCE * len(one)
        processed.clear()
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10
    assert transport.is_closing()
    assert await response.read() == bytes(32 * count)
    with pytest.raises(TransportError, match="closed the connection"):
        await rest(response)


async def test_many_short_http2_responses_are_not_counted_as_a_flood() -> None:
    connection, transport = connected()
    server = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
    server.initiate_connection()
    server.data_to_send()
    written = 0
    for _ in range(2_000):
        response = connection.send("GET", "/", {"Host": "api.test"})
        for event in server.receive_data(transport.written[written:]):
            if isinstance(event, RequestReceived):
                server.send_headers(event.stream_id, [(":status", "200")])
                server.send_data(event.stream_id, b"", end_stream=True)
        written = len(transport.written)
        connection.data_received(server.data_to_send())
        assert await rest(response) == b""
        response.close()
    assert not transport.is_closing()


async def test_windows_that_a_server_extends_as_it_reads_large_bodies_are_not_counted_as_a_flood() -> None:
    connection, transport = connected()
    server = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
    server.initiate_connection()
    server.data_to_send()
    written = 0
    for _ in range(40):
        response = connection.send("PATCH", "/", {"Host": "api.test"}, b"x" * 900_000)
        while written < len(transport.written):
            events, written = server.receive_data(transport.written[written:]), len(transport.written)
            for event in events:
                if isinstance(event, DataReceived):
                    length = event.flow_controlled_length
                    for _ in range(0, length, 4096):  # as Go's server does
                        server.increment_flow_control_window(min(4096, length))
                        server.increment_flow_control_window(min(4096, length), event.stream_id)
                elif isinstance(event, StreamEnded):
                    server.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
            connection.data_received(server.data_to_send())
            await asyncio.sleep(0)
        assert await rest(response) == b""


async def test_frames_received_before_the_end_of_the_connection_are_processed() -> None:
    connection, _ = connected()
    response = connection.send("GET", "/", {"Host": "api.test"})
    pieces = [DataFrame(1, b"x" * 40).serialize() for _ in range(200)]
    pieces.append(DataFrame(1, b"", flags=["END_STREAM"]).serialize())
    connection.data_received(HEAD + b"".join(pieces))
    connection.connection_lost(None)
    assert await rest(response) == b"x" * 8_000


async def test_ping_ack_is_sent_before_goaway_closes_the_connection() -> None:
    connection, transport = connected()
    connection.send("GET", "/", {"Host": "api.test"})
    frames = PingFrame(0, b"goodbye!"), GoAwayFrame(0, last_stream_id=1)
    connection.data_received(b"".join(frame.serialize() for frame in frames))
    assert PingFrame(0, b"goodbye!", flags=["ACK"]).serialize() in transport.written


async def test_concurrent_streams_are_limited_if_the_server_sets_no_limit() -> None:
    connection, _ = connected()
    for _ in range(1000):
        assert connection.has_room
        connection.send("GET", "/", {"Host": "api.test"})
    assert not connection.has_room


class MemoryTransport(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self._is_closing = False
        self.is_paused = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    abort = close


Step = tuple[int, int, bool]
"""The number of the stream, how many bytes the server sends on it, and whether the reader reads afterwards."""


@settings(max_examples=25)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40_000), st.booleans()), max_size=30),
    cuts=st.lists(st.integers(1, 30_000), min_size=1, max_size=20),
)
async def test_interleaved_streams_deliver_their_own_bytes(steps: list[Step], cuts: list[int]) -> None:
    connection, transport = Http2Connection("https://api.test"), MemoryTransport()
    connection.connection_made(transport)
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    responses = []

    def exchange() -> None:
        """Deliver the bytes that each side has sent to the other, those of the server in pieces of the sizes `cuts`."""
        while transport.written or (data := server.data_to_send()):
            if transport.written:
                server.receive_data(bytes(transport.written))
                transport.written.clear()
                continue
            for cut in itertools.cycle(cuts):
                connection.data_received(data[:cut])
                data = data[cut:]
                if not data:
                    break

    exchange()
    for number in range(4):
        responses.append(connection.send("GET", f"/{number}", {"Host": "api.test"}))
        exchange()
        server.send_headers(2 * number + 1, [(":status", "200")])
    exchange()
    sent, read = [b""] * 4, [b""] * 4
    for at, (number, size, is_read) in enumerate(steps):
        stream = 2 * number + 1
        body = bytes([at % 251]) * min(size, server.local_flow_control_window(stream))
        for start in range(0, len(body), server.max_outbound_frame_size):
            server.send_data(stream, body[start : start + server.max_outbound_frame_size])
        sent[number] += body
        exchange()
        if is_read and responses[number]._body:
            read[number] += await responses[number].read(10)
            exchange()
    for number, response in enumerate(responses):
        server.end_stream(2 * number + 1)
        exchange()
        read[number] += await rest(response)
        response.close()
        assert response.is_reusable
    assert read == sent
    assert connection.is_idle
    assert connection.is_usable
