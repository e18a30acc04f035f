"""Log lines: one event each, a constant message and fields; JSON in a pod, readable on a terminal."""

import logging
import sys
from typing import TextIO

import structlog

log = structlog.get_logger()

_NUMBERS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Level:
    """What is logged, from the configured level on; or everything, for as long as somebody looks for something.

    Changed by a signal, which only who may end the daemon can send: a request over HTTP could come from anybody.
    """

    def __init__(self, configured: str) -> None:
        self.configured = configured
        self.current = configured

    def toggle(self) -> None:
        self.current = self.configured if self.current == "debug" else "debug"
        log.error("log level", is_now=self.current)  # at the highest level, to be seen at each

    def __call__(
        self, logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """As the first of the processors."""
        if _NUMBERS.get(method, logging.ERROR) < _NUMBERS[self.current]:
            raise structlog.DropEvent
        return event


def configure(level: str, form: str, to: TextIO | None = None) -> Level:
    """`form` is `json`, `console`, or `auto`: readable where `to` (standard error, if not given) is a terminal."""
    stream = to or sys.stderr
    threshold = Level(level)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    as_console = form == "console" or (form == "auto" and stream.isatty())
    render: list[structlog.typing.Processor] = (
        # Without locals: they may hold secrets.
        [_printable, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if as_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[threshold, *shared, *render],
        wrapper_class=_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library: in the same form, and only what somebody should act on.
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    return threshold


def _logger(threshold: Level) -> type[structlog.typing.FilteringBoundLogger]:
    """Whose lines for debugging cost next to nothing while nobody debugs: there is one for each change."""

    class Logger(structlog.make_filtering_bound_logger("debug")):  # type: ignore[misc]
        def debug(self, event: str, *words: object, **fields: object) -> object:
            return super().debug(event, *words, **fields) if threshold.current == "debug" else None

    return Logger


def _printable(
    logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """What callers and tenants have chosen is shown by a terminal, and not obeyed. JSON escapes it anyway."""
    return {key: _escaped(value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
