"""The daemon's logger: a constant event and fields. `telemetry.logging` configures the output."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAME = "milo_discoveryd"
FIELDS = "fields"
"""Name of the attribute of a LogRecord that holds the fields."""


class Logger:
    """Logs through the standard library, so that records of libraries and of the daemon share one output."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(NAME)

    def debug(self, event: str, /, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.INFO):
            self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.WARNING):
            self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Log an error with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, is_failure=True)

    @contextmanager
    def contained(self, event: str, /, **fields: Any) -> Iterator[None]:
        """Log an unexpected exception of the block instead of raising it: what one cluster, caller or object causes
        must not end the task that handles all of them."""
        try:
            yield
        except Exception:  # noqa: BLE001
            self.exception(event, **fields)

    def _log(self, level: int, event: str, fields: dict[str, Any], *, is_failure: bool = False) -> None:
        caught = sys.exc_info() if is_failure else None
        # Logger.log() would search the stack for the caller's file and line, which are not used.
        record = logging.LogRecord(NAME, level, "", 0, event, None, caught)
        setattr(record, FIELDS, fields)
        self._logger.handle(record)


log = Logger()
