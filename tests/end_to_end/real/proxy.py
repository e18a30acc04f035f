"""A TCP proxy whose connections can all be cut at once: how a test drops every open watch of a real API server.

TLS passes through untouched. While it is closed its address stays reserved and refuses connections, as the address of
a dead server does.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: the peer sees a reset, not an orderly end
_CHUNK = 1 << 16
_BACKLOG = 128

Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """`greet`: what passes between it and a client before the client's bytes go on."""

    def __init__(self, greet: Greet | None = None) -> None:
        self._greet = greet
        self._reservation = _shared_socket(0)  # bound and never listening: whoever connects is refused
        self.port: int = self._reservation.getsockname()[1]
        self._target: int | None = None
        self._listener: socket.socket | None = None
        self._connections: dict[asyncio.Task[None], socket.socket] = {}

    async def open(self, target: int) -> None:
        """Takes connections and hands them to a port of this host."""
        self._target = target
        if self._listener is None:
            self._listener = _shared_socket(self.port)
            self._listener.setblocking(False)
            self._listener.listen(_BACKLOG)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def refuse(self) -> None:
        """Takes no more connections; the open ones go on."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def shut(self) -> None:
        """Takes no more connections and ends the open ones."""
        self.refuse()
        await self.cut()

    async def cut(self) -> None:
        """Resets every open connection; new ones are served."""
        connections = dict(self._connections)
        for task, connection in connections.items():
            if connection.fileno() >= 0:  # else its end is under way already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            task.cancel()
        if connections:
            await asyncio.wait(connections)
        for connection in connections.values():
            connection.close()  # of a task that was cancelled before it began

    async def close(self) -> None:
        await self.shut()
        self._reservation.close()

    def _accept(self, listener: socket.socket) -> None:
        # Not by asyncio.start_server: it forgets, unclosed, what it is just accepting when it is told to close.
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        connection.setblocking(False)
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
            pass  # nobody behind it, or a client that has gone: the other end is told by the close
        finally:
            for end in ends:
                end.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copies until either end is gone, then closes the sink, which ends the pump of the other direction too."""
    try:
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass  # a reset ends the copy as an orderly end does
    finally:
        sink.close()


def _shared_socket(port: int) -> socket.socket:
    shared = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.bind(("127.0.0.1", port))
    return shared
