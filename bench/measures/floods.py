"""The effect of floods: memory of the daemon, responses per second, audit lines, and the service for other callers.

Each kind has a daemon of its own. A flood comes from a caller that no rule matches, from an allowed caller, or from
unauthenticated connections, and lasts as long as the measurement.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import quantiles

import grpc
import msgspec

from bench.daemon import Daemon
from bench.floods import OPEN, flood
from bench.measures.hostile_clients import certificates
from bench.process import free_port
from bench.setting import Samples, Setting
from bench.subscribers import synced
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from tests.support.memory_limit import memory_limit, shipped_limit

_DAY_S = 86_400
_PROJECTS = 100
_GIVES_UP_AFTER_S = 5.0
_SERVED_WITHIN_S = 120.0
_EVERY_S = 0.05


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    return {
        f"floods.{key}": [value]
        for figures in (
            await _refused(setting, "health_watches", scale.flood_watches),
            await _refused(setting, "calls", scale.flood_calls),
            await _refused(setting, "calls", scale.flood_calls, identified=True),
            await _filters(setting, scale.flood_filters),
            await _idle_connections(setting, scale.flood_connections),
            await _silent_connections(setting, scale.flood_connections, scale.flood_handshakes),
            await _client_hellos(setting, scale.flood_connections, scale.flood_handshakes),
        )
        for key, value in figures.items()
    }


async def _refused(setting: Setting, kind: str, wanted: int, *, identified: bool = False) -> dict[str, float]:
    """Measure calls by a caller that no rule matches, beside a caller with a rule.

    `identified`: at a listener that identifies callers, so that the daemon can close the connections of one caller.
    """
    name = f"identified_{kind}" if identified else kind
    async with _place(setting, name) as (daemon, directory):
        address = f"unix:{directory}/{'users' if identified else 'nobody'}.sock"
        late_ms: list[float] = []
        before = daemon.rss_mib
        async with flood(kind, address, directory, wanted) as running:
            answers, began, spent = await running.figures(), time.perf_counter(), daemon.cpu_s
            audit = directory / "audit.jsonl"
            written = audit.stat().st_size
            while (took_s := time.perf_counter() - began) < setting.scale.flood_s:
                late_ms.append(1000 * await _answered(daemon.address))
                await asyncio.sleep(_EVERY_S)
            busy = 100 * (daemon.cpu_s - spent) / took_s
            written, answers = audit.stat().st_size - written, await running.figures() - answers
        return {
            f"{name}.memory_before_mib": before,
            f"{name}.memory_growth_mib": daemon.peak_mib - before,
            f"{name}.denied_per_s": answers[grpc.StatusCode.PERMISSION_DENIED.name] / took_s,
            f"{name}.turned_away_per_s": answers[grpc.StatusCode.RESOURCE_EXHAUSTED.name] / took_s,
            f"{name}.audit_mib_per_day": written / took_s * _DAY_S / 2**20,
            f"{name}.other_caller_p99_ms": quantiles(late_ms, n=100)[98] if len(late_ms) > 1 else late_ms[0],
            f"{name}.daemon_cpu_percent": busy,
        }


async def _filters(setting: Setting, wanted: int) -> dict[str, float]:
    """Measure streams with large filters, of a caller that is allowed to open streams."""
    async with _place(setting, "filters") as (daemon, directory):
        before = daemon.rss_mib
        async with flood("filters", daemon.address, directory, wanted) as running:
            figures = await running.figures()
        return {
            "filters.open_streams": figures[OPEN],
            "filters.memory_before_mib": before,
            "filters.memory_growth_mib": daemon.peak_mib - before,
        }


async def _idle_connections(setting: Setting, wanted: int) -> dict[str, float]:
    """Measure idle connections at a Unix listener with default settings."""
    async with (
        _place(setting, "idle_connections") as (daemon, directory),
        flood("idle_connections", daemon.address, directory, wanted),
    ):
        began = time.perf_counter()
        async with asyncio.timeout(_SERVED_WITHIN_S):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await _answered(daemon.address)
                    break
                await asyncio.sleep(_EVERY_S)
        return {"idle_connections.served_after_s": time.perf_counter() - began}


async def _silent_connections(setting: Setting, wanted: int, handshakes: int) -> dict[str, float]:
    """Measure TCP connections without a TLS handshake, from one IPv6 or IPv4 address, beside a caller from another."""
    async with _place(setting, "silent_connections") as (_, directory):
        port, context = _as_friend(directory)
        source = f"[::1]:{port}" if socket.has_dualstack_ipv6() else f"127.0.0.2:{port}"
        async with flood("silent_connections", source, directory, wanted) as running:
            before, began = await running.figures(), time.perf_counter()
            succeeded = await _succeeded(port, context, handshakes)
            attempts = (await running.figures() - before).total()
            return {
                "silent_connections.per_s": attempts / (time.perf_counter() - began),
                "silent_connections.others_percent": 100 * succeeded / handshakes,
            }


async def _client_hellos(setting: Setting, wanted: int, handshakes: int) -> dict[str, float]:
    """Measure TLS connections that send only a ClientHello, from 16 addresses, beside another caller.

    The daemon has many clusters, and the memory limit of the shipped manifest if this user may create a cgroup.
    """
    limit = shipped_limit()
    with memory_limit(limit) as cgroup:
        async with _place(setting, "client_hellos", setting.scale.clusters, cgroup=cgroup) as (daemon, directory):
            port, context = _as_friend(directory)
            async with synced(daemon.address, 1):
                before = daemon.rss_mib
            async with flood("client_hellos", f"127.0.0.1:{port}", directory, wanted):
                succeeded = await _succeeded(port, context, handshakes)
            peak = daemon.peak_mib if daemon.is_running else limit / 2**20
            return {
                "client_hellos.limit_mib": limit / 2**20 if cgroup else 0.0,
                "client_hellos.memory_before_mib": before,
                "client_hellos.memory_growth_mib": peak - before,
                "client_hellos.peak_mib": peak,
                "client_hellos.survived": float(daemon.is_running),
                "client_hellos.others_percent": 100 * succeeded / handshakes,
            }


def _as_friend(directory: Path) -> tuple[int, ssl.SSLContext]:
    """Return the port of the TLS listener, and the TLS context of an authorized caller."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(directory / "friend.crt", directory / "friend.key")
    return int((directory / "port").read_text()), context


