"""A bare grpc.aio server that sends the prepared batches of FILE to each subscriber of SOCKET.

It imports only what such a server needs, since its memory is measured.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

SERVICE = "milo.discovery.v1.DiscoveryService"


async def serve(socket: str, batches: Sequence[bytes]) -> None:
    async def watch(request: bytes, context: Any) -> None:
        for batch in batches:
            await context.write(batch)

    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(watch)
    handler = grpc.method_handlers_generic_handler(SERVICE, {"WatchClusters": method})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix://{socket}")
    await server.start()
    await server.wait_for_termination()


def _read(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], list(_read(Path(sys.argv[2]).read_bytes()))))
