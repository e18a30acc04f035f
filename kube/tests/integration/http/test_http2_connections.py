"""HTTP/2 of the HTTP client: connections that requests share, and the choice of the protocol."""

import asyncio
from contextlib import aclosing

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
)

from kube.tests.integration.http.http2_peer import Accepted, Authority, serving
from kube.tests.integration.http.http2_requests import OK_HEAD, client, failed, framed, got, ok, rest
from kube.tests.integration.http.test_client import tunneling
from milo_kube.http.client import DIALS_PER_SERVER, Client
from milo_kube.http.errors import TransportError
from tests.support.eventually import eventually


async def test_concurrent_requests_share_a_connection(authority: Authority, using: Client) -> None:
    waiting: list[int] = []

    def script(accepted: Accepted, stream: int) -> None:
        if stream == 1:
            ok(accepted, stream)
            return
        waiting.append(stream)
        if len(waiting) == 20:
            for waiting_stream in reversed(waiting):
                accepted.answer(
                    waiting_stream,
                    b"answer to " + accepted.requests[accepted.streams.index(waiting_stream)][":path"].encode(),
                )

    async with serving(authority, script) as peer:
        await got(using, peer.url)
        answers = await asyncio.gather(*(got(using, f"{peer.url}/{number}") for number in range(20)))
    assert answers == [(200, f"answer to /{number}".encode()) for number in range(20)]
    assert len(peer.accepted) == 1


async def test_burst_of_requests_opens_few_connections(authority: Authority, using: Client) -> None:
    async with serving(authority, ok) as peer:
        answers = await asyncio.gather(*(got(using, peer.url) for _ in range(200)))
    assert answers == [(200, b"ok")] * 200
    assert len(peer.accepted) <= 4


async def test_request_has_http2_pseudo_headers_and_lowercase_names(authority: Authority, using: Client) -> None:
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


async def test_another_connection_is_opened_when_all_streams_are_in_use(authority: Authority, using: Client) -> None:
    def script(accepted: Accepted, stream: int) -> None:
        accepted.answer(stream, b"begun", end=False)

    async with serving(authority, script, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 2}) as peer:
        exchanges = [using.request("GET", peer.url, headers={}, connect_timeout_s=10) for _ in range(5)]
        for exchange in exchanges:
            await exchange.__aenter__()
        assert [len(connection.streams) for connection in peer.accepted] == [2, 2, 1]
        await exchanges[0].__aexit__(None, None, None)
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10):
            assert len(peer.accepted) == 3
        for exchange in exchanges[1:]:
            await exchange.__aexit__(None, None, None)


async def test_server_that_allows_no_streams_is_an_error(authority: Authority, using: Client) -> None:
    async with serving(authority, ok, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 0}) as peer:
        assert (await failed(using, peer.url)).cause == "connect"


async def test_idle_connection_is_closed_after_a_timeout(authority: Authority) -> None:
    async with aclosing(client(authority, idle_s=0.0)) as using, serving(authority, ok) as peer:
        await got(using, peer.url)
        await eventually(lambda: peer.accepted[0].is_closed)


async def test_closed_client_fails_requests_in_flight(authority: Authority, using: Client) -> None:
    async with serving(authority, lambda accepted, stream: accepted.answer(stream, b"ok", end=False)) as peer:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
            assert await response.read(10) == b"ok"
            await using.aclose()
            with pytest.raises(TransportError):
                await response.read(10)
        await eventually(lambda: peer.accepted[0].is_closed)


async def test_response_that_is_closed_early_resets_its_stream_only(authority: Authority, using: Client) -> None:
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


async def test_response_to_a_canceled_request_is_ignored(authority: Authority, using: Client) -> None:
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


@pytest.mark.parametrize("alpn", [("http/1.1",), ()], ids=["selects HTTP/1.1", "without ALPN"])
async def test_requests_to_a_server_without_http2_use_http1(
    authority: Authority, using: Client, alpn: tuple[str, ...]
) -> None:
    async with serving(authority, ok, alpn=alpn) as peer:
        answers = await asyncio.gather(*(got(using, peer.url) for _ in range(DIALS_PER_SERVER + 8)))
        assert answers == [(200, b"ok")] * (DIALS_PER_SERVER + 8)
        await using.aclose()
    assert len(peer.accepted) > 4


async def test_client_remembers_the_protocols_of_a_limited_number_of_servers(
    authority: Authority, using: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milo_kube.http.client._MOST_REMEMBERED", 2)
    for _ in range(5):
        async with serving(authority, ok, alpn=("http/1.1",)) as peer:
            assert await got(using, peer.url) == (200, b"ok")
            await using.aclose()
            using._is_closed = False
    assert len(using._selects_http1) <= 2


async def test_alpn_offers_only_http1_unless_http2_is_enabled(authority: Authority) -> None:
    async with (
        serving(authority, ok) as peer,
        aclosing(Client(authority.trusting, user_agent="tests")) as using,
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
async def test_request_is_retried_over_http1_if_the_server_requires_it(
    authority: Authority, using: Client, frame: Frame
) -> None:
    async with serving(authority, framed(frame)) as peer:
        assert await got(using, peer.url, "POST", body=b"body") == (200, b"ok")
        assert await got(using, peer.url) == (200, b"ok")
        await using.aclose()
    assert [request.get(":method") for request in peer.requests] == ["POST", None, None]


async def test_proxy_tunnel_carries_http2(authority: Authority, using: Client) -> None:
    async with serving(authority, ok) as peer:
        port = int(peer.url.rpartition(":")[2])
        async with tunneling(authority.server(("h2", "http/1.1")), port) as tunnel:
            assert await got(using, f"https://api.test:{port}/", proxy=tunnel.url) == (200, b"ok")
            await using.aclose()
    assert [request[":authority"] for request in peer.requests] == [f"api.test:{port}"]
