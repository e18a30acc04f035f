"""Addresses to listen on: a Unix socket that is ours alone, or TCP on loopback.

Binding a Unix socket that another daemon serves succeeds, and takes its clients away without a word; and when the thief
stops, gRPC removes the path that by then belongs to somebody else. Hence the lock, held for life; the look every few
seconds whether the path is still ours; and a name that gRPC doesn't know: it binds another one, which is then renamed.
"""

import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import IO

import grpc
import msgspec

from milo_discoveryd.errors import StartError

CHECK_EVERY_S = 5.0


class UnixAddress(msgspec.Struct, frozen=True):
    path: Path
    mode: int = 0o660
    group: int | None = None
    """A group id that the socket is given to; None: the process' own."""

    def __str__(self) -> str:
        return f"unix://{self.path}"


class TcpAddress(msgspec.Struct, frozen=True):
    """On loopback; the settings see to that."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixListener:
    def __init__(self, address: UnixAddress) -> None:
        self._address = address
        self._lock: IO[str] | None = None
        self._identity: tuple[int, int] | None = None

    def bind(self, server: grpc.aio.Server) -> str:
        path = self._address.path
        self._prepare_folder(path.parent)
        self._take_lock(path)
        self._refuse_foreign(path)
        made = _unused(path)
        try:
            # With the process' umask at 0o077, the file is nobody else's from its first moment.
            server.add_insecure_port(f"unix:{made}")
            self._hand_over(made)
            made.rename(path)
        except RuntimeError as error:
            raise StartError(f"can't listen on {self._address}: {error}") from error
        finally:
            made.unlink(missing_ok=True)
        self._identity = _identity(path)
        return str(self._address)

    def _hand_over(self, path: Path) -> None:
        if self._address.group is not None:
            try:
                os.chown(path, -1, self._address.group)
            except OSError as error:
                raise StartError(
                    f"can't give {self._address.path} to group {self._address.group}: {error.strerror}; "
                    "the daemon must be a member of it"
                ) from error
        path.chmod(self._address.mode)

    def lost(self) -> str | None:
        """What is wrong with the path, if it is no longer ours."""
        found = _identity(self._address.path)
        if found == self._identity:
            return None
        return f"{self._address.path} was {'removed' if found is None else 'replaced by another file'}"

    def close(self) -> None:
        """Removes the socket, if it is still ours, and gives the lock back."""
        if self._identity is not None and self.lost() is None:
            self._address.path.unlink()
        self._identity = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _prepare_folder(self, folder: Path) -> None:
        try:
            if not folder.exists():
                folder.mkdir(parents=True)
                # Whoever may open the socket by its group has to get there, whatever the process' umask leaves.
                os.chown(folder, -1, -1 if self._address.group is None else self._address.group)
                folder.chmod(0o750)
        except OSError as error:
            raise StartError(f"can't make the folder {folder} for the socket: {error.strerror}") from error
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise StartError(
                f"the socket's folder {folder} is writable for everybody, so anybody could put another socket in its "
                f"place: chmod o-w {folder}"
            )

    def _take_lock(self, path: Path) -> None:
        lock_path = path.with_name(path.name + ".lock")
        try:
            # O_NOFOLLOW: a link here would have us open, and create, a file of somebody else's choice.
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"can't open the lock file {lock_path}: {error.strerror}") from error
        lock = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = lock.read(20).strip()
            lock.close()
            raise StartError(
                f"{path} is in use by another daemon{f' (process {holder})' if holder else ''}: "
                "stop that one, or listen elsewhere"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _refuse_foreign(self, path: Path) -> None:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a socket"
            raise StartError(f"{path} exists and is {kind}: remove it, or listen elsewhere")


class TcpListener:
    def __init__(self, address: TcpAddress) -> None:
        self._address = address

    def bind(self, server: grpc.aio.Server) -> str:
        try:
            port = server.add_insecure_port(str(self._address))
        except RuntimeError as error:
            raise StartError(
                f"can't listen on {self._address}: is the port in use, or the address not this machine's?"
            ) from error
        return str(TcpAddress(self._address.host, port))

    def lost(self) -> str | None:
        return None

    def close(self) -> None:
        pass


Listener = UnixListener | TcpListener


def listener(address: UnixAddress | TcpAddress) -> Listener:
    return UnixListener(address) if isinstance(address, UnixAddress) else TcpListener(address)


def _unused(path: Path) -> Path:
    """A name beside it, seldom longer: a socket's path has 107 characters at most."""
    while (other := path.with_name(f".{secrets.token_hex(2)[1:]}")).exists():
        pass
    return other


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
