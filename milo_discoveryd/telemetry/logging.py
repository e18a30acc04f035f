"""Log lines: one event each, a constant message and fields; JSON in a pod, readable on a terminal."""

import logging
import sys
from typing import TextIO

import structlog


def configure(level: str, form: str, to: TextIO | None = None) -> None:
    """`form` is `json`, `console`, or `auto`: readable where `to` (standard error, if not given) is a terminal."""
    stream = to or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    as_console = form == "console" or (form == "auto" and stream.isatty())
    render: list[structlog.typing.Processor] = (
        # Without locals: they may hold secrets.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if as_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
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
