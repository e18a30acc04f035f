"""HTTP/2 of the HTTP client: bodies, flow control and backpressure."""

import gzip

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    Frame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from kube.tests.integration.http.http2_peer import Accepted, Authority, serving
from kube.tests.integration.http.http2_requests import failed, got, ok, rest
from milo_kube.http.client import Client
from milo_kube.http.errors import TransportError
from milo_kube.http.http2_core import STREAM_WINDOW
from tests.support.eventually import eventually


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_http2_response_body_is_decompressed(authority: Authority, using: Client, encoding: str) -> None:
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
        ("gzip", gzip.compress(b"ok", mtime=0)[:12], "truncated"),
        ("gzip", gzip.compress(b"ok", mtime=0) + b"more", "data after the end"),
    ],
    ids=["unknown", "invalid", "truncated", "continued"],
)
async def test_http2_response_body_that_cannot_be_decompressed_is_an_error(
    authority: Authority, using: Client, encoding: str, body: bytes, problem: str
) -> None:
    async with serving(
        authority, lambda accepted, stream: accepted.answer(stream, body, headers={"content-encoding": encoding})
    ) as peer:
        assert problem in str(await failed(using, peer.url))


async def test_request_body_is_sent_as_flow_control_windows_open(authority: Authority, using: Client) -> None:
    body = bytes(range(256)) * 4_000  # far more than the window of 64 KiB
    async with serving(authority, ok) as peer:
        assert await got(using, peer.url, "POST", body=body) == (200, b"ok")
    assert peer.accepted[0].bodies == {1: body}


async def test_response_that_arrives_before_the_request_body_is_sent_is_read(
    authority: Authority, using: Client
) -> None:
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
async def test_rst_stream_after_a_window_update_fails_its_request_only(
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


async def test_request_beyond_the_flow_control_window_times_out_without_blocking_other_requests(
    authority: Authority, using: Client
) -> None:
    async with serving(authority, ok, acknowledges=False, settings={SettingCodes.INITIAL_WINDOW_SIZE: 10}) as peer:
        with pytest.raises(TransportError) as raised:
            await got(using, peer.url, "POST", body=b"more than ten bytes", silence_s=0.01)
        assert await got(using, peer.url) == (200, b"ok")
        await eventually(lambda: peer.accepted[0].resets == {1: ErrorCodes.CANCEL})
    assert raised.value.cause == "timeout"
    assert len(peer.accepted) == 1


async def test_unread_response_causes_backpressure_on_its_stream_only(authority: Authority, using: Client) -> None:
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
        await eventually(lambda: len(stopped._body) == STREAM_WINDOW)
        (accepted,) = peer.accepted
        assert sent == dict.fromkeys((1, 3, 5, 7), STREAM_WINDOW)
        assert len(await stopped.read(10)) == STREAM_WINDOW
        await eventually(lambda: accepted.h2.local_flow_control_window(1) > 0)
