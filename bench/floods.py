"""`python -m bench.floods KIND ADDRESS COUNT`: a flood of calls, streams or connections, until it is terminated.

It prints `begun` once COUNT calls or streams were answered, or COUNT connections were opened or attempted, and for each
line on standard input its figures so far.
"""

import asyncio
import os
import socket
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.process import Process, standard_input
from bench.subscribers import meanwhile
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub

SILENT_PER_S = 560.0
NAMES = 4_990
"""Names in each filter, just below the daemon's limit."""
OPEN = "open"
_TICK_S = 0.01
_SOURCES = tuple(f"127.0.0.{number}" for number in range(2, 18))
_PER_CONNECTION = 100
"""Streams that a server accepts on one connection."""
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

Figures = Counter[str]
"""Numbers of responses by gRPC code, and of attempted, established and open streams or connections."""
Flood = Callable[[str, int, Figures], Coroutine[Any, Any, None]]
"""Floods an address with this many calls, streams or connections and updates the figures, until it is canceled."""


async def health_watches(address: str, wanted: int, figures: Figures) -> None:
    """Open health-check streams, and reopen each one that ends."""

    async def watch(channel: grpc.aio.Channel) -> None:
        while True:
            call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await _read_on(call, figures)

    await _on_channels(address, wanted, watch)


async def calls(address: str, wanted: int, figures: Figures) -> None:
    """Keep `wanted` calls in flight."""

    async def call(channel: grpc.aio.Channel) -> None:
        stub = DiscoveryServiceStub(channel)
        while True:
            try:
                await stub.ListClusters(pb.ListClustersRequest())
                figures["OK"] += 1
            except grpc.aio.AioRpcError as error:
                figures[error.code().name] += 1

    await _on_channels(address, wanted, call)


async def filters(address: str, wanted: int, figures: Figures) -> None:
    """Open streams with long filters, all different."""
    numbers = count()

    async def watch(channel: grpc.aio.Channel) -> None:
        first = next(numbers)
        names = [f"p-{number}" for number in range(first, first + NAMES)]
        request = pb.WatchClustersRequest(filter=pb.ClusterFilter(names=names))
        while True:
            await _read_on(DiscoveryServiceStub(channel).WatchClusters(request), figures)
            await asyncio.sleep(1)

    await _on_channels(address, wanted, watch)


async def idle_connections(address: str, wanted: int, figures: Figures) -> None:
    """Open connections that send the HTTP/2 preface and nothing else; closed ones are not reopened."""
    path = address.removeprefix("unix://")

    async def one() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(_HELLO)
        figures[OPEN] += 1
        figures["connected"] += 1
        with suppress(ConnectionError):
            while await reader.read(65_536):
                pass
        figures[OPEN] -= 1

    await asyncio.gather(*(one() for _ in range(wanted)))
    await asyncio.Event().wait()


async def silent_connections(address: str, wanted: int, figures: Figures) -> None:
    """Open TCP connections at a fixed rate, without a TLS handshake; close the oldest ones beyond `wanted`."""
    await _connections(address, wanted, figures)


async def client_hellos(address: str, wanted: int, figures: Figures) -> None:
    """Open TCP connections at a fixed rate, from several addresses, which send a TLS ClientHello and nothing else."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    await _connections(address, wanted, figures, hello=outgoing.read(), sources=_SOURCES)


async def _connections(
    address: str, wanted: int, figures: Figures, *, hello: bytes = b"", sources: Sequence[str] = ()
) -> None:
    host, _, port = address.rpartition(":")
    place = (host.strip("[]"), int(port))
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    opened: deque[socket.socket] = deque()
    began = time.perf_counter()
    try:
        while True:
            while figures["attempted"] < SILENT_PER_S * (time.perf_counter() - began):
                connection = socket.socket(family)
                connection.setblocking(False)
                if sources:
                    connection.bind((sources[figures["attempted"] % len(sources)], 0))
                with suppress(BlockingIOError):
                    connection.connect(place)
                with suppress(OSError):  # not connected yet, or refused
                    connection.send(hello)
                opened.append(connection)
                figures["attempted"] += 1
                if len(opened) > wanted:
                    opened.popleft().close()
                await asyncio.sleep(0)  # yields even if a busy machine never reaches the rate
            await asyncio.sleep(_TICK_S)
    finally:
        for connection in opened:
            connection.close()


FLOODS: dict[str, Flood] = {
    "health_watches": health_watches,
    "calls": calls,
    "filters": filters,
    "idle_connections": idle_connections,
    "silent_connections": silent_connections,
    "client_hellos": client_hellos,
}


async def _read_on(call: Any, figures: Figures) -> None:
    """Read a stream until it ends."""
    is_open = False
    try:
        while await call.read() is not grpc.aio.EOF:
            if not is_open:
                is_open = True
                figures[OPEN] += 1
                figures["OK"] += 1
    except grpc.aio.AioRpcError as error:
        figures[error.code().name] += 1
    finally:
        if is_open:
            figures[OPEN] -= 1


async def _on_channels(
    address: str, wanted: int, endless: Callable[[grpc.aio.Channel], Coroutine[Any, Any, None]]
) -> None:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for first in range(0, wanted, _PER_CONNECTION):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OWN_CONNECTION))
            for _ in range(min(wanted - first, _PER_CONNECTION)):
                tasks.create_task(endless(channel))


class FloodProcess:
    """A flood in a process of its own."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said = 1

    async def figures(self) -> Figures:
        self._process.tell("figures")
        self._said += 1
        line = (await self._process.wait_for_lines(self._said))[self._said - 1]
        return Counter(msgspec.json.decode(line, type=dict[str, int]))


@asynccontextmanager
async def flood(kind: str, address: str, directory: Path, wanted: int) -> AsyncIterator[FloodProcess]:
    """Run a flood; the block begins once its process has printed `begun`."""
    process = Process([sys.executable, "-m", "bench.floods", kind, address, str(wanted)], directory / f"{kind}.log")
    try:
        await process.wait_for_lines(1, within_s=300)
        yield FloodProcess(process)
    finally:
        await process.end()


async def main(kind: str, address: str, wanted: int) -> None:
    # Low priority, since only the effect on the daemon is measured, not the flood's own CPU use. With the lowest
    # priority, a flood could not respond on a busy machine.
    os.nice(10)
    figures: Figures = Counter()
    reader = await standard_input()
    async with meanwhile([FLOODS[kind](address, wanted, figures)]):
        while figures.total() - figures[OPEN] < wanted:  # noqa: ASYNC110 - every call would have to set an event
            await asyncio.sleep(0.01)
        say("begun")
        while await reader.readline():
            say(msgspec.json.encode(figures).decode())


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
