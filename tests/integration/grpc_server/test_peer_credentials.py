"""Unix sockets with peer credentials: identification, connection limits and hostile clients."""

import asyncio
import itertools
import json
import os
import resource
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights import quota
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.rights import Grant, Rights, RightsRule
from milo_discoveryd.rights.scope import ALL_CLUSTERS
from milo_discoveryd.server.calls import in_flight
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.server.connections import connection_rates
from milo_discoveryd.server.connections.acceptor import Acceptor
from milo_discoveryd.server.connections.connection_rates import ConnectRateLimiter
from milo_discoveryd.server.connections.listener import Listener, UnixSocket
from milo_discoveryd.server.connections.proxy import ProxySide
from milo_discoveryd.server.connections.unread import UnreadLimit
from milo_kube.rate_limit import Rate
from tests.integration.grpc_server.conftest import NO_RULES, Harness, a_harness, ready
from tests.integration.grpc_server.raw import Raw
from tests.support.eventually import eventually
from tests.support.logs import capture_logs

NOBODY = RightsRule(CallerSelector(uids=frozenset({4242})), Grant(rule="nobody", scope=ALL_CLUSTERS))
AS_ANOTHER = """
import json, os, sys
import grpc
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
os.setgroups([int(each) for each in sys.argv[3:]])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
with grpc.insecure_channel(sys.argv[1]) as channel:
    try:
        DiscoveryServiceStub(channel).ListClusters(pb.ListClustersRequest(), timeout=20)
        print(json.dumps([os.getpid(), "OK"]))
    except grpc.RpcError as error:
        print(json.dumps([os.getpid(), error.details()]))
"""


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> list[Caller]:
    """Return the callers of ListClusters, in the form that the service receives."""
    seen: list[Caller] = []
    answer = Service.list_clusters

    async def noted(self: Service, request: pb.ListClustersRequest, caller: Caller) -> pb.ListClustersResponse:
        seen.append(caller)
        return await answer(self, request, caller)

    monkeypatch.setattr(Service, "list_clusters", noted)
    return seen


@pytest.fixture
def proxy_sides(monkeypatch: pytest.MonkeyPatch) -> list[ProxySide]:
    """Return both sides of each proxied connection: the client's, then the inner one."""
    made: list[ProxySide] = []
    begin = ProxySide.__init__

    def noted(self: ProxySide, unread: UnreadLimit) -> None:
        begin(self, unread)
        made.append(self)

    monkeypatch.setattr(ProxySide, "__init__", noted)
    return made


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can enter, unlike pytest's temporary ones."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o711)
        yield Path(made)


@asynccontextmanager
async def guarded(
    directory: Path,
    *,
    connections: int = 100,
    mode: int = 0o666,
    rights: Rights = NO_RULES,
    peer_credentials: bool = True,
) -> AsyncIterator[Harness]:
    address = UnixSocket(directory / "d.sock", mode)
    listener = Listener(name="guarded", address=address, peer_credentials=peer_credentials, connections=connections)
    async with a_harness(directory, listeners=[listener], rights=rights) as harness:
        harness.listed(ready("alpha"))
        watching = asyncio.create_task(harness.server.watch())
        yield harness
        watching.cancel()


def acceptor(harness: Harness) -> Acceptor:
    [found] = harness.server._acceptors
    return found


async def as_another(address: str, uid: int, *groups: int) -> tuple[int, str]:
    """Call as another user with these supplementary groups; return its pid and the result."""
    given = [str(number) for number in (uid, *groups)]
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", AS_ANOTHER, address, *given, stdout=PIPE)
    output, _ = await client.communicate()
    pid, event_texts = json.loads(output)
    return pid, event_texts


