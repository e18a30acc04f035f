"""A gRPC server's socket that nobody but we can reach, and connections to it by which their calls are known again.

gRPC tells a handler no more of who calls than the address of the connection's other end. So each connection that we
make to it has an address that nobody can guess or take; and its socket has no name: a descriptor of ours leads there.
"""

import asyncio
import os
import secrets
import socket
import tempfile
from pathlib import Path

import grpc

from milo_discoveryd.daemon_errors import StartError

_MEMORY = Path("/dev/shm")  # noqa: S108 - for a folder that only we can enter; writable even where the root file system is not
_FULL_AGAIN_S = 0.01


class InnerSocket:
    def __init__(self) -> None:
        self._descriptor: int | None = None

    def bind(self, server: grpc.aio.Server) -> None:
        """Raises StartError."""
        folder = _folder()
        path = folder / "s"
        try:
            server.add_insecure_port(f"unix:{path}")
            self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (RuntimeError, OSError) as error:
            raise StartError(f"can't make a socket in {folder}: {error}") from error
        finally:
            path.unlink(missing_ok=True)
            folder.rmdir()

    async def connect(self) -> tuple[str, socket.socket]:
        """The connection, and what gRPC's handlers will be told its other end is. Raises OSError."""
        assert self._descriptor is not None
        name = secrets.token_hex(16)
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connected.bind(f"\0{name}")
            while not self._has_room_for(connected):  # noqa: ASYNC110 - nothing would tell us when it has
                await asyncio.sleep(_FULL_AGAIN_S)
        except BaseException:
            connected.close()
            raise
        return f"unix-abstract:{name}", connected

    def _has_room_for(self, connected: socket.socket) -> bool:
        """Connects it, unless as many wait as may: gRPC has not come to accept them yet."""
        try:
            connected.connect(f"/proc/self/fd/{self._descriptor}")
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _folder() -> Path:
    """Ours alone, and for a moment only."""
    try:
        return Path(tempfile.mkdtemp(prefix="milo-discoveryd-", dir=_MEMORY))
    except OSError:
        try:
            return Path(tempfile.mkdtemp(prefix="milo-discoveryd-"))
        except OSError as error:
            raise StartError(f"neither {_MEMORY} nor a folder for temporary files can be written: {error}") from error