async def _succeeded(port: int, context: ssl.SSLContext, handshakes: int) -> int:
    succeeded = 0
    for _ in range(handshakes):
        succeeded += await _connects(port, context)
        await asyncio.sleep(_EVERY_S)
    return succeeded


@asynccontextmanager
async def _place(
    setting: Setting, kind: str, projects: int = _PROJECTS, *, cgroup: Path | None = None
) -> AsyncIterator[tuple[Daemon, Path]]:
    """Run a daemon with rules; callers at two of its Unix sockets match no rule."""
    directory = setting.directory / kind
    directory.mkdir()
    certificates(directory)
    port = free_port()
    (directory / "port").write_text(str(port))
    tls = {name: str(directory / file) for name, file in _TLS_FILES.items()}
    config = {
        "listen": [
            {"name": "network", "address": f":{port}", "tls": tls},
            {"name": "nobody", "address": f"unix://{directory}/nobody.sock"},
            {"name": "users", "address": f"unix://{directory}/users.sock", "peer_credentials": True},
            # `Daemon.listens` waits for the last socket; the others exist by then.
            {"name": "local", "address": f"unix://{setting.directory}/daemon.sock"},
        ],
        "rights": [
            {"name": "friends", "who": {"san": "dns:friend.example.com"}, "clusters": "all"},
            {"name": "local", "who": {"listener": "local"}, "clusters": "all"},
        ],
        "audit": {"file": str(directory / "audit.jsonl")},
    }
    (directory / "config.yaml").write_bytes(msgspec.json.encode(config))  # JSON is YAML
    options = {"config": directory / "config.yaml", "listens": False, "cgroup": cgroup}
    async with setting.daemon(projects, **options) as (_, daemon):
        await _answered(daemon.address)
        yield daemon, directory


_TLS_FILES = {"certificate": "server.crt", "key": "server.key", "client_ca": "ca.pem"}


async def _answered(address: str) -> float:
    """Return how long a call on a new connection took."""
    began = time.perf_counter()
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = DiscoveryServiceStub(channel)
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_GIVES_UP_AFTER_S)
    return time.perf_counter() - began


async def _connects(port: int, context: ssl.SSLContext) -> bool:
    """Return whether a TLS connection was accepted: the server sends its HTTP/2 settings."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_GIVES_UP_AFTER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            try:
                return bool(await reader.read(1))
            finally:
                writer.close()
    return False
