"""The HTTP client over HTTP/2, against servers that follow a script."""

import asyncio
import gzip
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from milo_kube.http import http2
from milo_kube.http.client import DIALS_PER_SERVER, Client
from milo_kube.http.connection import Response
from milo_kube.http.errors import TransportError
from milo_kube.http.http2 import STREAM_WINDOW, Http2Connection
from tests.integration.http.http2_peer import Accepted, Authority, serving
from tests.integration.http.test_client import tunneling
from tests.support.eventually import eventually


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest_asyncio.fixture
async def using(authority: Authority) -> AsyncIterator[Client]:
    async with aclosing(client(authority)) as made:
        yield made


def client(authority: Authority, *, idle_s: float = 15.0) -> Client:
    return Client(authority.trusting(), user_agent="tests", idle_s=idle_s, http2=Http2Connection)


async def got(
    using: Client,
    url: str,
    method: str = "GET",
    *,
    body: bytes | None = None,
    proxy: str | None = None,
    silence_s: float = 10,
) -> tuple[int, bytes]:
    async with using.request(
        method,
        url,
        headers={"Authorization": "Bearer secret"},
        body=body,
        proxy=proxy,
        connect_timeout_s=10,
        silence_s=silence_s,
    ) as response:
        return response.status, await rest(response)


async def rest(response: Response) -> bytes:
    read = b""
    while chunk := await response.read(10):
        read += chunk
    return read


async def failed(using: Client, url: str, method: str = "GET") -> TransportError:
    with pytest.raises(TransportError) as raised:
        await got(using, url, method)
    return raised.value


def ok(accepted: Accepted, stream: int) -> None:
    accepted.answer(stream, b"ok")


def framed(*frames: Frame) -> Callable[[Accepted, int], None]:
    """Send these frames instead of a response, on the stream of the request unless they have another one."""

    def script(accepted: Accepted, stream: int) -> None:
        for frame in frames:
            frame.stream_id = stream if frame.stream_id % 2 else frame.stream_id
        accepted.send(b"".join(frame.serialize() for frame in frames))

    return script


# --- one connection for all ---


async def test_concurrent_requests_share_a_connection(authority: Authority, using: Client) -> None:
    waiting: list[int] = []

    def script(accepted: Accepted, stream: int) -> None:
        if stream == 1:
            ok(accepted, stream)
            return
        waiting.append(stream)
        if len(waiting) == 20:
            for each in reversed(waiting):
                accepted.answer(each, b"answer to " + accepted.requests[accepted.streams.index(each)][":path"].encode())

    async with serving(authority, script) as peer:
        await got(using, peer.url)
        answers = await asyncio.gather(*(got(using, f"{peer.url}/{number}") for number in range(20)))
    assert answers == [(200, f"answer to /{number}".encode()) for number in range(20)]
    assert len(peer.accepted) == 1


async def test_burst_opens_few_connections(authority: Authority, using: Client) -> None:
    async with serving(authority, ok) as peer:
        answers = await asyncio.gather(*(got(using, peer.url) for _ in range(200)))
    assert answers == [(200, b"ok")] * 200
    assert len(peer.accepted) <= 4


async def test_request_has_the_fields_of_http2(authority: Authority, using: Client) -> None:
    async with serving(authority, ok) as peer:
        assert await got(using, f"{peer.url}/a?b=c", "POST", body=b"body") == (200, b"ok")
    assert peer.requests == [
        {
            ":method": "POST",
            ":scheme": "https",
            ":authority": peer.url.removeprefix("https://"),
            ":path": "/a?b=c",
            "user-agent": "tests",
            "authorization": "Bearer secret",
            "content-length": "4",
        }
    ]
    assert peer.accepted[0].bodies == {1: b"body"}


async def test_connection_with_all_its_streams_in_use_is_joined_by_another_one(
    authority: Authority, using: Client
) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        accepted.answer(stream, b"begun", end=False)

    async with serving(authority, script, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 2}) as peer:
        exchanges = [using.request("GET", peer.url, headers={}, connect_timeout_s=10) for _ in range(5)]
        for exchange in exchanges:
            await exchange.__aenter__()
        assert [len(each.streams) for each in peer.accepted] == [2, 2, 1]
        await exchanges[0].__aexit__(None, None, None)
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10):
            assert len(peer.accepted) == 3
        for exchange in exchanges[1:]:
            await exchange.__aexit__(None, None, None)


