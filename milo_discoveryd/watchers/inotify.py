"""Notifications of changes in directories, from Linux. There are none on other systems, or once the kernel's limit on
watches is reached."""

import asyncio
import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# From <sys/inotify.h>. IN_MODIFY is left out: a file that is being written is of no use before it is closed.
_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x01000000
_MASK = _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_READ_BYTES = 64 << 10
_EVENT = struct.Struct("iIII")
"""Watch, mask, cookie, and the length of the name that follows."""


class Inotify:
    """Sets `changed` when something changes in one of the watched directories."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._renamed: set[str] = set()
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = -1
        start = getattr(self._library, "inotify_init1", None)
        if start is not None:
            self._descriptor = start(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._descriptor, self._drain)

    @property
    def is_available(self) -> bool:
        return self._descriptor >= 0

    def watch(self, directories: Iterable[Path]) -> bool:
        """Watch those of the directories that exist. Return whether all of them are watched."""
        if not self.is_available:
            return False
        # A directory that is watched already keeps its watch; a directory that was replaced gets another watch.
        results = [
            self._library.inotify_add_watch(self._descriptor, os.fsencode(directory), _MASK)
            for directory in directories
        ]
        return all(result >= 0 for result in results)

    def take_renamed(self) -> frozenset[str]:
        """Return the names to which files were renamed since the last call.

        Only these events distinguish a renamed, complete file from one that is being written: the inode may be new in
        both cases, and the modification times are equal if a rename follows a write within one clock tick.
        """
        renamed = frozenset(self._renamed)
        self._renamed.clear()
        return renamed

    def close(self) -> None:
        if self.is_available:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _drain(self) -> None:
        """Read all notifications. Only names are used: what changed is found by comparing the files."""
        with suppress(BlockingIOError):
            while events := os.read(self._descriptor, _READ_BYTES):
                offset = 0
                while offset < len(events):
                    _, mask, _, length = _EVENT.unpack_from(events, offset)
                    offset += _EVENT.size + length
                    if mask & _MOVED_TO:
                        self._renamed.add(os.fsdecode(events[offset - length : offset].rstrip(b"\0")))
        self.changed.set()
