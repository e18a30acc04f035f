"""A TCP proxy for tests, which injects network faults.

Bytes are forwarded as they arrive. Connections can be cut, slowed to a drip, or silenced: then bytes are acknowledged
and dropped, and a connection that lost bytes never forwards any again.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 s
_CHUNK = 1 << 16
_DRIP = 200
_DRIP_EVERY_S = 0.05


class TcpProxy:
    def __init__(self, target: int | str, port: int = 0) -> None:
        """The target: a port of this host, or the path of a Unix socket. `port`: where it listens; 0 is any."""
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._drips = False
        self._swallows = False
        self.port = port
        self.swallowed = 0
        """Bytes that were received and dropped, in both directions."""

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._refuse()
        await self.cut()

    async def cut(self) -> None:
        """Reset all open connections; new ones are accepted."""
        tasks = list(self._open)
        for task, writer in self._open.items():
            if not writer.transport.is_closing():  # a lost connection has no socket, while its task still ends
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Reset all connections, and refuse new ones."""
        self._refuse()
        await self.cut()
        try:
            yield
        finally:
            await self._listen()

    @asynccontextmanager
    async def dripping(self) -> AsyncIterator[None]:
        self._drips = True
        try:
            yield
        finally:
            self._drips = False

    @asynccontextmanager
    async def swallowing(self) -> AsyncIterator[None]:
        self._swallows = True
        try:
            yield
        finally:
            self._swallows = False

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        beyond: asyncio.StreamWriter | None = None
        try:
            beyond_reader, beyond = await self._connect()
            pumps = [
                asyncio.ensure_future(self._pump(reader, beyond)),
                asyncio.ensure_future(self._pump(beyond_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except (OSError, asyncio.CancelledError):
            pass  # the target is down, or the connection was cut
        finally:
            del self._open[task]
            for each in (writer, beyond):
                if each is not None:
                    each.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        is_dead = False
        while data := await source.read(_DRIP if self._drips else _CHUNK):
            is_dead = is_dead or self._swallows
            if is_dead:
                self.swallowed += len(data)
                continue
            sink.write(data)
            await sink.drain()
            if self._drips:
                await asyncio.sleep(_DRIP_EVERY_S)
