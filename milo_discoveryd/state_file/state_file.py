"""Stores the fleet in a file that is replaced atomically, at a rate that the disk can sustain.

A failure to write is logged and never ends the daemon.
"""

import asyncio
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

from milo_discoveryd.logger import log
from milo_discoveryd.state_file.encoding import (
    StateFileError,
    StateOrigin,
    StoredFleet,
    decode,
    write,
)

FILE = "fleet.state"
FILE_OF = "fleet-%s.state"
WRITE_INTERVAL_S = 5.0
WRITE_TIME_FACTOR = 20
"""The pause after a write, as a multiple of the duration of the write."""

WaitForChange = Callable[[], Awaitable[None]]
"""Waits until there is something new to save."""


class StateFile:
    def __init__(self, directory: Path, origin: StateOrigin, source: str = "", *, max_bytes: int | None = None) -> None:
        """`source` is the name of the source; empty if it has none. A file longer than `max_bytes` is not read."""
        self._path = directory / (FILE_OF % source if source else FILE)
        self.origin = origin
        self._max_bytes = max_bytes
        self._write_lock = threading.Lock()
        self._last_succeeded = True

    def load(self) -> StoredFleet | None:
        """Return the stored fleet, or None if the file does not exist or, with a warning in the log, cannot be used."""
        try:
            data = _read(self._path, self._max_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("state not read", path=str(self._path), problem=error.strerror)
            return None
        except StateFileError as error:
            log.warning("state refused", path=str(self._path), problem=str(error))
            return None
        try:
            return decode(data, self.origin)
        except StateFileError as error:
            log.warning("state refused", path=str(self._path), problem=str(error))
            return None

    async def loaded(self) -> StoredFleet | None:
        """Return the result of `load`, which takes a second for a file of 100 MiB, while other tasks run."""
        return await asyncio.to_thread(self.load)

    async def save_changes(self, fleet: Callable[[], StoredFleet], changed: WaitForChange) -> None:
        """Save what `fleet` returns after each change and each failed write, and once more when canceled.

        Before the first change there is nothing to save, and an earlier run's file stays.
        """
        await changed()
        try:
            while True:
                started = time.monotonic()
                succeeded = await asyncio.to_thread(self._write, fleet())
                await asyncio.sleep(max(WRITE_INTERVAL_S, WRITE_TIME_FACTOR * (time.monotonic() - started)))
                if succeeded:
                    await changed()
        finally:
            self._write(fleet())

    def _write(self, fleet: StoredFleet) -> bool:
        """Write and sync a temporary file and rename it, so that a reader finds either the old or the new state."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        with self._write_lock:  # the last write may begin while the one before is still in progress
            last_succeeded, self._last_succeeded = self._last_succeeded, False
            try:
                self._replace(temporary, fleet)
            except OSError as error:
                if last_succeeded:
                    log.warning("state not written", path=str(self._path), problem=error.strerror)
                return False
            except Exception:  # one object that cannot be encoded
                if last_succeeded:
                    log.exception("state not written", path=str(self._path))
                return False
            self._last_succeeded = True
            if not last_succeeded:
                log.info("state written again", path=str(self._path))
            return True

    def _replace(self, temporary: Path, fleet: StoredFleet) -> None:
        # An existing file is not used: opening a pipe would wait for a reader, and another user could own a file.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            write(fleet, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def stored_fleets(directory: Path) -> Iterator[tuple[str, StoredFleet]]:
    """Yield the fleets that can be used, with the names of their sources, regardless of which daemon wrote them."""
    head, tail = (directory / FILE_OF).name.split("%s")
    for path in (*sorted(directory.glob(FILE_OF % "*")), directory / FILE):
        try:
            fleet = decode(_read(path), None)
        except (OSError, StateFileError):
            continue
        yield path.name.removeprefix(head).removesuffix(tail) if path.name != FILE else "", fleet


def _read(path: Path, max_bytes: int | None = None) -> bytes | mmap:
    """Return the file's content, which is not copied: it can be as large as the fleet.

    Raises StateFileError if it is too long, or if another user could have written it.
    """
    if problem := directory_problem(path.parent):
        raise StateFileError(problem)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StateFileError("not a regular file")
        if problem := _writers_problem(status, "the file", allow_sticky=False):
            raise StateFileError(problem)
        if max_bytes is not None and status.st_size > max_bytes:
            raise StateFileError(f"{status.st_size} bytes long; at most {max_bytes} are read")
        return mmap(file.fileno(), 0, access=ACCESS_READ) if status.st_size else b""


def prepare_directory(directory: Path) -> None:
    """Create the directory if it is missing, for the daemon's user alone."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        log.warning("state directory not created", path=str(directory), problem=error.strerror)


def directory_problem(directory: Path) -> str | None:
    """Return why a state file in this directory would not be used, because other users could have put it there."""
    return _writers_problem(directory.stat(), "the directory", allow_sticky=True)


def _writers_problem(status: os.stat_result, what: str, *, allow_sticky: bool) -> str | None:
    """Return a problem if another user owns the file or directory, or may write to it: that user could choose where the
    daemon connects."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"{what} belongs to user {status.st_uid}, not to the daemon's user {os.geteuid()}"
    if allow_sticky and status.st_mode & stat.S_ISVTX:
        return None
    mode = f"remove that permission (mode {status.st_mode & 0o7777:o})"
    if status.st_mode & stat.S_IWOTH:
        return f"{what} is world-writable: {mode}"
    # The kubelet gives volumes to the pod's fsGroup, which is one of the daemon's groups.
    if status.st_mode & stat.S_IWGRP and status.st_gid not in (os.getegid(), *os.getgroups()):
        return f"group {status.st_gid}, which the daemon is not in, may write to {what}: {mode}"
    return None
