"""Attacks on the memory of a daemon, in a cgroup with the limit of the shipped manifest."""

import asyncio
import itertools
import socket
import ssl
import string
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from milo_discovery import ClientCredentials, DiscoveryClient
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.project_server import Projects, ProjectServer
from tests.end_to_end.process.streams import channel
from tests.support import memory_limit as memory_limit_module
from tests.support.certificates import Authority
from tests.support.memory_limit import memory_limit, peak_bytes, shipped_limit
from tests.support.ports import free_port

pytestmark = pytest.mark.filterwarnings("always:no cgroup here")  # shown in the summary, and no error

ATTACKERS = tuple(f"127.0.0.{number}" for number in range(2, 18))
"""Addresses with separate rate limits."""
CLUSTERS = 10_000
SPIFFE = x509.UniformResourceIdentifier("spiffe://example.com/ns/milo/sa/operator")
_MIB = 1 << 20


@pytest.fixture
def limited(workspace: Workspace) -> Iterator["Limited"]:
    limit = shipped_limit()
    with memory_limit(limit) as cgroup:
        yield Limited(workspace, limit, cgroup)


class Limited:
    """Daemons with the shipped memory limit. One that exceeds it is killed or, without a cgroup, fails by its peak."""

    def __init__(self, workspace: Workspace, limit: int, cgroup: Path | None) -> None:
        self.workspace = workspace
        self.limit = limit
        self._cgroup = cgroup

    @asynccontextmanager
    async def daemon(self, **settings: Any) -> AsyncIterator[DaemonProcess]:
        async with self.workspace.daemon(cgroup=self._cgroup, **settings) as daemon:
            await daemon.start()
            yield daemon
            assert daemon.is_running, f"killed: {daemon.tail()}"
            assert peak_bytes(daemon.pid) < self.limit
            await daemon.terminate()


def test_memory_tests_warn_if_no_cgroup_can_limit_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("_V1", "_V2"):
        monkeypatch.setattr(memory_limit_module, version, tmp_path / "none")
    with pytest.warns(UserWarning, match="no cgroup here, only peaks"), memory_limit(_MIB) as cgroup:
        assert cgroup is None


