"""Keeps the fleet in a file that is replaced atomically, at a rate that the disk can take.

A failure to write is logged and never ends the daemon.
"""

import asyncio
import os
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
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("state not read", path=str(self._path), problem=error.strerror)
            return None
        try:
            return decode(data, self._origin)
        except StateFileError as error:
            log.warning("state refused", path=str(self._path), problem=str(error))
            return None

    async def save_changes(self, fleet: Callable[[], Iterable[StoredCluster]], changed: WaitForChange) -> None:
        """Save what `fleet` returns after each change, and once more when cancelled.

        Before the first change there is nothing to save, and an earlier run's file stays.
        """
        succeeded = True
        await changed()
        try:
            while True:
                started = time.monotonic()
                succeeded = await asyncio.to_thread(self._write, self._stored(fleet), succeeded)
                await asyncio.sleep(max(WRITE_INTERVAL_S, WRITE_TIME_FACTOR * (time.monotonic() - started)))
                await changed()
        finally:
            self._write(self._stored(fleet), succeeded)

    def _stored(self, fleet: Callable[[], Iterable[StoredCluster]]) -> StoredFleet:
        return StoredFleet(self._origin, time.time(), tuple(fleet()))

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
