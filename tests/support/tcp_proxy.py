"""A TCP proxy for tests, which injects network faults; TLS passes through.

Bytes are forwarded as they arrive. Connections can be reset, slowed to a drip, or silenced: then bytes are acknowledged
and dropped, and a direction that lost bytes never forwards any again. While the proxy is shut, its port stays reserved
and refuses connections, like that of a stopped server.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: the peer receives a reset
_BACKLOG = 128
_CHUNK = 1 << 16
_DRIP = 200
_DRIP_EVERY_S = 0.05

Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TcpProxy:
    def __init__(self, target: int | str = 0, port: int = 0, greet: Greet | None = None) -> None:
        """Reserve the port without accepting connections.

        `target` is a port of this host, or the path of a Unix socket. `port` is the port to listen on; 0 chooses one.
        `greet` is a handshake with each client before its bytes are forwarded.
        """
        self._target = target
        self._greet = greet
        self._reservation = _shared_socket(port)  # bound without listening: connections are refused
        self.port: int = self._reservation.getsockname()[1]
        self._listener: socket.socket | None = None
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self._drips = False
        self._swallows = False
        self.accepted = 0
        """How many connections were accepted."""
        self.swallowed = 0
        """Bytes that were received and dropped, in both directions."""

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def open(self, target: int | None = None) -> None:
        """Accept connections, and forward them to `target`, by default to the previous one."""
        if target is not None:
            self._target = target
        if self._listener is None:
            self._listener = _shared_socket(self.port)
            self._listener.setblocking(False)
            self._listener.listen(_BACKLOG)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def refuse(self) -> None:
        """Refuse new connections; open ones continue."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def shut(self) -> None:
        """Refuse new connections, and reset the open ones."""
        self.refuse()
        await self.cut()

    async def cut(self) -> None:
        """Reset every open connection; new ones are accepted."""
        connections = dict(self._connections)
        for task, connection in connections.items():
            if connection.fileno() >= 0:  # otherwise it is closing already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            task.cancel()
        if connections:
            await asyncio.wait(connections)
        for connection in connections.values():
            connection.close()  # a task that was canceled before it started has not closed its connection

    async def close(self) -> None:
        await self.shut()
        self._reservation.close()

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Reset all connections, and refuse new ones."""
        await self.shut()
        try:
            yield
        finally:
            self.open()

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

    def _accept(self, listener: socket.socket) -> None:
        # asyncio.start_server would leak a connection that it is accepting while it closes.
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        connection.setblocking(False)
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._connections[task] = connection
        task.add_done_callback(self._connections.pop)

    async def _serve(self, connection: socket.socket) -> None:
        ends: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            ends.append(writer)
            if self._greet is not None:
                await self._greet(reader, writer)
            beyond_reader, beyond = await self._connect()
            ends.append(beyond)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, beyond))
                both.create_task(self._pump(beyond_reader, writer))
            for end in ends:
                await end.wait_closed()
        except (OSError, EOFError):
            pass  # no server behind the proxy, or a disconnected client: the close informs the other end
        finally:
            for end in ends:
                end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Copy until either end closes; then close the sink, which ends the other direction."""
        is_dead = False
        try:
            while data := await source.read(_DRIP if self._drips else _CHUNK):
                is_dead = is_dead or self._swallows
                if is_dead:
                    self.swallowed += len(data)
                    continue
                sink.write(data)
                await sink.drain()
                if self._drips:
                    await asyncio.sleep(_DRIP_EVERY_S)
        except OSError:
            pass  # a reset ends the copy like an orderly close
        finally:
            sink.close()


def _shared_socket(port: int) -> socket.socket:
    shared = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.bind(("127.0.0.1", port))
    return shared
