"""The text log of an operator, which contains what API servers send."""

import logging
import sys

from milo_controllers.app import TextFormatter
from milo_controllers.logs import log_with_stack


def formatted(message: str, *arguments: object, exception: BaseException | None = None) -> list[str]:
    error = None if exception is None else (type(exception), exception, exception.__traceback__)
    record = logging.LogRecord("operator", logging.ERROR, "", 0, message, arguments, error)
    return TextFormatter().format(record).split("\n")


def test_control_characters_and_line_ends_in_a_message_are_escaped() -> None:
    forged = "refused\n2026-01-01 00:00:00 INFO operator: forged\r\x1b[2J\u2028\u202e"
    [line] = formatted("reconciling %s failed: %s", "default/one", forged)
    assert line.endswith(r"refused\n2026-01-01 00:00:00 INFO operator: forged\r\x1b[2J\u2028\u202e")


def test_lines_of_an_exception_are_indented_and_escaped() -> None:
    error = OSError("refused\n2026-01-01 00:00:00 INFO operator: forged\x1b[2J")
    first, *others = formatted("failed", exception=error)
    assert first.endswith("operator: failed")
    assert all(line.startswith("    ") for line in others)
    assert others[-1] == r"    2026-01-01 00:00:00 INFO operator: forged\x1b[2J"


def test_stack_of_another_task_is_logged_on_indented_lines() -> None:
    records: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    log = logging.Logger("operator")
    log.addHandler(Kept())
    log_with_stack(log, logging.WARNING, f"File {sys.executable}\n  sleep", "blocked for %d s", 3)
    assert TextFormatter().format(records[0]).split("\n")[1:] == [f"    File {sys.executable}", "      sleep"]
