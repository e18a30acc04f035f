"""HTTP/2 of the HTTP client: refused requests, lost connections, and servers that violate the protocol."""

import asyncio

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from kube.tests.integration.http.http2_peer import Accepted, Authority, serving
from kube.tests.integration.http.http2_requests import OK_HEAD, failed, framed, got, ok, rest
from milo_kube.http import http2
from milo_kube.http.client import Client
from milo_kube.http.errors import TransportError
from tests.support.eventually import eventually


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("refusal", ["stream", "connection"])
async def test_unprocessed_request_is_retried(authority: Authority, using: Client, method: str, refusal: str) -> None:
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


async def test_refused_streams_are_retried_a_limited_number_of_times(authority: Authority, using: Client) -> None:
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


async def test_rst_stream_fails_its_request_only(authority: Authority, using: Client) -> None:
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
async def test_only_get_is_retried_when_the_reused_connection_is_lost(
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


async def test_lost_connection_fails_all_its_requests(authority: Authority, using: Client) -> None:
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


async def test_missing_http2_settings_frame_times_out(authority: Authority, using: Client) -> None:
    async with serving(authority, ok, greeting=b"") as peer:
        with pytest.raises(TransportError) as raised:
            async with using.request("GET", peer.url, headers={}, connect_timeout_s=0.5):
                pass
    assert raised.value.cause == "timeout"


async def test_unanswered_http2_ping_times_out_the_request(
    authority: Authority, using: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "PING_AFTER_S", 0.01)
    monkeypatch.setattr(http2, "PING_WITHIN_S", 0.01)

    def script(accepted: Accepted, stream: int) -> None:
        accepted.is_reading = False

    async with serving(authority, script) as peer:
        error = await failed(using, peer.url)
    assert (error.cause, "PING" in str(error)) == ("timeout", True)


async def test_quiet_connection_stays_open_while_pings_are_answered(
    authority: Authority, using: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "PING_AFTER_S", 0.01)
    async with serving(authority, lambda accepted, stream: None) as peer:
        request = asyncio.create_task(got(using, peer.url, silence_s=60))
        await eventually(lambda: peer.accepted and peer.accepted[0].pings >= 1)
        ok(peer.accepted[0], 1)
        assert await request == (200, b"ok")


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
        [WindowUpdateFrame(0, window_increment=(1 << 31) - 1)] * 2,
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


async def test_window_of_a_stream_that_is_too_large_fails_its_request(authority: Authority, using: Client) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        (framed(*[WindowUpdateFrame(1, window_increment=(1 << 31) - 1)] * 2) if stream == 1 else ok)(accepted, stream)

    async with serving(authority, script) as peer:
        assert (await failed(using, peer.url)).cause == "closed"
        assert await got(using, peer.url) == (200, b"ok")


async def test_data_frame_after_end_stream_is_ignored(authority: Authority, using: Client) -> None:
    head = HeadersFrame(1, OK_HEAD, flags=["END_HEADERS", "END_STREAM"])
    async with serving(authority, framed(head, DataFrame(1, b"more"))) as peer:
        assert [await got(using, peer.url) for _ in range(2)] == [(200, b"")] * 2


async def test_invalid_http2_framing_closes_the_connection(authority: Authority, using: Client) -> None:
    async with serving(authority, lambda accepted, stream: accepted.send(bytes(9))) as peer:
        assert (await failed(using, peer.url)).cause == "closed"


async def test_non_numeric_http2_status_is_an_error(authority: Authority, using: Client) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        accepted.h2.send_headers(stream, [(":status", "2OO")], end_stream=True)

    async with serving(authority, script) as peer:
        assert "invalid status" in str(await failed(using, peer.url))


async def test_goaway_on_every_new_connection_is_a_connect_error(authority: Authority, using: Client) -> None:
    goaway = SettingsFrame(0).serialize() + GoAwayFrame(0).serialize()
    async with serving(authority, ok, greeting=goaway) as peer:
        assert (await failed(using, peer.url)).cause == "connect"
        await using.aclose()


@pytest.mark.parametrize("where", ["in one block", "in interim responses", "in trailers"])
async def test_http2_header_size_is_limited(authority: Authority, using: Client, where: str) -> None:
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
