"""The baseline of the fan-out: a grpc.aio server that only sends prepared bytes."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from bench.process import Process


class Bare(Process):
    def __init__(self, socket: Path, file: Path, log: Path) -> None:
        socket.unlink(missing_ok=True)
        self._socket = socket
        self.address = f"unix://{socket}"
        super().__init__([sys.executable, str(Path(__file__).with_name("bare_server.py")), str(socket), str(file)], log)

    async def listens(self) -> None:
        """Return as soon as the server accepts connections."""
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):  # its socket file exists before it listens
                _, writer = await asyncio.open_unix_connection(str(self._socket))
                writer.close()
                return
            self.check()
            await asyncio.sleep(0.001)


@asynccontextmanager
async def bare(batches: Sequence[bytes], directory: Path) -> AsyncIterator["Bare"]:
    socket, file = directory / "bare.sock", directory / "bare.batches"
    file.write_bytes(b"".join(len(batch).to_bytes(4) + batch for batch in batches))
    process = Bare(socket, file, directory / "bare.log")
    try:
        await process.listens()
        yield process
    finally:
        await process.end()
