"""Captured log lines of the daemon."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from milo_discoveryd.logger import FIELDS, NAME


class Lines(list[dict[str, Any]]):
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        """The lines of the level `error`, with the exceptions: none in a simulation, whose faults are all expected."""


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines = Lines()

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, FIELDS, {})
        self.lines.append({"event": record.getMessage(), "log_level": record.levelname.lower(), **fields})
        if record.levelno >= logging.ERROR:
            stack = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            self.lines.errors.append(f"log: {record.getMessage()}: {fields} {stack}")


@contextmanager
def capture_logs() -> Iterator[Lines]:
    """Capture the daemon's log lines of every level."""
    logger, lines = logging.getLogger(NAME), _Lines()
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:], logger.propagate = [lines], False
    logger.setLevel(logging.DEBUG)
    try:
        yield lines.lines
    finally:
        logger.handlers[:], level, logger.propagate = before
        logger.setLevel(level)