async def test_peer_credentials_identify_connecting_process(callers: list[Caller], tmp_path: Path) -> None:
    async with guarded(tmp_path) as harness, harness.client() as stub:
        await stub.ListClusters(pb.ListClustersRequest())
    [caller] = callers
    assert (caller.listener, caller.uid, caller.gid, caller.pid) == ("guarded", os.getuid(), os.getgid(), os.getpid())
    assert set(caller.gids) == set(os.getgroups()) - {os.getgid()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_peer_credentials_distinguish_users(callers: list[Caller], directory: Path) -> None:
    async with guarded(directory) as harness:
        clients = await asyncio.gather(*(as_another(harness.address, uid) for uid in (1001, 1002)))
    assert [event_texts for _, event_texts in clients] == ["OK", "OK"]
    seen = sorted((caller.uid, caller.gid, caller.pid) for caller in callers)
    assert seen == [(1001, 1001, clients[0][0]), (1002, 1002, clients[1][0])]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_group_rule_matches_supplementary_groups(directory: Path) -> None:
    rule = RightsRule(CallerSelector(gids=frozenset({4242})), Grant(rule="members", scope=ALL_CLUSTERS))
    async with guarded(directory, rights=Rights((rule,))) as harness:
        (_, member), (_, stranger), (_, in_too_many) = await asyncio.gather(
            as_another(harness.address, 1001, 27, 1001, 4242),
            as_another(harness.address, 1002, 27),
            as_another(harness.address, 1003, *range(4000, 4257)),
        )
    assert member == "OK"
    assert "(listener guarded, uid 1002, gid 1002, gids (27,))" in stranger
    assert "(listener guarded, uid 1003, gid 1003)" in in_too_many
    assert {line["caller"]["uid"] for line in harness.audited} == {1002, 1003}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_socket_mode_denies_other_users(callers: list[Caller], directory: Path) -> None:
    async with guarded(directory, mode=0o660) as harness:
        _, event_texts = await as_another(harness.address, 1001)
    assert "Permission denied" in event_texts
    assert callers == []


async def test_inherited_connection_has_credentials_of_connecting_process(
    callers: list[Caller], tmp_path: Path
) -> None:
    """The pid is left out if the process has exited when the daemon reads it, since the pid may be reused."""
    async with guarded(tmp_path) as harness:
        ours, theirs = socket.socketpair()
        code = (
            "import socket, sys; made = socket.socket(socket.AF_UNIX); made.connect(sys.argv[1]);"
            "socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'.'], [made.fileno()])"
        )
        with ours, theirs:
            maker = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, str(tmp_path / "d.sock"), str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
            await maker.wait()
            _, [descriptor], *_ = socket.recv_fds(ours, 1, 1)
        await eventually(lambda: len(acceptor(harness)._peers) == 1)
        [proved] = acceptor(harness)._peers.values()
        os.close(descriptor)
    assert (proved.caller.uid, proved.caller.pid) in {(os.getuid(), maker.pid), (os.getuid(), None)}


async def test_inner_socket_rejects_direct_connections(tmp_path: Path) -> None:
    """The inner socket has no path; a connection through its descriptor is unauthenticated."""
    async with guarded(tmp_path) as harness:
        place = f"unix:/proc/self/fd/{acceptor(harness)._inner_socket._descriptor}"
        async with grpc.aio.insecure_channel(place) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/milo.discovery.v1.DiscoveryService/ListClusters")(b"")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason(caught.value) == "UNKNOWN_CONNECTION"
    assert [line["reason"] for line in harness.audited] == ["UNKNOWN_CONNECTION"]


async def test_proxied_stream_delivers_events_and_ends_with_unavailable_at_shutdown(tmp_path: Path) -> None:
    async with guarded(tmp_path) as harness, harness.subscriber() as subscriber:
        await subscriber.until_synced()
        harness.seen(ready("beta"))
        assert await subscriber.events() == ["ENGAGED beta"]
        stopping = asyncio.create_task(harness.server.stop())
        error = await subscriber.error()
        await stopping
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_proxy_buffers_are_bounded_for_stalled_reader(tmp_path: Path, proxy_sides: list[ProxySide]) -> None:
    """With an unlimited HTTP/2 window, only the proxy's backpressure stops gRPC from sending everything."""
    async with guarded(tmp_path) as harness:
        harness.listed(*(ready(f"p-{number}", note="x" * 2000) for number in range(2_000)))
        with closing(await Raw.unix(tmp_path / "d.sock")) as deaf:
            await deaf.greet(window=2**31 - 1)
            deaf.call("WatchClusters", pb.WatchClustersRequest().SerializeToString())
            await deaf.flush()
            await eventually(
                lambda: (
                    proxy_sides
                    and proxy_sides[0]._transport
                    and proxy_sides[0].transport.get_write_buffer_size() > 65_536
                )
            )
            assert not proxy_sides[1].transport.is_reading()
            assert proxy_sides[0].transport.get_write_buffer_size() < 1 << 20
            async with harness.subscriber() as another:
                await another.until_synced()
        await eventually(lambda: proxy_sides[0].lost.done() and proxy_sides[1].lost.done())


async def test_closed_connections_leave_no_descriptors_or_tasks(tmp_path: Path) -> None:
    async with guarded(tmp_path) as harness:
        before, tasks = len(descriptors()), len(asyncio.all_tasks())
        for half_open in (False, True) * 10:
            _, writer = await asyncio.open_unix_connection(str(tmp_path / "d.sock"))
            writer.write(b"PRI")
            if half_open:
                writer.write_eof()
            else:
                writer.close()
                await writer.wait_closed()
            await eventually(lambda: not len(acceptor(harness)))
            writer.close()
        await eventually(lambda: len(descriptors()) <= before)
        # gRPC's own task that waits for the next call is replaced with each.
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
        await eventually(lambda: not acceptor(harness)._peers)


@pytest.mark.parametrize("peer_credentials", [True, False], ids=["guarded", "plain"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_new_user_evicts_connections_of_a_user_that_has_all_connections(
    peer_credentials: bool, directory: Path
) -> None:
    """The user with all of the connections is refused another one."""
    async with guarded(directory, connections=6, peer_credentials=peer_credentials) as harness:
        before = len(descriptors())
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(directory)) for _ in range(20)]
            await eventually(lambda: sum(has_ended(client) for client in clients) == 14)
            for uid in (1001, 1002):
                assert (await as_another(harness.address, uid))[1] == "OK"
            assert sum(has_ended(client) for client in clients) <= 16
        await eventually(lambda: len(descriptors()) <= before)
        assert harness.audited[0]["problem"].endswith("connection limit (6) of the listener reached")
        evicted = [line for line in harness.audited if "a caller with fewer connections" in line["problem"]]
        if peer_credentials:
            assert {line["caller"]["uid"] for line in evicted} == {os.getuid()}


async def test_idle_connections_of_many_users_do_not_lock_out_a_new_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = itertools.count(2_000)
    monkeypatch.setattr("milo_discoveryd.server.connections.acceptor.peer_uid", lambda _: next(uids))
    async with guarded(tmp_path, connections=4) as harness, harness.subscriber() as subscriber:
        await subscriber.until_synced()
        with ExitStack() as stack:
            for _ in range(3):
                idle = await Raw.unix(tmp_path / "d.sock")
                stack.callback(idle.close)
                await idle.greet()
            await eventually(lambda: len(acceptor(harness)) == 4)
            async with harness.client() as stub:
                await stub.ListClusters(pb.ListClustersRequest())
        harness.seen(ready("beta"))
        assert await subscriber.events() == ["ENGAGED beta"], "the stream lost its connection"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_caller_with_too_many_refused_calls_is_disconnected_and_must_wait_to_reconnect(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(connection_rates, "REFUSED_CALL_RATE", Rate(per_second=0.001, burst=20.0))
    rule = RightsRule(CallerSelector(uids=frozenset({1001})), Grant(rule="others", scope=ALL_CLUSTERS))

    async def codes(harness: Harness, count: int) -> list[grpc.StatusCode]:
        async with harness.client() as stub:
            calls = [stub.ListClusters(pb.ListClustersRequest()) for _ in range(count)]
            return [await call.code() for call in calls]

    async with guarded(directory, rights=Rights((rule,))) as harness:
        found = await codes(harness, 60)
        assert found.count(grpc.StatusCode.UNAVAILABLE) + found.count(grpc.StatusCode.PERMISSION_DENIED) == 60
        await eventually(lambda: len(acceptor(harness)) == 0)
        assert await codes(harness, 1) == [grpc.StatusCode.UNAVAILABLE]
        assert [text for _, text in [await as_another(harness.address, 1001)]] == ["OK"]
        monkeypatch.setattr(connection_rates, "REFUSED_CALL_RATE", Rate(per_second=1e6, burst=20.0))
        assert await codes(harness, 1) == [grpc.StatusCode.PERMISSION_DENIED]
    reasons = {(line["reason"], line["caller"]["uid"]) for line in harness.audited}
    assert reasons == {("NO_RULE", 0), ("TOO_MANY_REFUSED_CALLS", 0)}
    problems = [line["problem"] for line in harness.audited if "problem" in line]
    assert problems[0] == connection_rates.EXCESS
    assert "connect again in" in problems[-1]


async def test_calls_over_the_in_flight_limit_are_audited(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setattr(in_flight, "MAX_PER_OWNER", 1)
    monkeypatch.setattr(quota, "MISS_BURST", 0)
    monkeypatch.setattr(quota, "MISSES_PER_S", 0.2)  # the response to the only admitted call is delayed
    async with guarded(directory, rights=Rights((NOBODY,))) as harness, harness.client() as stub:
        calls = [stub.ListClusters(pb.ListClustersRequest()) for _ in range(5)]
        codes = [await code for code in islice(asyncio.as_completed([call.code() for call in calls]), 4)]
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4

        def lines() -> list[dict[str, Any]]:
            return [line for line in harness.audited if line["reason"] == "TOO_MANY_CALLS"]

        await eventually(lambda: len(lines()) == 4)  # a line is written after the caller has the response
        assert [(line["call"], line["caller"]["uid"]) for line in lines()] == [("ListClusters", os.getuid())] * 4


async def test_listener_recovers_from_exhaustion_of_file_descriptors(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with guarded(tmp_path) as harness:
        async with harness.subscriber() as subscriber:
            await subscriber.until_synced()
            with connected(tmp_path) as waiting:
                await eventually(lambda: len(acceptor(harness)._peers) == 2)
            await eventually(lambda: len(acceptor(harness)._peers) == 1)
            waiting = socket.socket(socket.AF_UNIX)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()), hard))
            try:
                waiting.connect(str(tmp_path / "d.sock"))
                harness.seen(ready("beta"))
                assert await subscriber.events() == ["ENGAGED beta"]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                waiting.close()
        async with harness.client() as stub:
            await stub.ListClusters(pb.ListClustersRequest())


def descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def connected(directory: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(20)
    made.connect(str(directory / "d.sock"))
    return made


def has_ended(connected: socket.socket) -> bool:
    """Return whether the daemon has closed the connection."""
    connected.setblocking(False)
    with suppress(BlockingIOError):
        while connected.recv(4096):
            pass  # the server's HTTP/2 settings
        return True
    return False


def reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    return info.reason


@pytest.mark.parametrize("place", ["_admit", "_authenticated"])
async def test_unexpected_error_of_a_connection_ends_only_this_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    original, failures = getattr(Acceptor, place), [1]

    def failing(self: Acceptor, *arguments: Any) -> Any:
        if failures:
            failures.clear()
            raise ZeroDivisionError
        return original(self, *arguments)

    monkeypatch.setattr(Acceptor, place, failing)
    listener = Listener(name="local", address=UnixSocket(tmp_path / "d.sock"), peer_credentials=True)
    with capture_logs() as logs:
        async with a_harness(tmp_path, listeners=[listener]) as harness:
            with closing(socket.socket(socket.AF_UNIX)) as refused:
                await asyncio.to_thread(refused.connect, str(tmp_path / "d.sock"))
                await eventually(lambda: not failures)
                assert await asyncio.to_thread(refused.recv, 1) == b""
            harness.listed(ready("alpha"))
            async with harness.client() as stub:
                assert len((await stub.ListClusters(pb.ListClustersRequest())).clusters) == 1
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["connection failed"]


@pytest.mark.parametrize("peer_credentials", [True, False], ids=["guarded", "plain"])
async def test_connections_that_their_clients_have_closed_fill_no_backlog(
    peer_credentials: bool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(directory, peer_credentials=peer_credentials) as harness:
        admitted: list[None] = []

        async def serve(accepted: socket.socket, _: object) -> None:
            admitted.append(accepted.close())

        monkeypatch.setattr(acceptor(harness), "_serve", serve)
        for _ in range(500):
            with connected(directory):
                pass
        with connected(directory):
            await eventually(lambda: len(admitted) > 0)
            assert len(admitted) == 1


@pytest.mark.parametrize("peer_credentials", [True, False], ids=["guarded", "plain"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_connect_flood_of_one_user_is_refused_and_locks_out_no_other_user(
    peer_credentials: bool, directory: Path
) -> None:
    async with guarded(directory, peer_credentials=peer_credentials, connections=1000) as harness:
        acceptor(harness)._rate_limiter = ConnectRateLimiter(Rate(per_second=0.001, burst=5))
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(directory)) for _ in range(500)]
            assert (await as_another(harness.address, 1001))[1] == "OK"
            assert sum(has_ended(client) for client in clients) == 495
            assert len(acceptor(harness)._peers) <= 6
    assert harness.audited[0]["problem"] == f"connection rate limit reached for uid {os.getuid()}"
