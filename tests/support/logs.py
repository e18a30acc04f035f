"""Captured log lines of the daemon."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from milo_discoveryd.logger import FIELDS, NAME


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, FIELDS, {})
        self.lines.append({"event": record.getMessage(), "log_level": record.levelname.lower(), **fields})


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
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
