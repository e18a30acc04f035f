"""The file of a Unix socket, which must belong to this daemon alone.

Binding the path of a socket that another daemon serves would silently take over the clients of that daemon. And gRPC
removes its path when it stops, even if the path belongs to another daemon by then. So the daemon holds a lock while it
runs, checks the path every few seconds, and binds a temporary name that is then renamed.

A process that can write to the directory could replace the socket and impersonate the daemon. So the directory must
belong to the daemon's user or to root, and only its owner may have write access. If the sticky bit is set, its group
may have write access too.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.server.connections.listener import UnixSocket

_CHANGED = "another process modified the directory of the socket; listen in one that only the daemon can write to"
_NOT_STORED = "its file system does not store modes and owners; listen on another file system"


class _FileState(msgspec.Struct, frozen=True):
    """The properties of the file that another process could change."""

    device: int
    inode: int
    mode: int
    owner: int
    group: int
    links: int


class SocketFile:
    def __init__(self, address: UnixSocket) -> None:
        self._address = address
        self._lock: IO[str] | None = None
        self._state: _FileState | None = None

    def claim(self, bind: Callable[[Path], object]) -> None:
        """Create the socket atomically, with its mode and owner. `bind` creates a socket at the path in its argument.

        Raises StartError. `bind` may raise OSError or RuntimeError.
        """
        path = self._address.path
        self._prepare_directory(path.parent)
        self._take_lock(path)
        self._require_socket(path)
        made = _unused(path)
        try:
            # The umask of the process is 0o077, so other users cannot access the file before its mode is set.
            bind(made)
            self._set_owner_and_mode(made)
            made.rename(path)
        except (RuntimeError, OSError) as error:
            raise StartError(f"can't listen on {self._address}: {error}") from error
        finally:
            made.unlink(missing_ok=True)
        self._state = _file_state(path)
        if (problem := self._difference_from_settings()) is not None:
            raise StartError(f"{path} {problem}")

    def lost(self) -> str | None:
        """Return what is wrong with the path, or None."""
        path, present = self._address.path, _file_state(self._address.path)
        if present == self._state:
            return None
        if present is None:
            return f"{path} was removed"
        before = self._state
        if before is None or (present.device, present.inode) != (before.device, before.inode):
            return f"{path} was replaced by another file"
        return f"the mode, owner, group or number of hard links of {path} was changed"

    def close(self) -> None:
        """Remove the socket unless it was replaced, and release the lock."""
        if self._state is not None and self.lost() is None:
            self._address.path.unlink()
        self._state = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _set_owner_and_mode(self, path: Path) -> None:
        owner, group = self._address.owner, self._address.group
        if owner is not None or group is not None:
            try:
                os.chown(path, -1 if owner is None else owner, -1 if group is None else group)
            except OSError as error:
                to = " and ".join(
                    f"{what} {number}" for what, number in (("user", owner), ("group", group)) if number is not None
                )
                help_ = "the daemon must run as root" if owner is not None else "the daemon must be in the group"
                message = f"can't set the owner of {self._address.path} to {to}: {error.strerror}; {help_}"
                raise StartError(message) from error
        path.chmod(self._address.mode)

    def _difference_from_settings(self) -> str | None:
        asked, state = self._address, self._state
        if state is None:
            return f"disappeared as soon as it was created: {_CHANGED}"
        if stat.S_IMODE(state.mode) != asked.mode:
            return f"has mode {stat.S_IMODE(state.mode):#o} instead of {asked.mode:#o}: {_NOT_STORED}"
        if asked.owner not in (None, state.owner) or asked.group not in (None, state.group):
            return f"belongs to user {state.owner} and group {state.group}, not to the configured ones: {_NOT_STORED}"
        return None if state.links == 1 else f"has {state.links} hard links: {_CHANGED}"

    def _prepare_directory(self, directory: Path) -> None:
        try:
            if not directory.exists():
                directory.mkdir(parents=True)
                # With the umask, the socket's group could not access the directory.
                os.chown(directory, -1, -1 if self._address.group is None else self._address.group)
                directory.chmod(0o750)
        except OSError as error:
            raise StartError(f"can't create the socket's directory {directory}: {error.strerror}") from error
        if (problem := directory_problem(directory)) is not None:
            raise StartError(": ".join(problem))

    def _take_lock(self, path: Path) -> None:
        lock_path = path.with_name(path.name + ".lock")
        try:
            # O_NOFOLLOW: with a symbolic link here, another user could make the daemon create a file elsewhere.
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"can't open the lock file {lock_path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StartError(f"the lock file {lock_path} is not a regular file: remove it, or listen on another path")
        lock = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read(20).strip()
            lock.close()
            raise StartError(
                f"{path} is in use by another daemon{f' (process {holder})' if holder else ''}: "
                "stop it, or listen on another path"
            ) from None
        except OSError as error:
            lock.close()
            raise StartError(f"can't lock {lock_path}: {error.strerror}") from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _require_socket(self, path: Path) -> None:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a socket"
            raise StartError(f"{path} exists and is {kind}: remove it, or listen on another path")


_SUBDIRECTORY = "listen in a subdirectory, which the daemon creates: unix://{directory}/milo-discovery/discovery.sock"
"""The fix for a shared directory such as /tmp, whose mode must not be changed."""


def directory_problem(directory: Path) -> tuple[str, str] | None:
    """Return what is wrong with a socket's directory, and the fix; None if no other user could replace the socket."""
    state = directory.lstat()
    how = None
    if stat.S_ISLNK(state.st_mode):
        return f"the socket's directory {directory} is a symbolic link", f"listen in {directory.resolve()} itself"
    if not stat.S_ISDIR(state.st_mode):
        return f"the socket's directory {directory} is not a directory", "remove it, or listen on another path"
    if state.st_uid not in (0, os.geteuid()):
        how, fix = f"belongs to user {state.st_uid}, which", "listen in a directory owned by the daemon's user or root"
    elif state.st_mode & stat.S_IWOTH:
        how, fix = "is world-writable, so any user", _SUBDIRECTORY.format(directory=directory)
    elif state.st_mode & stat.S_IWGRP and not state.st_mode & stat.S_ISVTX:
        how = f"is writable by group {state.st_gid}, so its members"
        fix = _SUBDIRECTORY.format(directory=directory)
    return None if how is None else (f"the socket's directory {directory} {how} could replace the socket", fix)


def _unused(path: Path) -> Path:
    """Return an unused name in the same directory. It is short, because a socket path has at most 107 characters."""
    while (other := path.with_name(f".{secrets.token_hex(2)[1:]}")).exists():
        pass
    return other


def _file_state(path: Path) -> _FileState | None:
    try:
        state = path.lstat()
    except FileNotFoundError:
        return None
    return _FileState(state.st_dev, state.st_ino, state.st_mode, state.st_uid, state.st_gid, state.st_nlink)