async def test_server_that_allows_no_streams_is_an_error(authority: Authority, using: Client) -> None:
    async with serving(authority, ok, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 0}) as peer:
        assert (await failed(using, peer.url)).cause == "connect"


async def test_idle_connection_is_closed_after_a_while(authority: Authority) -> None:
    async with aclosing(client(authority, idle_s=0.0)) as using, serving(authority, ok) as peer:
        await got(using, peer.url)
        await eventually(lambda: peer.accepted[0].is_closed)


async def test_closed_client_ends_exchanges(authority: Authority, using: Client) -> None:
    async with serving(authority, lambda accepted, stream: accepted.answer(stream, b"ok", end=False)) as peer:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
            assert await response.read(10) == b"ok"
            await using.aclose()
            with pytest.raises(TransportError):
                await response.read(10)
        await eventually(lambda: peer.accepted[0].is_closed)


async def test_response_that_is_closed_early_resets_its_stream_alone(authority: Authority, using: Client) -> None:
    async with (
        serving(authority, lambda accepted, stream: accepted.answer(stream, b"ok", end=False)) as peer,
        using.request("GET", peer.url, headers={}, connect_timeout_s=10) as other,
    ):
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10):
            pass
        (accepted,) = peer.accepted
        await eventually(lambda: accepted.resets == {3: ErrorCodes.CANCEL})
        accepted.h2.send_data(1, b"!", end_stream=True)
        accepted.flush()
        assert await rest(other) == b"ok!"


async def test_canceled_request_resets_its_stream(authority: Authority, using: Client) -> None:
    async with serving(authority, lambda accepted, stream: None) as peer:
        request = asyncio.create_task(got(using, peer.url))
        await eventually(lambda: peer.requests)
        request.cancel()
        await eventually(lambda: peer.accepted[0].resets == {1: ErrorCodes.CANCEL})


async def test_answer_to_a_canceled_request_is_ignored(authority: Authority, using: Client) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        if stream == 3:
            late = HeadersFrame(1, OK_HEAD, flags=["END_HEADERS"]), DataFrame(1, b"late", flags=["END_STREAM"])
            accepted.send(b"".join(frame.serialize() for frame in late))
        if stream > 1:
            ok(accepted, stream)

    async with serving(authority, script) as peer:
        request = asyncio.create_task(got(using, peer.url))
        await eventually(lambda: peer.requests)
        request.cancel()
        await eventually(lambda: peer.accepted[0].resets)
        assert [await got(using, peer.url) for _ in range(2)] == [(200, b"ok")] * 2
    assert len(peer.accepted) == 1


# --- which protocol ---


@pytest.mark.parametrize("alpn", [("http/1.1",), ()], ids=["selects HTTP/1.1", "knows no ALPN"])
async def test_requests_to_a_server_without_http2_use_http1(
    authority: Authority, using: Client, alpn: tuple[str, ...]
) -> None:
    async with serving(authority, ok, alpn=alpn) as peer:
        answers = await asyncio.gather(*(got(using, peer.url) for _ in range(DIALS_PER_SERVER + 8)))
        assert answers == [(200, b"ok")] * (DIALS_PER_SERVER + 8)
        await using.aclose()
    assert len(peer.accepted) > 4


async def test_client_offers_http1_alone_unless_it_is_made_for_http2(authority: Authority) -> None:
    async with (
        serving(authority, ok) as peer,
        aclosing(Client(authority.trusting(), user_agent="tests")) as using,
    ):
        assert await got(using, peer.url) == (200, b"ok")
        await using.aclose()
    assert peer.requests == [{}]