def client_hello(server_name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def test_client_hello_flood_takes_bounded_memory_and_locks_out_no_caller(limited: Limited) -> None:
    """Each connection sends one ClientHello and nothing else: a handshake that has begun costs the server memory.

    The daemon has 10,000 clusters, and is attacked from 16 addresses.
    """
    directory, authority = limited.workspace.directory, Authority()
    certificate, key = authority.server().write(directory, "server")
    ours, our_key = authority.issue(SPIFFE).write(directory, "operator")
    (directory / "ca.crt").write_bytes(authority.pem)
    port = free_port()
    tls = {"certificate": str(certificate), "key": str(key), "client_ca": str(directory / "ca.crt")}
    listen = [limited.workspace.address, {"name": "net", "address": f"127.0.0.1:{port}", "tls": tls}]
    server = ProjectServer(Projects(f"p-{number}" for number in range(CLUSTERS)))
    async with server.listening(), AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(limited.daemon(listen=listen, **server.settings(directory / "plain")))
        await daemon.wait_for_output('"synced"')
        before = peak_bytes(daemon.pid)
        with ExitStack() as closing:
            await flood(closing, port, client_hello("localhost"), each=150)
            credentials = ClientCredentials(ca_file=directory / "ca.crt", certificate_file=ours, key_file=our_key)
            # The attackers' connections, and a busy machine, may delay the daemon by some seconds.
            patient = DiscoveryClient(f"127.0.0.1:{port}", credentials=credentials, timeout=timedelta(minutes=2))
            async with patient as client:
                assert len(await client.list()) == CLUSTERS
        grown = peak_bytes(daemon.pid) - before
        assert grown < 48 * _MIB


async def flood(closing: ExitStack, port: int, hello: bytes, each: int) -> None:
    """Open `each` connections from each address, send the ClientHello on each, and leave them open."""
    for _ in range(each):
        for address in ATTACKERS:
            connection = closing.enter_context(socket.socket())
            connection.bind((address, 0))
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
            with suppress(OSError):  # refused
                connection.send(hello)


LONG = 90 * 1024
"""Nearly the longest message that the daemon accepts."""


@pytest.mark.parametrize(
    "request_",
    [
        pb.WatchClustersRequest(
            resume_revision="0123456789abcdef.1.known"
            + "_".join(f"{n:04x}-999999999" for n in range(LONG // 15))
            + "."
            + 22 * "x"
        ),
        pb.WatchClustersRequest(subscriber="x" * LONG),
        pb.WatchClustersRequest.FromString(
            b"\xfa\x3f" + bytes([LONG & 127 | 128, LONG >> 7 & 127 | 128, LONG >> 14]) + bytes(LONG)
        ),
    ],
    ids=["resume_revision", "subscriber", "unknown field"],
)
async def test_streams_do_not_retain_long_requests(limited: Limited, request_: pb.WatchClustersRequest) -> None:
    limited.workspace.sandbox.projects.create("alpha", ready=True)
    async with limited.daemon() as daemon:
        await daemon.wait_for_output('"synced"')
        async with AsyncExitStack() as streams:
            before = peak_bytes(daemon.pid)
            for _ in range(150):
                stream = await streams.enter_async_context(limited.workspace.stream(request_))
                with suppress(grpc.aio.AioRpcError):
                    await stream.batch()
        assert peak_bytes(daemon.pid) - before < 32 * _MIB


async def test_health_watches_do_not_retain_long_service_names(limited: Limited) -> None:
    async with (
        limited.daemon() as daemon,
        grpc.aio.insecure_channel(limited.workspace.address.replace("//", "")) as channel,
    ):
        await daemon.wait_for_output('"synced"')
        before = peak_bytes(daemon.pid)
        calls = []
        for number in range(90):
            calls.append(
                health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(service=f"{number}" + "x" * LONG)
                )
            )
            with suppress(grpc.aio.AioRpcError):
                await calls[-1].read()
        assert peak_bytes(daemon.pid) - before < 16 * _MIB
        for call in calls:
            call.cancel()


async def test_repeated_changes_of_an_object_with_many_labels_retain_little_memory(limited: Limited) -> None:
    words = [
        "".join(letters) for letters in itertools.islice(itertools.product(string.ascii_lowercase, repeat=4), 60_000)
    ]
    labels = dict.fromkeys(words, "")
    projects = limited.workspace.sandbox.projects
    projects.create("alpha", ready=True)
    async with limited.daemon() as daemon, limited.workspace.stream() as stream:
        await stream.until_synced()
        projects.label("alpha", labels | {"aaaa": "first"})
        projects.create("beta", ready=True)
        while not (await stream.batch()).events:
            pass
        once = peak_bytes(daemon.pid)
        for number in range(8):
            projects.label("alpha", labels | {"aaaa": str(number)})
            projects.create(f"gamma-{number}", ready=True)
            while not (await stream.batch()).events:
                pass
        assert peak_bytes(daemon.pid) - once < 16 * _MIB


@pytest.mark.parametrize("views", [1, 570])
async def test_large_object_takes_bounded_memory_with_many_subscribers(limited: Limited, views: int) -> None:
    """As many labels as are accepted. Each stream is sent the object, together with another one."""
    projects = limited.workspace.sandbox.projects
    for name in ("alpha", "beta"):
        projects.create(name, ready=True)
    async with limited.daemon() as daemon, AsyncExitStack() as stack:
        await daemon.wait_for_output('"synced"')
        streams = []
        for _ in range(6):
            connection = await stack.enter_async_context(channel(limited.workspace.address))
            for _ in range(95):
                view = pb.ClusterFilter(label_selector=f"view!=v{len(streams) % views}")
                request = pb.WatchClustersRequest(filter=view)
                streams.append(DiscoveryServiceStub(connection).WatchClusters(request))
        for stream in streams:
            while not (await stream.read()).synced:
                pass
        before = peak_bytes(daemon.pid)
        prefix = ".".join(4 * [60 * "k"])
        projects.label("beta", {"changed": "yes"})
        projects.label("alpha", {f"{prefix}/{number:063}": 63 * "v" for number in range(88)})

        async def updated(stream: Any) -> None:
            changed: set[str] = set()
            while len(changed) < 2:
                changed |= {event.cluster.name for event in (await stream.read()).events}

        await asyncio.gather(*map(updated, streams))
        assert peak_bytes(daemon.pid) - before < 128 * _MIB
        for stream in streams:
            stream.cancel()


@pytest.mark.parametrize("size", [LONG, 70 * 1024], ids=["too long", "as long as allowed"])
async def test_denied_long_requests_retain_little_memory(limited: Limited, size: int) -> None:
    """Denials are delayed, and a request is kept for as long as its call."""
    field = b"\xfa\x3f" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + bytes(size)
    request = pb.ListClustersRequest.FromString(field)
    rights = [{"name": "another", "who": {"uid": 4242}, "clusters": "all"}]
    peers = {"name": "peers", "address": f"unix://{limited.workspace.directory}/peers.sock", "peer_credentials": True}
    async with limited.daemon(listen=[limited.workspace.address, peers], rights=rights) as daemon:
        await daemon.wait_for_output('"synced"')
        before = peak_bytes(daemon.pid)
        async with AsyncExitStack() as channels:
            address = limited.workspace.address.replace("//", "")
            options = (("grpc.use_local_subchannel_pool", 1),)
            calls: list[Any] = []
            for _ in range(10):
                channel = await channels.enter_async_context(grpc.aio.insecure_channel(address, options=options))
                calls += [DiscoveryServiceStub(channel).ListClusters(request) for _ in range(100)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)}
        # gRPC reads requests ahead of a busy event loop, for which half of the shipped limit is allowed.
        assert peak_bytes(daemon.pid) - before < 256 * _MIB


class Streams:
    """An HTTP/2 connection with a hundred calls, on each of which all is sent that flow control permits."""

    def __init__(self, daemon: socket.socket, content: bytes) -> None:
        config = h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
        self._h2, self._daemon = h2.connection.H2Connection(config), daemon
        self._h2.initiate_connection()
        path = "/milo.discovery.v1.DiscoveryService/WatchClusters"
        pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers"}
        self._left: dict[int, bytes] = {}
        for _ in range(100):
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, [*pairs.items(), ("content-type", "application/grpc")])
            self._left[stream] = content

    async def send(self) -> None:
        """Send until each stream is complete, was ended by the daemon, or gets no window any more."""
        fruitless = 0
        while any(self._left.values()) and fruitless < 20:
            fruitless += 1
            for stream in self._left:
                while room := min(len(self._left[stream]), self._window(stream), self._h2.max_outbound_frame_size):
                    self._h2.send_data(stream, self._left[stream][:room])
                    self._left[stream], fruitless = self._left[stream][room:], 0
            await self._until_read()

    def _window(self, stream: int) -> int:
        return max(0, self._h2.local_flow_control_window(stream))

    async def _until_read(self) -> None:
        """Send settings, and receive until their answer: the daemon has read what was sent before."""
        loop, is_read = asyncio.get_running_loop(), False
        self._h2.update_settings({})
        await loop.sock_sendall(self._daemon, self._h2.data_to_send())
        while not is_read:
            received = await loop.sock_recv(self._daemon, 1 << 16)
            assert received, "the daemon closed the connection"
            for event in self._h2.receive_data(received):
                is_read = is_read or isinstance(event, h2.events.SettingsAcknowledged)
                if isinstance(event, h2.events.StreamReset | h2.events.StreamEnded):
                    self._left.pop(event.stream_id, None)


