"""`python -m bench.hostile_clients ADDRESS DIRECTORY`: hostile clients, at a sustainable rate.

The directory contains their certificates: of a caller with a narrow rule, of one without a rule, of an untrusted CA,
and an expired one. A line on standard input lists the kinds of clients to run. The program prints `begun` once each
kind was rejected, and after the next line the number of rejections of each kind since then.
"""

import asyncio
import os
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection

from bench.process import Process, standard_input
from milo_discovery import ClientCredentials, ClusterNotFound, DiscoveryClient, PermissionDenied
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub

CALLS_AT_ONCE = 50
"""Concurrent calls of each kind that makes calls; the daemon's responses determine their rate."""
STREAMS_PER_S = 20.0
HANDSHAKES_PER_S = 40.0
"""Handshakes of each kind: below the daemon's rate limit per address, but above it in total."""
JUNK_PER_S = 20.0
_RESETS = 100
_ELSEWHERE = "127.0.0.2"
"""The address from which handshakes and malformed HTTP/2 come, which differs from that of the other clients."""
_GIVES_UP_AFTER_S = 5.0
_METHOD = "/milo.discovery.v1.DiscoveryService/"


class Target(NamedTuple):
    host: str
    port: int
    directory: Path

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def credentials(self, who: str) -> ClientCredentials:
        certificate, key = _pair(self.directory, who)
        return ClientCredentials(ca_file=self.directory / "ca.pem", certificate_file=certificate, key_file=key)

    @asynccontextmanager
    async def connected(self, who: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a TLS connection with the certificate of that name."""
        context = ssl.create_default_context(cafile=self.directory / "ca.pem")
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(*_pair(self.directory, who))
        reader, writer = await asyncio.open_connection(
            self.host, self.port, ssl=context, local_addr=(_ELSEWHERE, 0), server_hostname=self.host
        )
        with closing(writer):
            yield reader, writer


Abuse = Callable[[Target, Callable[[], None]], Coroutine[Any, Any, None]]
"""An attack, which runs until it is canceled and reports each refusal."""


async def guessing(target: Target, turned_away: Callable[[], None]) -> None:
    """Request clusters of other callers by guessed names."""
    numbers = count()

    async def guess(client: DiscoveryClient) -> None:
        while True:
            with suppress(ClusterNotFound):
                await client.get(f"somebody-elses-{next(numbers)}")
            turned_away()

    async with DiscoveryClient(target.address, credentials=target.credentials("guest"), timeout=None) as client:
        await asyncio.gather(*(guess(client) for _ in range(CALLS_AT_ONCE)))


async def revisions(target: Target, turned_away: Callable[[], None]) -> None:
    """Open streams from forged revisions, and from one issued to another caller."""
    stolen = (target.directory / "stolen-revision").read_text()
    certificate, key = _pair(target.directory, "guest")
    shown = grpc.ssl_channel_credentials(
        (target.directory / "ca.pem").read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(target.address, shown, options) as channel:
        stub = DiscoveryServiceStub(channel)
        for number in count():
            where = number % len(stolen)
            bent = stolen[:where] + ("A" if stolen[where] != "A" else "B") + stolen[where + 1 :]
            call = stub.WatchClusters(pb.WatchClustersRequest(resume_revision=bent if number % 2 else stolen))
            batch = await call.read()
            assert isinstance(batch, pb.WatchClustersResponse)
            if batch.reset:
                turned_away()
            call.cancel()
            await asyncio.sleep(1 / STREAMS_PER_S)


def handshakes(who: str) -> Abuse:
    """Connect with a certificate that must be rejected."""

    async def shake(target: Target, turned_away: Callable[[], None]) -> None:
        async def once() -> None:
            # A TLS 1.3 client sees its rejection only when it reads.
            with suppress(ssl.SSLError, ConnectionError, TimeoutError):
                async with asyncio.timeout(_GIVES_UP_AFTER_S), target.connected(who) as (reader, _):
                    assert not await reader.read(1), f"the daemon accepted {who}"
            turned_away()

        await at_pace(once, HANDSHAKES_PER_S)

    return shake


async def nobody(target: Target, turned_away: Callable[[], None]) -> None:
    """Call with a valid certificate whose name matches no rule."""

    async def call(client: DiscoveryClient) -> None:
        while True:
            with suppress(PermissionDenied):
                await client.list()
            turned_away()

    async with DiscoveryClient(target.address, credentials=target.credentials("nobody"), timeout=None) as client:
        await asyncio.gather(*(call(client) for _ in range(CALLS_AT_ONCE)))


async def junk(target: Target, turned_away: Callable[[], None]) -> None:
    """Send streams that are reset at once, or random bytes after the HTTP/2 preface."""
    numbers = count()

    async def once() -> None:
        with suppress(ssl.SSLError, ConnectionError, TimeoutError):
            async with asyncio.timeout(_GIVES_UP_AFTER_S), target.connected("guest") as (reader, writer):
                writer.write(_rapid_resets() if next(numbers) % 2 else _noise())
                await reader.read(65_536)
        turned_away()

    await at_pace(once, JUNK_PER_S)


ATTACKS: dict[str, Abuse] = {
    "guessing": guessing,
    "revisions": revisions,
    "wrong_ca": handshakes("stranger"),
    "expired": handshakes("expired"),
    "nobody": nobody,
    "junk": junk,
}


async def at_pace(once: Callable[[], Coroutine[Any, Any, None]], per_s: float) -> None:
    """Start attempts at a fixed rate, even if earlier ones are still running."""
    async with asyncio.TaskGroup() as tasks:
        while True:
            tasks.create_task(once())
            await asyncio.sleep(1 / per_s)


def _rapid_resets() -> bytes:
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    wanted = [
        (":method", "POST"), (":scheme", "https"), (":path", f"{_METHOD}ListClusters"), (":authority", "localhost"),
        ("te", "trailers"), ("content-type", "application/grpc"),
    ]  # fmt: skip
    for _ in range(_RESETS):
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, wanted)
        connection.reset_stream(stream)
    return connection.data_to_send()


def _noise() -> bytes:
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    return connection.data_to_send() + os.urandom(4_000)


def _pair(directory: Path, who: str) -> tuple[Path, Path]:
    return directory / f"{who}.crt", directory / f"{who}.key"


class HostileClients:
    """A process of hostile clients, which are started by kind and stopped together."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said = 0

    @asynccontextmanager
    async def beside(self, kinds: Sequence[str]) -> AsyncIterator[Counter[str]]:
        """Run attacks until the block ends; the yielded value then has the number of rejections per kind."""
        turned_away = Counter[str]()
        if not kinds:
            yield turned_away
            return
        await self._ask(" ".join(kinds))
        yield turned_away
        turned_away.update(msgspec.json.decode(await self._ask("enough"), type=dict[str, int]))

    async def _ask(self, line: str) -> str:
        self._process.tell(line)
        self._said += 1
        return (await self._process.wait_for_lines(self._said))[-1]


@asynccontextmanager
async def hostile_clients(address: str, directory: Path) -> AsyncIterator[HostileClients]:
    async with AsyncExitStack() as stack:
        command = [sys.executable, "-m", "bench.hostile_clients", address, str(directory)]
        process = Process(command, directory / f"hostile-clients-of-{address}.log")
        stack.push_async_callback(process.end)
        yield HostileClients(process)


async def obey(target: Target) -> None:
    # Lowest priority, since only the effect on the daemon is measured, not the clients' own CPU use.
    os.nice(19)
    reader = await standard_input()
    while kinds := (await reader.readline()).decode().split():
        turned_away = Counter[str]()
        begun = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(ATTACKS[kind](target, _noting(turned_away, kind, begun))) for kind in kinds]
            while len(turned_away) < len(kinds):
                begun.clear()
                await begun.wait()
            turned_away.clear()
            say("begun")
            await reader.readline()
            say(msgspec.json.encode(turned_away).decode())
            for task in running:
                task.cancel()


def _noting(turned_away: Counter[str], kind: str, noted: asyncio.Event) -> Callable[[], None]:
    def note() -> None:
        turned_away[kind] += 1
        noted.set()

    return note


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(obey(Target(host, int(port), Path(sys.argv[2]))))