@pytest.mark.parametrize(
    "frame",
    [
        RstStreamFrame(1, error_code=ErrorCodes.HTTP_1_1_REQUIRED),
        GoAwayFrame(0, error_code=ErrorCodes.HTTP_1_1_REQUIRED),
    ],
    ids=["stream", "connection"],
)
async def test_request_is_repeated_over_http1_if_the_server_requires_it(
    authority: Authority, using: Client, frame: Frame
) -> None:
    async with serving(authority, framed(frame)) as peer:
        assert await got(using, peer.url, "POST", body=b"body") == (200, b"ok")
        assert await got(using, peer.url) == (200, b"ok")
        await using.aclose()
    assert [request.get(":method") for request in peer.requests] == ["POST", None, None]


async def test_tunnel_of_a_proxy_carries_http2(authority: Authority, using: Client) -> None:
    async with serving(authority, ok) as peer:
        port = int(peer.url.rpartition(":")[2])
        async with tunneling(authority.server(("h2", "http/1.1")), port) as tunnel:
            assert await got(using, f"https://api.test:{port}/", proxy=tunnel.url) == (200, b"ok")
            await using.aclose()
    assert [request[":authority"] for request in peer.requests] == [f"api.test:{port}"]


# --- bodies and flow control ---


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_body_is_decoded(authority: Authority, using: Client, encoding: str) -> None:
    body = b"x" * 100_000
    sent = gzip.compress(body) if encoding == "gzip" else body
    pieces = [sent[start : start + 10_000] for start in range(0, len(sent), 10_000)]
    async with serving(
        authority, lambda accepted, stream: accepted.answer(stream, *pieces, headers={"content-encoding": encoding})
    ) as peer:
        assert await got(using, peer.url) == (200, body)


@pytest.mark.parametrize(
    ("encoding", "body", "problem"),
    [
        ("br", b"ok", "encoding"),
        ("gzip", b"ok", "not valid gzip"),
        ("gzip", gzip.compress(b"ok", mtime=0)[:12], "cut off"),
    ],
    ids=["unknown", "invalid", "cut off"],
)
async def test_body_that_cannot_be_decoded_is_an_error(
    authority: Authority, using: Client, encoding: str, body: bytes, problem: str
) -> None:
    async with serving(
        authority, lambda accepted, stream: accepted.answer(stream, body, headers={"content-encoding": encoding})
    ) as peer:
        assert problem in str(await failed(using, peer.url))


async def test_body_of_a_request_is_sent_as_windows_open(authority: Authority, using: Client) -> None:
    body = bytes(range(256)) * 4_000  # far more than the window of 64 KiB
    async with serving(authority, ok) as peer:
        assert await got(using, peer.url, "POST", body=body) == (200, b"ok")
    assert peer.accepted[0].bodies == {1: body}


async def test_response_before_the_end_of_the_request_is_read(authority: Authority, using: Client) -> None:
    def refuse(accepted: Accepted, stream: int) -> None:
        if stream == 1:
            accepted.answer(stream, b"too large")
            accepted.h2.reset_stream(stream, ErrorCodes.NO_ERROR)
            accepted.h2.increment_flow_control_window(1 << 20)
            accepted.flush()

    async with serving(authority, ok, begun=refuse) as peer:
        assert await got(using, peer.url, "POST", body=bytes(1 << 20)) == (200, b"too large")
        assert await got(using, peer.url) == (200, b"ok")
    assert len(peer.accepted) == 1


