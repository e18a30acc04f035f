"""Formats log lines as JSON or for a terminal. Each line is an event: a constant message, and fields.

The JSON key of the message is `message`, which log tools display.
"""

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from milo_discoveryd.logger import FIELDS, NAME, log
from milo_discoveryd.telemetry.log_writer import LogWriter

_NUMBERS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_EVENT_WIDTH = 30


class Logging:
    """The log while the daemon runs: its level, and what was dropped.

    The level is changed by a signal, because only a user that may terminate the daemon can send one, whereas anyone
    could send HTTP requests.
    """

    def __init__(self, level: str, writer: LogWriter) -> None:
        self.configured = level
        self.current = level
        self._writer = writer

    @property
    def dropped(self) -> int:
        """Number of dropped lines since the process began."""
        return self._writer.dropped

    def flush(self) -> None:
        """Wait for logged lines to be written, with a short timeout."""
        self._writer.flush()

    def toggle(self) -> None:
        """Switch between logging everything and the configured level."""
        self.current = self.configured if self.current == "debug" else "debug"
        logging.getLogger(NAME).setLevel(_NUMBERS[self.current])
        log.error("log level changed", is_now=self.current)  # as an error, so that every level shows it


def configure(level: str, form: str, to: TextIO | None = None) -> Logging:
    """Configure the output. `form` is `json`, `console` or `auto`: `auto` means `console` if `to` (by default standard
    error) is a terminal, otherwise `json`.
    """
    stream = to or sys.stderr
    as_console = form == "console" or (form == "auto" and stream.isatty())
    writer = LogWriter(os.dup(stream.fileno()))
    writer.setFormatter(_Console() if as_console else _Json())
    # Libraries log only what an operator should act on.
    logging.basicConfig(level=logging.WARNING, handlers=[writer], force=True)
    logging.getLogger(NAME).setLevel(_NUMBERS[level])
    return Logging(level, writer)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"timestamp": _time(record), "level": _level(record), "message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            entry["exception"] = _traceback(record)
        return json.dumps(entry, default=repr)


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={printable(_shown(value))}" for name, value in _fields(record).items())
        event = printable(record.getMessage())
        line = f"{_time(record)} {_level(record):<7} {event:<{_EVENT_WIDTH}} {fields}".rstrip()
        return f"{line}\n{_traceback(record)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")


def _level(record: logging.LogRecord) -> str:
    return record.levelname.lower()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = getattr(record, FIELDS, {})
    return found


def _traceback(record: logging.LogRecord) -> str:
    """Format the exception without local variables, which may contain secrets."""
    assert record.exc_info is not None
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value and " " not in value else repr(value)


def printable(text: str) -> str:
    """Escape those characters in text from tenants and callers that could hide or rearrange parts of the log."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
