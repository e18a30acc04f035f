"""A TCP proxy that can reset all of its connections, to drop every open watch of a real API server.

TLS passes through. While it is closed its port stays reserved and refuses connections, like that of a stopped
server.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: the peer receives a reset
_CHUNK = 1 << 16
_BACKLOG = 128

Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """The proxy; `greet` is a handshake with each client before its bytes are forwarded."""

    def __init__(self, greet: Greet | None = None) -> None:
        self._greet = greet
        self._reservation = _shared_socket(0)  # bound without listening: connections are refused
        self.port: int = self._reservation.getsockname()[1]
        self._target: int | None = None
        self._listener: socket.socket | None = None
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self.accepted = 0
        """How many connections were accepted."""

    async def open(self, target: int) -> None:
        """Accept connections, and forward them to a local port."""
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
        """Refuse new connections, and close the open ones."""
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
            connection.close()  # its task was canceled before it began

    async def close(self) -> None:
        await self.shut()
        self._reservation.close()

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
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(upstream)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, upstream))
                both.create_task(_pump(upstream_reader, writer))
            for end in ends:
                await end.wait_closed()
        except (OSError, EOFError):
            pass  # no server behind the proxy, or a disconnected client: the close informs the other end
        finally:
            for end in ends:
                end.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until either end closes; then close the sink, which ends the other direction."""
    try:
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
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
