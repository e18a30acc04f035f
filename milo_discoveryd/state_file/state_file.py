"""Keeps the fleet in a file that is replaced atomically, at a rate that the disk can take.

A failure to write is logged and never ends the daemon.
"""

import asyncio
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from milo_discoveryd.log import log
from milo_discoveryd.state_file.encoding import (
    StateFileError,
    StateOrigin,
    StoredCluster,
    StoredFleet,
    StoredObject,
    decode,
    encode,
)

FILE = "fleet.state"
WRITE_INTERVAL_S = 5.0
WRITE_TIME_FACTOR = 20
"""After a write that took one second, the next one waits for this many."""

WaitForChange = Callable[[], Awaitable[None]]
"""Waits until there is something new to save."""


class StateFile:
    def __init__(self, directory: Path, origin: StateOrigin) -> None:
        self._path = directory / FILE
        self._origin = origin
        self._write_lock = threading.Lock()

    def load(self) -> StoredFleet | None:
        """Return the stored fleet, or None (with a warning in the log) if there is none that can be used."""
        try:
            data = self._read()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("state not read", path=str(self._path), problem=error.strerror)
            return None
        except StateFileError as error:
            log.warning("state refused", path=str(self._path), problem=str(error))
            return None
        try:
            return decode(data, self._origin)
        except StateFileError as error:
            log.warning("state refused", path=str(self._path), problem=str(error))
            return None

    def _read(self) -> bytes:
        """Read the file if nobody else can have written it. Raises StateFileError."""
        _check_writers(self._path.parent.stat(), "the directory", allow_sticky=True)
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise StateFileError("not a regular file")
            _check_writers(found, "the file", allow_sticky=False)
            return file.read()

    async def save_changes(
        self,
        fleet: Callable[[], Iterable[StoredCluster]],
        changed: WaitForChange,
        highest_version: Callable[[], str] = lambda: "",
        objects: Callable[[], Iterable[StoredObject]] = tuple,
    ) -> None:
        """Save what `fleet` and `objects` return after each change, and once more when cancelled.

        Before the first change there is nothing to save, and an earlier run's file stays.
        """

        def stored() -> StoredFleet:
            return StoredFleet(self._origin, time.time(), tuple(fleet()), highest_version(), tuple(objects()))

        succeeded = True
        await changed()
        try:
            while True:
                started = time.monotonic()
                succeeded = await asyncio.to_thread(self._write, stored(), succeeded)
                await asyncio.sleep(max(WRITE_INTERVAL_S, WRITE_TIME_FACTOR * (time.monotonic() - started)))
                await changed()
        finally:
            self._write(stored(), succeeded)

    def _write(self, fleet: StoredFleet, last_succeeded: bool) -> bool:
        """Write and sync a temporary file and rename it, so that a reader finds either the old or the new state."""
        temporary = self._path.with_name(f"{FILE}.new")
        try:
            with self._write_lock:  # the last write may begin while the one before is still in progress
                self._replace(temporary, encode(fleet))
        except OSError as error:
            if last_succeeded:
                log.warning("state not written", path=str(self._path), problem=error.strerror)
            return False
        if not last_succeeded:
            log.info("state written again", path=str(self._path))
        return True

    def _replace(self, temporary: Path, data: bytes) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _check_writers(found: os.stat_result, what: str, *, allow_sticky: bool) -> None:
    """Refuse what another user owns or may write to: the daemon would connect where that user says."""
    if found.st_uid not in (os.geteuid(), 0):
        raise StateFileError(f"{what} belongs to user {found.st_uid}, not to the daemon's user {os.geteuid()}")
    is_sticky = allow_sticky and bool(found.st_mode & stat.S_ISVTX)
    if found.st_mode & stat.S_IWOTH and not is_sticky:
        raise StateFileError(
            f"every user may write to {what}: remove that permission (mode {found.st_mode & 0o7777:o})"
        )
