"""The errors that the commands of this package foresee, and their report on standard error."""

import asyncio
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

import click


class SandboxError(Exception):
    """A sandbox cannot start; the message says on what it failed and what to change."""


def run(program: str, main: Coroutine[Any, Any, None], *expected: type[Exception]) -> None:
    """Run a command; an expected error becomes a line on standard error and exit status 1."""
    status = 0
    reported: tuple[type[Exception], ...] = (SandboxError, *expected)
    try:
        try:
            asyncio.run(main)
        except* reported as group:
            status = 1
            for error in _leaves(group):
                for line in str(error).splitlines():
                    click.echo(f"{program}: {line}", err=True)
    except* KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