@pytest.mark.parametrize("widened", ["window", "settings"])
async def test_reset_that_comes_with_a_larger_window_fails_its_request_alone(
    authority: Authority, using: Client, widened: str
) -> None:
    larger: Frame = (
        WindowUpdateFrame(3, window_increment=1 << 20)
        if widened == "window"
        else SettingsFrame(0, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    )
    frames = WindowUpdateFrame(0, window_increment=1 << 20), larger, RstStreamFrame(3, ErrorCodes.INTERNAL_ERROR)

    def refuse(accepted: Accepted, stream: int) -> None:
        if stream == 3:
            accepted.send(b"".join(frame.serialize() for frame in frames))

    def script(accepted: Accepted, stream: int) -> None:
        accepted.answer(stream, b"begun", end=False)

    async with (
        serving(authority, script, begun=refuse, acknowledges=False) as peer,
        using.request("GET", peer.url, headers={}, connect_timeout_s=10) as other,
    ):
        with pytest.raises(TransportError, match="INTERNAL_ERROR"):
            await got(using, peer.url, "POST", body=bytes(1 << 20))
        (accepted,) = peer.accepted
        accepted.h2.send_data(1, b"!", end_stream=True)
        accepted.flush()
        assert await rest(other) == b"begun!"


async def test_window_that_never_opens_delays_its_request_alone(authority: Authority, using: Client) -> None:
    async with serving(authority, ok, acknowledges=False, settings={SettingCodes.INITIAL_WINDOW_SIZE: 10}) as peer:
        with pytest.raises(TransportError) as raised:
            await got(using, peer.url, "POST", body=b"more than ten bytes", silence_s=0.01)
        assert await got(using, peer.url) == (200, b"ok")
        await eventually(lambda: peer.accepted[0].resets == {1: ErrorCodes.CANCEL})
    assert raised.value.cause == "timeout"
    assert len(peer.accepted) == 1


async def test_reader_that_stops_causes_backpressure_on_its_stream_alone(authority: Authority, using: Client) -> None:
    sent: dict[int, int] = {}

    def script(accepted: Accepted, stream: int) -> None:
        accepted.h2.send_headers(stream, [(":status", "200")])
        sent[stream] = fill(accepted, stream)
        accepted.flush()

    def fill(accepted: Accepted, stream: int) -> int:
        total = 0
        while size := min(accepted.h2.local_flow_control_window(stream), accepted.h2.max_outbound_frame_size):
            accepted.h2.send_data(stream, bytes(size))
            total += size
        return total

    async with (
        serving(authority, script) as peer,
        using.request("GET", peer.url, headers={}, connect_timeout_s=10) as stopped,
    ):
        for _ in range(3):
            async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
                assert await response.read(10)
        await eventually(lambda: stopped._buffered == STREAM_WINDOW)
        (accepted,) = peer.accepted
        assert sent == dict.fromkeys((1, 3, 5, 7), STREAM_WINDOW)
        assert len(await stopped.read(10)) == STREAM_WINDOW
        await eventually(lambda: accepted.h2.local_flow_control_window(1) > 0)


# --- refused and broken ---


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("refusal", ["stream", "connection"])
async def test_request_that_was_not_processed_is_repeated(
    authority: Authority, using: Client, method: str, refusal: str
) -> None:
    refuse = framed(
        RstStreamFrame(1, error_code=ErrorCodes.REFUSED_STREAM)
        if refusal == "stream"
        else GoAwayFrame(0, last_stream_id=0)
    )

    def script(accepted: Accepted, stream: int) -> None:
        (refuse if (accepted.number, stream) == (1, 1) else ok)(accepted, stream)

    async with serving(authority, script) as peer:
        assert await got(using, peer.url, method, body=b"body" if method == "POST" else None) == (200, b"ok")
    assert [request[":method"] for request in peer.requests] == [method] * 2
    assert len(peer.accepted) == (1 if refusal == "stream" else 2)


async def test_requests_to_a_server_that_refuses_each_are_repeated_a_few_times(
    authority: Authority, using: Client
) -> None:
    async with serving(authority, framed(RstStreamFrame(1, error_code=ErrorCodes.REFUSED_STREAM))) as peer:
        assert (await failed(using, peer.url)).cause == "closed"
    assert len(peer.requests) == 4


async def test_accepted_stream_continues_after_goaway(authority: Authority, using: Client) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        if accepted.number == 1:
            accepted.answer(stream, b"before, ", end=False)
            accepted.send(GoAwayFrame(0, last_stream_id=stream).serialize())
        else:
            ok(accepted, stream)

    async with serving(authority, script) as peer:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
            assert await got(using, peer.url) == (200, b"ok")
            first, _ = peer.accepted
            first.h2.send_data(1, b"after", end_stream=True)
            first.flush()
            assert await rest(response) == b"before, after"
        await eventually(lambda: first.is_closed)


async def test_reset_of_a_stream_fails_its_request_alone(authority: Authority, using: Client) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        accepted.answer(stream, b"begun", end=False)
        if stream == 3:
            accepted.h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
            accepted.flush()

    async with (
        serving(authority, script) as peer,
        using.request("GET", peer.url, headers={}, connect_timeout_s=10) as other,
    ):
        error = await failed(using, peer.url)
        assert (error.cause, "INTERNAL_ERROR" in str(error)) == ("closed", True)
        (accepted,) = peer.accepted
        accepted.h2.send_data(1, b"!", end_stream=True)
        accepted.flush()
        assert await rest(other) == b"begun!"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_get_alone_is_repeated_when_the_kept_connection_is_lost(
    authority: Authority, using: Client, method: str
) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        if (accepted.number, stream) == (1, 3):
            accepted.close()
        else:
            ok(accepted, stream)

    async with serving(authority, script) as peer:
        await got(using, peer.url)
        if method == "GET":
            assert await got(using, peer.url) == (200, b"ok")
        else:
            assert (await failed(using, peer.url, method)).cause == "closed"
    assert len(peer.requests) == (3 if method == "GET" else 2)


async def test_lost_connection_fails_all_its_exchanges(authority: Authority, using: Client) -> None:
    async with serving(authority, lambda accepted, stream: accepted.answer(stream, b"ok", end=False)) as peer:
        exchanges = [using.request("GET", peer.url, headers={}, connect_timeout_s=10) for _ in range(3)]
        responses = [await exchange.__aenter__() for exchange in exchanges]
        peer.accepted[0].send(b"\0\0\x08\0")  # a frame that is cut off
        peer.accepted[0].close()
        for response, exchange in zip(responses, exchanges, strict=True):
            assert await response.read(10) == b"ok"
            with pytest.raises(TransportError) as raised:
                await response.read(10)
            assert raised.value.cause == "closed"
            await exchange.__aexit__(None, None, None)
    assert len(peer.accepted) == 1


async def test_server_without_settings_is_an_error(authority: Authority, using: Client) -> None:
    async with serving(authority, ok, greeting=b"") as peer:
        with pytest.raises(TransportError) as raised:
            async with using.request("GET", peer.url, headers={}, connect_timeout_s=0.5):
                pass
    assert raised.value.cause == "timeout"


async def test_connection_that_does_not_answer_a_ping_is_dead(
    authority: Authority, using: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "PING_AFTER_S", 0.01)
    monkeypatch.setattr(http2, "PING_WITHIN_S", 0.01)

    def script(accepted: Accepted, stream: int) -> None:
        accepted.is_reading = False

    async with serving(authority, script) as peer:
        error = await failed(using, peer.url)
    assert (error.cause, "PING" in str(error)) == ("timeout", True)


async def test_quiet_connection_that_answers_pings_stays(
    authority: Authority, using: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "PING_AFTER_S", 0.01)
    async with serving(authority, lambda accepted, stream: None) as peer:
        request = asyncio.create_task(got(using, peer.url, silence_s=60))
        await eventually(lambda: peer.accepted and peer.accepted[0].pings >= 1)
        ok(peer.accepted[0], 1)
        assert await request == (200, b"ok")


# --- against the rules ---

OK_HEAD = b"\x88"  # HPACK of ":status: 200"
REQUEST_HEAD = b"\x82\x87\x84\x41\x01a"  # of a GET request


@pytest.mark.parametrize(
    "frames",
    [
        [DataFrame(1, b"no head")],
        [HeadersFrame(1, b"\xff" * 9, flags=["END_HEADERS"])],
        [HeadersFrame(1, OK_HEAD), DataFrame(1, b"in a block of headers")],
        [HeadersFrame(1, OK_HEAD), *(ContinuationFrame(1) for _ in range(1000))],
        [HeadersFrame(1, OK_HEAD, flags=["END_HEADERS"]), DataFrame(1, bytes(16_385))],
        [PushPromiseFrame(1, 2, OK_HEAD, flags=["END_HEADERS"])],
        [HeadersFrame(1, b"\x82", flags=["END_HEADERS"])],
        [HeadersFrame(1, b"\x88\x88", flags=["END_HEADERS"])],
        [HeadersFrame(2 * number, REQUEST_HEAD, flags=["END_HEADERS"]) for number in range(1, 200)],
        [WindowUpdateFrame(1, window_increment=(1 << 31) - 1)] * 2,
    ],
    ids=[
        *("body before the head", "invalid compression", "interrupted block of headers"),
        *("endless block of headers", "frame that is too long", "push", "request as a response"),
        *("two statuses", "streams of the server", "window that is too large"),
    ],
)
async def test_invalid_frames_end_the_connection(authority: Authority, using: Client, frames: list[Frame]) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        (framed(*frames) if accepted.number == 1 else ok)(accepted, stream)

    async with serving(authority, script) as peer:
        error = await failed(using, peer.url)
        assert error.cause == "closed"
        await eventually(lambda: peer.accepted[0].is_closed)
        assert await got(using, peer.url) == (200, b"ok")


async def test_body_after_the_end_is_ignored(authority: Authority, using: Client) -> None:
    head = HeadersFrame(1, OK_HEAD, flags=["END_HEADERS", "END_STREAM"])
    async with serving(authority, framed(head, DataFrame(1, b"more"))) as peer:
        assert [await got(using, peer.url) for _ in range(2)] == [(200, b"")] * 2


async def test_bytes_that_are_no_frames_end_the_connection(authority: Authority, using: Client) -> None:
    async with serving(authority, lambda accepted, stream: accepted.send(bytes(9))) as peer:
        assert (await failed(using, peer.url)).cause == "closed"


async def test_status_that_is_no_number_is_an_error(authority: Authority, using: Client) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        accepted.h2.send_headers(stream, [(":status", "2OO")], end_stream=True)

    async with serving(authority, script) as peer:
        assert "invalid status" in str(await failed(using, peer.url))


async def test_server_that_ends_each_connection_at_once_is_an_error(authority: Authority, using: Client) -> None:
    goaway = SettingsFrame(0).serialize() + GoAwayFrame(0).serialize()
    async with serving(authority, ok, greeting=goaway) as peer:
        assert (await failed(using, peer.url)).cause == "connect"
        await using.aclose()


@pytest.mark.parametrize("where", ["in one block", "in interim responses", "in trailers"])
async def test_headers_are_limited(authority: Authority, using: Client, where: str) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        if where == "in interim responses":
            for _ in range(20):
                accepted.h2.send_headers(stream, [(":status", "103"), ("x", "x" * 8_000)])
            accepted.flush()
            return
        if where == "in trailers":
            accepted.answer(stream, b"ok", end=False, headers={"x": "x" * 8_000})
            accepted.h2.send_headers(stream, [(f"x-{n}", "x" * 8_000) for n in range(10)], end_stream=True)
            accepted.flush()
            return
        accepted.answer(stream, b"ok", headers={f"x-{number}": "x" * 8_000 for number in range(10)})

    async with serving(authority, script) as peer:
        error = await failed(using, peer.url)
    assert error.cause == "closed"


async def test_server_that_sends_pings_without_reading_is_cut_off() -> None:
    connection, transport = connected()
    response = connection.send("GET", "/", {"Host": "api.test"})
    pings = PingFrame(0, bytes(8)).serialize() * 1_000
    for _ in range(2_000):
        transport.size += 16 << 10
        connection.data_received(pings[:170])
        if transport.is_closing():
            break
    assert transport.size <= 17 << 20
    with pytest.raises(TransportError, match="does not read"):
        await response.head(10)


def connected() -> tuple[Http2Connection, "MemoryTransport"]:
    connection, transport = Http2Connection("https://api.test"), MemoryTransport()
    connection.connection_made(transport)
    connection.data_received(SettingsFrame(0).serialize())
    return connection, transport


async def test_acknowledgement_before_goaway_is_sent() -> None:
    connection, transport = connected()
    connection.send("GET", "/", {"Host": "api.test"})
    frames = PingFrame(0, b"goodbye!"), GoAwayFrame(0, last_stream_id=1)
    connection.data_received(b"".join(frame.serialize() for frame in frames))
    assert PingFrame(0, b"goodbye!", flags=["ACK"]).serialize() in transport.written


async def test_streams_are_limited_where_the_server_sets_no_limit() -> None:
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
        self.size = 0
        self._is_closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.size

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
        """Pass on what each side has sent, in pieces of other sizes than it was sent in."""
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
        if is_read and responses[number]._chunks:
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
