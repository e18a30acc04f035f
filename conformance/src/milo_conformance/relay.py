"""A relay between subscriber and daemon, whose connections can be cut or stalled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

_SETTINGS = bytes.fromhex("000000 04 00 00000000")
_GOAWAY = bytes.fromhex("000008 07 00 00000000 00000000 00000000")
"""A frame of HTTP/2 that says that no stream of the connection was processed."""
_GOAWAY_S = 0.02


class Relay:
    """A proxy at the address that clients connect to (a socket path or a loopback port). It forwards bytes to the
    daemon's server."""

    def __init__(self, path: Path) -> None:
        self.target: str | int = ""
        self._path = path
        self._port = 0
        self.is_tcp = False
        self.sends_goaway = False
        """Whether new connections are ended with GOAWAY, before they carry a call."""
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows: set[asyncio.Event] = set()
        self.connected = 0
        """The number of connections that were accepted."""
        self.closed: asyncio.Queue[None] = asyncio.Queue()
        """An item for each connection that was closed."""

    @property
    def address(self) -> str:
        return f"localhost:{self._port}" if self.is_tcp else f"unix://{self._path}"

    async def listen(self) -> None:
        """Listen on a new socket."""
        if self.is_tcp:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
            self._port = self._listener.sockets[0].getsockname()[1]
        else:
            self._listener = await asyncio.start_unix_server(self._accept, self._path)

    async def stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)  # a daemon that terminates removes its socket too

    def cut(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def fall_silent(self) -> None:
        """Stop forwarding on the existing connections, and leave them open."""
        for flowing in self._flows:
            flowing.clear()

    async def close(self) -> None:
        await self.stop_listening()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.connected += 1
        flowing = asyncio.Event()
        flowing.set()
        self._flows.add(flowing)
        try:
            if self.sends_goaway:
                self._writers.add(writer)
                writer.write(_SETTINGS + _GOAWAY)
                await asyncio.sleep(_GOAWAY_S)
                return
            if isinstance(self.target, int):
                there, back = await asyncio.open_connection("127.0.0.1", self.target)
            else:
                there, back = await asyncio.open_unix_connection(self.target)
            self._writers |= {writer, back}
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, back, flowing))
                group.create_task(self._forward(there, writer, flowing))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._flows.discard(flowing)
            self._connections.discard(task)
            for open_writer in self._writers & {writer, locals().get("back", writer)}:
                self._writers.discard(open_writer)
                open_writer.transport.abort()
            self.closed.put_nowait(None)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        while data := await reader.read(1 << 16):
            await flowing.wait()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.close()
