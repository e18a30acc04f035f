"""The socket on which gRPC serves connections that the acceptor proxies.

gRPC gives handlers only the peer address of a caller. So each proxied connection is bound to an address that other
processes can neither guess nor use, and the socket has no path: it is reachable only by a file descriptor of this
process.
"""

import asyncio
import os
import secrets
import socket
import tempfile
from pathlib import Path

import grpc

from milo_discoveryd.daemon_errors import StartError

_MEMORY = Path("/dev/shm")  # noqa: S108 - a private directory is created there; writable even with a read-only root
_BACKLOG_RETRY_S = 0.01


class InnerSocket:
    def __init__(self) -> None:
        self._descriptor: int | None = None

    def bind(self, server: grpc.aio.Server) -> None:
        """Bind the socket. Raises StartError."""
        directory = _private_directory()
        path = directory / "s"
        try:
            server.add_insecure_port(f"unix:{path}")
            self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (RuntimeError, OSError) as error:
            raise StartError(f"can't create a socket in {directory}: {error}") from error
        finally:
            path.unlink(missing_ok=True)
            directory.rmdir()

    async def connect(self) -> tuple[str, socket.socket]:
        """Return the peer address that gRPC's handlers will see, and the connection. Raises OSError."""
        assert self._descriptor is not None
        name = secrets.token_hex(16)
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connected.bind(f"\0{name}")
            while not self._try_connect(connected):  # noqa: ASYNC110 - the kernel has no event for a free backlog slot
                await asyncio.sleep(_BACKLOG_RETRY_S)
        except BaseException:
            connected.close()
            raise
        return f"unix-abstract:{name}", connected

    def _try_connect(self, connected: socket.socket) -> bool:
        """Connect, or return False if gRPC's backlog is full."""
        try:
            connected.connect(f"/proc/self/fd/{self._descriptor}")
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _private_directory() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="milo-discoveryd-", dir=_MEMORY))
    except OSError:
        try:
            return Path(tempfile.mkdtemp(prefix="milo-discoveryd-"))
        except OSError as error:
            raise StartError(f"neither {_MEMORY} nor the directory for temporary files is writable: {error}") from error
