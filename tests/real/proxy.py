"""A TCP proxy whose connections can all be cut at once: how a test drops every open watch of a real API server.

TLS passes through untouched. While it is closed its address stays reserved and refuses connections, as the address of
a dead server does.
"""

import asyncio
import socket
import struct

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: the peer sees a reset, not an orderly end
_CHUNK = 1 << 16


class Proxy:
    def __init__(self) -> None:
        self._reservation = _shared_socket(0)  # bound and never listening: whoever connects is refused
        self.port: int = self._reservation.getsockname()[1]
        self._target: int | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def open(self, target: int) -> None:
        """Takes connections and hands them to a port of this host."""
        self._target = target
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_shared_socket(self.port))

    def refuse(self) -> None:
        """Takes no more connections; the open ones go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def shut(self) -> None:
        """Takes no more connections and ends the open ones."""
        self.refuse()
        await self.cut()

    async def cut(self) -> None:
        """Resets every open connection; new ones are served."""
        tasks = list(self._connections)
        for writer in self._connections.values():
            connection = writer.get_extra_info("socket")
            if connection.fileno() >= 0:  # else its end is under way already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        await self.shut()
        self._reservation.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
        else:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, upstream))
                both.create_task(_pump(upstream_reader, writer))
        finally:
            writer.close()  # where it was cancelled before there was anything to hand it to
            del self._connections[task]


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copies until either end is gone, then closes the sink, which ends the pump of the other direction too."""
    try:
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass  # a reset ends the copy as an orderly end does
    finally:
        sink.close()


def _shared_socket(port: int) -> socket.socket:
    shared = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.bind(("127.0.0.1", port))
    return shared
