"""Expected errors of this package's commands, and their report on standard error."""

import asyncio
import os
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import click


class CommandError(Exception):
    """A command cannot continue; the message says what failed and what to change."""


class OutputError(CommandError):
    """Standard output cannot be written. The message is empty if the reader closed the pipe."""

    def __init__(self, error: OSError) -> None:
        went_away = isinstance(error, BrokenPipeError)
        super().__init__("" if went_away else f"cannot write to standard output: {error.strerror or error}")


@contextmanager
def writing() -> Iterator[None]:
    """Convert errors of standard output to OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


def write(text: str) -> None:
    with writing():
        sys.stdout.write(text)
        sys.stdout.flush()


def run(program: str, main: Coroutine[Any, Any, None], *expected: type[Exception]) -> None:
    """Run a command, and exit. Expected errors are reported on standard error, with exit status 1."""
    status = 0
    reported: tuple[type[Exception], ...] = (CommandError, *expected)
    try:
        try:
            asyncio.run(main)
        except* reported as group:
            status = 1
            for error in _leaves(group):
                if isinstance(error, OutputError):
                    _discard_output()
                for line in str(error).splitlines():
                    click.echo(f"{program}: {line}", err=True)
    except* KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _discard_output() -> None:
    """Redirect standard output to /dev/null: a flush of buffered data at exit would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
