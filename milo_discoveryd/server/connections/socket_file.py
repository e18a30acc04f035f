"""A Unix socket's file, ours alone.

Binding a Unix socket that another daemon serves succeeds, and takes its clients away without a word; and when the thief
stops, gRPC removes the path that by then belongs to somebody else. Hence the lock, held for life; the look every few
seconds whether the path is still ours; and a name that gRPC doesn't know: another one is bound, and then renamed.

Whoever may write in the folder could put another socket in its place, and be taken for this daemon: so nobody may but
its owner, who is us or root.
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
from milo_discoveryd.server.connections.listener import UnixAddress


class _Looks(msgspec.Struct, frozen=True):
    """All of a file that somebody else could have changed."""

    device: int
    inode: int
    mode: int
    owner: int
    group: int
    links: int


class SocketFile:
    def __init__(self, address: UnixAddress) -> None:
        self._address = address
        self._lock: IO[str] | None = None
        self._looks: _Looks | None = None

    def claim(self, bind: Callable[[Path], object]) -> None:
        """`bind` makes a socket at the path that it is given; then it is at ours, whole, with its mode and owners.

        Raises StartError. What `bind` raises as OSError or RuntimeError is why it can't listen.
        """
        path = self._address.path
        self._prepare_folder(path.parent)
        self._take_lock(path)
        self._refuse_foreign(path)
        made = _unused(path)
        try:
            # With the process' umask at 0o077, the file is nobody else's from its first moment.
            bind(made)
            self._hand_over(made)
            made.rename(path)
        except (RuntimeError, OSError) as error:
            raise StartError(f"can't listen on {self._address}: {error}") from error
        finally:
            made.unlink(missing_ok=True)
        self._looks = _looks(path)
        if (problem := self._unlike_asked()) is not None:
            raise StartError(f"{path} {problem}: its file system does not keep what it is told, so listen elsewhere")

    def lost(self) -> str | None:
        """What is wrong with the path, if it is no longer ours."""
        path, found = self._address.path, _looks(self._address.path)
        if found == self._looks:
            return None
        if found is None:
            return f"{path} was removed"
        before = self._looks
        if before is None or (found.device, found.inode) != (before.device, before.inode):
            return f"{path} was replaced by another file"
        return f"{path} was given another mode, owner or name"

    def close(self) -> None:
        """Removes the socket, if it is still ours, and gives the lock back."""
        if self._looks is not None and self.lost() is None:
            self._address.path.unlink()
        self._looks = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _hand_over(self, path: Path) -> None:
        owner, group = self._address.owner, self._address.group
        if owner is not None or group is not None:
            try:
                os.chown(path, -1 if owner is None else owner, -1 if group is None else group)
            except OSError as error:
                to = " and ".join(
                    f"{what} {number}" for what, number in (("user", owner), ("group", group)) if number is not None
                )
                help_ = "the daemon must be root" if owner is not None else "the daemon must be a member of it"
                raise StartError(f"can't give {self._address.path} to {to}: {error.strerror}; {help_}") from error
        path.chmod(self._address.mode)

    def _unlike_asked(self) -> str | None:
        asked, found = self._address, self._looks
        if found is None:
            return "is gone as soon as it was made"
        if stat.S_IMODE(found.mode) != asked.mode:
            return f"has mode {stat.S_IMODE(found.mode):#o} where {asked.mode:#o} was asked for"
        if asked.owner not in (None, found.owner) or asked.group not in (None, found.group):
            return f"belongs to user {found.owner} and group {found.group}, which was not asked for"
        return None if found.links == 1 else f"has {found.links} names"

    def _prepare_folder(self, folder: Path) -> None:
        try:
            if not folder.exists():
                folder.mkdir(parents=True)
                # Whoever may open the socket by its group has to get there, whatever the process' umask leaves.
                os.chown(folder, -1, -1 if self._address.group is None else self._address.group)
                folder.chmod(0o750)
        except OSError as error:
            raise StartError(f"can't make the folder {folder} for the socket: {error.strerror}") from error
        if (problem := folder_problem(folder)) is not None:
            raise StartError(": ".join(problem))

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


def folder_problem(folder: Path) -> tuple[str, str] | None:
    """Why a socket in this folder would not be safely ours, and the mend."""
    found = folder.lstat()
    who = None
    if stat.S_ISLNK(found.st_mode):
        return f"the socket's folder {folder} is a symbolic link", f"listen in {folder.resolve()} itself"
    if not stat.S_ISDIR(found.st_mode):
        return f"the socket's folder {folder} is not a folder", "remove it, or listen elsewhere"
    if found.st_uid not in (0, os.geteuid()):
        who, mend = f"belongs to user {found.st_uid}, who", "listen in a folder of ours, or of root's"
    elif found.st_mode & stat.S_IWOTH:
        who, mend = "is writable for everybody, so anybody", f"chmod o-w {folder}, or listen in a folder in it"
    elif found.st_mode & stat.S_IWGRP and not found.st_mode & stat.S_ISVTX:
        group = f"is writable for group {found.st_gid}, so any of it"
        who, mend = group, f"chmod g-w {folder}, or listen in a folder in it"
    return None if who is None else (f"the socket's folder {folder} {who} could put another socket in its place", mend)


def _unused(path: Path) -> Path:
    """A name beside it, seldom longer: a socket's path has 107 characters at most."""
    while (other := path.with_name(f".{secrets.token_hex(2)[1:]}")).exists():
        pass
    return other


def _looks(path: Path) -> _Looks | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return _Looks(found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_nlink)
