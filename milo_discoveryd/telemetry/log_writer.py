"""Writes log lines from a bounded queue in a thread: logging neither blocks the event loop nor ends the process."""

import logging
import os
import threading
from collections import deque

QUEUE_LIMIT = 4 << 20
"""The maximum size of the queue in bytes. Lines that exceed it are dropped and counted."""
_FLUSH_WITHIN_S = 1.0


class LogWriter(logging.Handler):
    """A log handler that never blocks: a full disk, a closed pipe or a slow reader only loses lines."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_started = False
        self._unreported = 0
        self._is_torn = False
        """Whether the last line was only partly written."""
        self.dropped = 0
        """Number of dropped lines since the process began."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except (TypeError, ValueError, RecursionError):  # the arguments that a library passed do not fit its message
            self._drop(1)
            return
        with self._changed:
            if self._size + len(line) > QUEUE_LIMIT:
                self._drop(1)
                return
            self._lines.append(line)
            self._size += len(line)
            if not self._is_started:
                self._is_started = True
                threading.Thread(target=self._run, name="write the log", daemon=True).start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait for the queue to be written, with a short timeout."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, _FLUSH_WITHIN_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
                self._size -= len(line)
                self._is_writing = True
            if self._write(line):
                self._report_drops()
            else:
                self._drop(1)

    def _report_drops(self) -> None:
        """Write the number of dropped lines, once the lines that were queued before them are written."""
        with self._changed:
            count = 0 if self._lines else self._unreported
        if count and self._write(self._report(count)):
            with self._changed:
                self._unreported -= count

    def _report(self, count: int) -> bytes:
        record = logging.LogRecord(__name__, logging.ERROR, "", 0, "log lines dropped", None, None)
        record.fields = {"count": count}
        return self.format(record).encode() + b"\n"

    def _write(self, line: bytes) -> bool:
        # If the last line was only partly written, begin a new one.
        rest = b"\n" + line if self._is_torn else line
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            self._is_torn = self._is_torn or len(rest) < len(line)
            return False
        self._is_torn = False
        return True

    def _drop(self, count: int) -> None:
        with self._changed:
            self.dropped += count
            self._unreported += count