@pytest.mark.parametrize(
    ("connections", "content"),
    [
        (24, b"\0" + LONG.to_bytes(4) + bytes(LONG - 1)),
        (6, bytes(5) + (b"\0" + LONG.to_bytes(4) + bytes(LONG)) * 8),
    ],
    ids=["incomplete requests", "data after the requests"],
)
async def test_what_streams_send_and_nothing_reads_takes_bounded_memory(
    limited: Limited, connections: int, content: bytes
) -> None:
    async with limited.daemon() as daemon, AsyncExitStack() as stack, limited.workspace.client() as client:
        await daemon.wait_for_output('"synced"')
        before = peak_bytes(daemon.pid)
        for _ in range(connections):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, str(limited.workspace.socket))
            await Streams(connection, content).send()
            assert len(await client.list()) == 0
        assert peak_bytes(daemon.pid) - before < 128 * _MIB


def call_with_any_window(method: str, request: bytes) -> bytes:
    """Return what a client sends for a call, whose answer it may not read."""
    calling = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    calling.initiate_connection()
    calling.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
    calling.increment_flow_control_window((1 << 31) - (1 << 16))
    path = f"/milo.discovery.v1.DiscoveryService/{method}"
    pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers"}
    stream = calling.get_next_available_stream_id()
    calling.send_headers(stream, [*pairs.items(), ("content-type", "application/grpc")])
    calling.send_data(stream, b"\0" + len(request).to_bytes(4) + request, end_stream=True)
    return calling.data_to_send()


@pytest.mark.parametrize(
    ("connections", "method", "request_"),
    [
        (90, "ListClusters", pb.ListClustersRequest(page_size=5000)),
        (450, "WatchClusters", pb.WatchClustersRequest()),
    ],
    ids=["pages", "snapshots"],
)
async def test_what_clients_do_not_read_takes_bounded_memory(
    limited: Limited, connections: int, method: str, request_: pb.ListClustersRequest | pb.WatchClustersRequest
) -> None:
    server = ProjectServer(Projects(f"p-{number}" for number in range(CLUSTERS)))
    async with server.listening(), AsyncExitStack() as stack:
        settings = server.settings(limited.workspace.directory / "plain")
        daemon = await stack.enter_async_context(limited.daemon(**settings))
        patient = DiscoveryClient(limited.workspace.address, timeout=timedelta(minutes=1))  # on a busy machine
        client = await stack.enter_async_context(patient)
        await daemon.wait_for_output('"synced"')
        before = peak_bytes(daemon.pid)
        with ExitStack() as closing:
            for _ in range(connections):
                connection = closing.enter_context(socket.socket(socket.AF_UNIX))
                connection.setblocking(False)
                await asyncio.get_running_loop().sock_connect(connection, str(limited.workspace.socket))
                connection.send(call_with_any_window(method, request_.SerializeToString()))
            for _ in range(3):
                assert len(await client.list()) == CLUSTERS
        assert peak_bytes(daemon.pid) - before < 128 * _MIB
