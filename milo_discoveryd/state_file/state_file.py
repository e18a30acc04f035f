"""Keeps an image of the fleet in a file: whole or not at all, and never more often than the disk can take.

Nothing here is worth the daemon's life: where the disk is full or read-only, it says so and runs on.
"""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

from milo_discoveryd.state_file.encoding import StateFileError, StateOrigin, StoredCluster, StoredFleet, decode, encode

log = structlog.get_logger()

FILE = "fleet.state"
EVERY_S = 5.0
SHARE = 20
"""An image that took a second to write is not written again for so many."""

WaitForChange = Callable[[], Awaitable[None]]
"""Waits until there is something new to keep."""


class StateFile:
    def __init__(self, directory: Path, origin: StateOrigin) -> None:
        self._path = directory / FILE
        self._origin = origin
        self._writing = threading.Lock()

    def recall(self) -> StoredFleet | None:
        """What was kept before; None where there is nothing that can be relied on, which is said."""
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

    async def keep(self, fleet: Callable[[], Iterable[StoredCluster]], changed: WaitForChange) -> None:
        """Writes what `fleet` gives after each change, until it is cancelled; then once more.

        Before the first there is nothing to keep, and what an earlier run kept stays.
        """
        well = True
        await changed()
        try:
            while True:
                started = time.monotonic()
                well = await asyncio.to_thread(self._write, self._image(fleet), well)
                await asyncio.sleep(max(EVERY_S, SHARE * (time.monotonic() - started)))
                await changed()
        finally:
            self._write(self._image(fleet), well)

    def _image(self, fleet: Callable[[], Iterable[StoredCluster]]) -> StoredFleet:
        return StoredFleet(self._origin, time.time(), tuple(fleet()))

    def _write(self, image: StoredFleet, was_well: bool) -> bool:
        """Beside it, to the disk, and then into its place: whoever reads it finds one image or the other."""
        beside = self._path.with_name(f"{FILE}.new")
        try:
            with self._writing:  # the last image may come while the one before is still being written
                self._replace(beside, encode(image))
        except OSError as error:
            if was_well:
                log.warning("state not written", path=str(self._path), problem=error.strerror)
            return False
        if not was_well:
            log.info("state written again", path=str(self._path))
        return True

    def _replace(self, beside: Path, data: bytes) -> None:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
