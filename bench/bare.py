"""The peer of the fan-out: a grpc.aio server that sends ready-made bytes, and does nothing else.

`python -m bench.bare SOCKET FILE` sends the batches of the file to each subscriber, as fast as they are taken.
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


@asynccontextmanager
async def bare(batches: Sequence[bytes], directory: Path) -> AsyncIterator[str]:
    """Its address."""
    socket, file = directory / "bare.sock", directory / "bare.batches"
    file.write_bytes(b"".join(len(batch).to_bytes(4) + batch for batch in batches))
    process = Process([sys.executable, "-m", "bench.bare", str(socket), str(file)], directory / "bare.log")
    try:
        await process.until_said(1)
        yield f"unix://{socket}"
    finally:
        await process.end()


async def serve(socket: str, batches: Sequence[bytes]) -> None:
    async def watch(request: bytes, context: Any) -> None:
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
    await server.wait_for_termination()


def _read(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], list(_read(Path(sys.argv[2]).read_bytes()))))
