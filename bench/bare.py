"""The peer of the fan-out: a grpc.aio server that sends ready-made bytes, and does nothing else.

`python -m bench.bare SOCKET FILE` sends the batches of the file to each subscriber, when a line on its standard input
says so.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.process import Process
from bench.wire import METHOD


class Bare:
    def __init__(self, process: Process, address: str) -> None:
        self._process = process
        self.address = address

    def go(self) -> None:
        self._process.tell("go")


@asynccontextmanager
async def bare(batches: Sequence[bytes], directory: Path) -> AsyncIterator[Bare]:
    socket, file = directory / "bare.sock", directory / "bare.batches"
    file.write_bytes(b"".join(len(batch).to_bytes(4) + batch for batch in batches))
    process = Process([sys.executable, "-m", "bench.bare", str(socket), str(file)], directory / "bare.log")
    try:
        await process.until_said(1)
        yield Bare(process, f"unix://{socket}")
    finally:
        await process.end()


async def serve(socket: str, batches: Sequence[bytes]) -> None:
    told = asyncio.Event()

    async def watch(request: bytes, context: Any) -> None:
        # Whoever has had something knows that its stream is open.
        await context.write(b"")
        await told.wait()
        for batch in batches:
            await context.write(batch)

    server = grpc.aio.server()
    _, service, method = METHOD.split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_stream_rpc_method_handler(watch)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix://{socket}")
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    asyncio.get_running_loop().add_reader(sys.stdin, lambda: sys.stdin.readline() and told.set())
    await server.wait_for_termination()


def _read(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], list(_read(Path(sys.argv[2]).read_bytes()))))
