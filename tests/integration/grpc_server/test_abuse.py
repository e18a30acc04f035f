"""Hostile HTTP/2 clients have no effect on other connections."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import grpc
import pytest
from hpack import Encoder, NeverIndexedHeaderTuple
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.server.connections import call_queue, connection_rates
from milo_discoveryd.server.connections.listener import Listener, TcpEndpoint, UnixSocket
from milo_kube.rate_limit import Rate
from tests.integration.grpc_server.conftest import Harness, Subscriber, a_harness, ready
from tests.integration.grpc_server.raw import Raw, headers
from tests.integration.grpc_server.test_tls import SPIFFE, TlsFiles, client_context
from tests.support.eventually import eventually

STREAMS = 100  # the server's limit per connection
Abuse = Callable[[Raw], Awaitable[None]]


class Target:
    """A listener, with a well-behaved client and a hostile one."""

    def __init__(
        self, harness: Harness, channel: Callable[[], grpc.aio.Channel], raw: Callable[[], Awaitable[Raw]]
    ) -> None:
        self.harness = harness
        self.channel = channel
        self.raw = raw


@asynccontextmanager
async def unix(directory: Path, *, peers: bool) -> AsyncIterator[Target]:
    path = directory / "d.sock"
    listener = Listener(name="here", address=UnixSocket(path), peer_credentials=peers)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with a_harness(directory, listeners=[listener]) as harness:
        yield Target(harness, lambda: grpc.aio.insecure_channel(f"unix:{path}", options), lambda: Raw.unix(path))


@asynccontextmanager
async def loopback(directory: Path) -> AsyncIterator[Target]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with a_harness(directory, listeners=[Listener(name="net", address=TcpEndpoint("127.0.0.1", 0))]) as harness:
        [address] = harness.server.addresses
        host, _, port = address.partition(":")
        yield Target(harness, lambda: grpc.aio.insecure_channel(address, options), lambda: Raw.tcp(host, int(port)))


@asynccontextmanager
async def tls(directory: Path) -> AsyncIterator[Target]:
    tls_files = TlsFiles(directory)
    listener = Listener(name="net", address=TcpEndpoint("127.0.0.1", 0), tls=tls_files.tls)
    good, context = tls_files.credentials(tls_files.ca.issue(SPIFFE)), client_context(tls_files)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with a_harness(directory, listeners=[listener]) as harness:
        [address] = harness.server.addresses
        host, _, port = address.partition(":")
        yield Target(
            harness,
            lambda: grpc.aio.secure_channel(address, good, options),
            lambda: Raw.tls(host, int(port), context),
        )


LISTENERS = {
    "unix": lambda directory: unix(directory, peers=False),
    "peers": lambda directory: unix(directory, peers=True),
    "loopback": loopback,
    "tls": tls,
}


@pytest.fixture(params=LISTENERS)
async def target(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Target]:
    async with LISTENERS[request.param](tmp_path) as made:
        yield made


async def rapid_reset(raw: Raw) -> None:
    """Attack with rapid reset (CVE-2023-44487): streams are canceled at once, so that they never reach the limit."""
    await raw.greet()
    for _ in range(40):
        for _ in range(100):
            stream = raw.call("ListClusters", end=False)
            raw.connection.reset_stream(stream)
        await raw.flush()


async def streams_without_end(raw: Raw) -> None:
    """Open ten thousand streams, far more than the limit of concurrent streams, as fast as possible."""
    await raw.greet()
    block = Encoder().encode([NeverIndexedHeaderTuple(*header) for header in headers("WatchClusters")])
    for first in range(1, 20_000, 200):
        frames = []
        for stream in range(first, first + 200, 2):
            frames.append(HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize())
            frames.append(DataFrame(stream, b"\0" * 5, flags=["END_STREAM"]).serialize())
        await raw.send(b"".join(frames))


async def headers_without_end(raw: Raw) -> None:
    """Send many CONTINUATION frames without END_HEADERS (CVE-2024-27316 and similar)."""
    await raw.greet()
    await raw.send(HeadersFrame(1, b"\x00\x01a\x01b" * 1000).serialize())
    for _ in range(300):
        await raw.send(ContinuationFrame(1, b"\x00\x01a\x01b" * 3000).serialize())


async def large_metadata(raw: Raw) -> None:
    await raw.greet()
    for number in range(50):
        raw.call("ListClusters", b"", *((f"x-{number}-{index}", "y" * 1000) for index in range(30)))
        await raw.flush()


async def large_messages(raw: Raw) -> None:
    await raw.greet()
    stream = raw.call("ListClusters", end=False)
    for length in (1 << 20, (1 << 32) - 1):
        raw.connection.send_data(stream, b"\0" + length.to_bytes(4, "big") + b"x" * 10_000)
        await raw.flush()


async def pings(raw: Raw) -> None:
    await raw.greet()
    for number in range(100):
        await raw.send(b"".join(PingFrame(0, number.to_bytes(8, "big")).serialize() for _ in range(200)))


async def settings(raw: Raw) -> None:
    await raw.greet()
    for number in range(100):
        await raw.send(SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: number}).serialize() * 200)


async def resets_of_nothing(raw: Raw) -> None:
    await raw.greet()
    for number in range(1, 2001, 2):
        await raw.send(RstStreamFrame(number, error_code=8).serialize() * 10)


async def no_http2(raw: Raw) -> None:
    await raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + os.urandom(100_000))


async def half_a_preface(raw: Raw) -> None:
    await raw.send(b"PRI * HTTP/2.0\r\n\r\nS")


async def garbage_frames(raw: Raw) -> None:
    await raw.greet()
    for seed in range(50):
        await raw.send(bytes((index * 31 + seed * 7) % 256 for index in range(4000)))


ABUSES: list[Abuse] = [
    rapid_reset, streams_without_end, headers_without_end, large_metadata, large_messages, pings, settings,
    resets_of_nothing, no_http2, half_a_preface, garbage_frames,
]  # fmt: skip


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.__name__)
async def test_hostile_clients_affect_no_other_client_and_leak_no_resources(target: Target, abuse: Abuse) -> None:
    harness = target.harness
    harness.listed(ready("alpha"))
    async with target.channel() as channel:
        call = DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest())
        subscriber = Subscriber(call)
        await subscriber.until_synced()
        before = usage()
        with closing(await target.raw()) as raw:
            raw.socket.settimeout(2)
            # The server may close the connection, or stop reading it.
            with suppress(OSError):
                await abuse(raw)
            assert len(harness.service.streams) <= 1 + STREAMS
            harness.seen(ready("beta"))
            assert await subscriber.events() == ["ENGAGED beta"]
        await eventually(lambda: len(harness.service.streams) == 1)
        await eventually(lambda: usage() <= before)
        harness.seen(ready("gamma"))
        assert await subscriber.events() == ["ENGAGED gamma"]
        call.cancel()


async def test_streams_per_connection_are_limited(target: Target) -> None:
    harness = target.harness
    harness.listed(ready("alpha"))
    with closing(await target.raw()) as raw:
        await raw.greet()
        for _ in range(3 * STREAMS):
            raw.call("WatchClusters")
        await raw.flush()
        await eventually(lambda: len(harness.service.streams) == STREAMS)
        async with target.channel() as channel:
            await DiscoveryServiceStub(channel).ListClusters(pb.ListClustersRequest())
        assert len(harness.service.streams) == STREAMS


async def test_message_and_metadata_sizes_are_limited(target: Target) -> None:
    target.harness.listed(ready("alpha"))
    async with target.channel() as channel:
        listing = DiscoveryServiceStub(channel).ListClusters
        for message_kib, metadata_kib, expected in (
            (90, 0, "INVALID_ARGUMENT"),  # the message is accepted, but its filter is too large
            (100, 0, "RESOURCE_EXHAUSTED"),
            (0, 7, "OK"),
            (0, 17, "RESOURCE_EXHAUSTED"),
        ):
            request = pb.ListClustersRequest(filter=pb.ClusterFilter(names=["x" * 1024] * message_kib))
            call = listing(request, metadata=(("x-long", "y" * 1024 * metadata_kib),))
            with suppress(grpc.aio.AioRpcError):
                await call
            assert (await call.code()).name == expected
            if message_kib == 100:  # the text by which clients know that a retry fails too
                assert (await call.details()).startswith("SERVER: Received message larger than max")


async def test_connection_that_never_ends_its_headers_is_closed(target: Target) -> None:
    with closing(await target.raw()) as raw:
        await raw.greet()
        await raw.send(HeadersFrame(1, b"\x00\x01a\x01b").serialize())
        with suppress(OSError):
            await raw.send(ContinuationFrame(1, b"\x00\x01a\x01b").serialize() * 100)
        with suppress(ConnectionError):
            while await raw.read() is not None:
                pass
    await eventually(lambda: bool(target.harness.audited))
    assert "a header block with more than 16 CONTINUATION frames" in str(target.harness.audited[0]["problem"])


async def test_client_that_cancels_too_many_calls_loses_its_connection(target: Target) -> None:
    with closing(await target.raw()) as raw:
        with suppress(OSError):
            await rapid_reset(raw)
        with suppress(ConnectionError):
            while await raw.read() is not None:
                pass
    await eventually(lambda: "refused or canceled" in str(target.harness.audited))


async def test_calls_of_one_owner_are_limited_to_a_rate(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_rates, "CALL_RATE", Rate(per_second=20, burst=5))
    target.harness.listed(ready("alpha"))
    began = time.monotonic()
    async with target.channel() as channel:
        for _ in range(45):
            await DiscoveryServiceStub(channel).ListClusters(pb.ListClustersRequest())
    assert time.monotonic() - began > 1.9


async def test_calls_of_one_owner_enter_the_queue_of_grpc_as_others_are_taken_from_it(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_queue, "MOST_QUEUED", 1)
    monkeypatch.setattr(call_queue, "QUEUED_S", 1000.0)
    monkeypatch.setattr(call_queue, "IDLE_ROUNDS", 10**6)
    target.harness.listed(ready("alpha"))
    async with target.channel() as channel:
        call = DiscoveryServiceStub(channel).ListClusters
        for _ in range(3):
            await asyncio.gather(*(call(pb.ListClustersRequest()) for _ in range(90)))


async def test_calls_that_their_client_cancels_in_the_queue_of_grpc_hold_up_no_others(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_queue, "MOST_QUEUED", 1)
    monkeypatch.setattr(call_queue, "QUEUED_S", 1000.0)
    target.harness.listed(ready("alpha"))
    async with target.channel() as channel:
        calls = [DiscoveryServiceStub(channel).ListClusters(pb.ListClustersRequest()) for _ in range(90)]
        await calls[0]
        for canceled in calls[1::3]:
            canceled.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert not [answer for answer in answers[0::3] + answers[2::3] if isinstance(answer, BaseException)]
    assert "refused or canceled" not in str(target.harness.audited)


def usage() -> tuple[int, int]:
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())
