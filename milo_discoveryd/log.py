"""The daemon's logger: a constant event, and fields. `telemetry.logging` decides where lines go and how they look."""

import logging
import sys
from typing import Any

NAME = "milo_discoveryd"
FIELDS = "fields"
"""The attribute of a LogRecord that holds them."""


class Logger:
    """Makes records of the standard library's logging, which libraries use as well."""

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
        """Within `except`: with the traceback."""
        self._log(logging.ERROR, event, fields, is_failure=True)

    def _log(self, level: int, event: str, fields: dict[str, Any], *, is_failure: bool = False) -> None:
        caught = sys.exc_info() if is_failure else None
        # Not by Logger.log(), which searches the stack for the caller's file and line.
        record = logging.LogRecord(NAME, level, "", 0, event, None, caught)
        setattr(record, FIELDS, fields)
        self._logger.handle(record)


log = Logger()
