"""A small file that another process replaces while this process runs."""

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from milo_kube.credential import CredentialError

MAX_BYTES = 1 << 20
REREAD_EVERY_S = 60.0  # also if stat shows no change: some file systems store times in whole seconds
SETTLED_S = 5.0
"""A file that is written in place is not read again until it has been unchanged for this long, unless a caller forces
the read: the file may be incomplete, and a part of a token, address or CA bundle can be valid. A file that was renamed
into place is read at once."""


def file_version(status: os.stat_result) -> tuple[int, ...]:
    """Return values that differ between two versions of a file, whether it was replaced or written in place."""
    return status.st_ino, status.st_dev, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode


def read_regular_file(path: Path, size: int) -> bytes:
    """Return up to `size` bytes. Raises OSError, also for pipes and devices, which could block the event loop."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return stream.read(size)


class FileContent:
    """The last good content of a file. Reads are synchronous, because the files are small and usually on a tmpfs."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._good = b""
        self._seen: tuple[int, ...] = (0,)
        self._read_at = float("-inf")

    def read(self, *, reread: bool = False) -> bytes:
        """Read the file if a read is due, and return the last good content. Raises CredentialError if there is none."""
        try:
            status = self.path.stat()
            seen = file_version(status)
            now = self._clock()
            if reread or not self._good:
                is_due = True
            elif seen == self._seen:
                is_due = abs(now - self._read_at) >= REREAD_EVERY_S
            else:
                is_written_in_place = seen[0] == self._seen[0]
                is_due = not is_written_in_place or abs(now - status.st_mtime) >= SETTLED_S
            if is_due:
                content = read_regular_file(self.path, MAX_BYTES + 1)
                self._seen, self._read_at = seen, now
                if self._is_good(content):
                    self._good = content
        except OSError as error:
            if not self._good:
                raise CredentialError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if not self._good:
            raise CredentialError(f"{self.path} is empty, or larger than {MAX_BYTES} bytes")
        return self._good

    def _is_good(self, content: bytes) -> bool:
        return bool(content.strip()) and len(content) <= MAX_BYTES
