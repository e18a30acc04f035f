"""A Unix socket in front of the daemon's, whose connections can be cut or silenced."""

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class Relay:
    def __init__(self, path: Path, daemon: Path) -> None:
        self.address = f"unix://{path}"
        self._path = path
        self._daemon = daemon
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.Event] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def set_silent(self) -> None:
        """Drop everything on existing connections; new ones work."""
        for is_open in self._open:
            is_open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._daemon)
        is_open = asyncio.Event()
        is_open.set()
        self._writers |= {writer, back}
        self._open.add(is_open)
        passing = [
            asyncio.create_task(_pass_on(reader, back, is_open)),
            asyncio.create_task(_pass_on(there, writer, is_open)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._writers -= {writer, back}
            self._open.discard(is_open)
            for task in passing:
                task.cancel()
            writer.close()
            back.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event) -> None:
    with suppress(ConnectionError):  # the connection was cut
        while data := await reader.read(64 * 1024):
            await is_open.wait()
            writer.write(data)
            await writer.drain()
