"""Formats usage errors: one line each, with a suggestion if possible."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

_MAX_SUGGESTIONS = 3


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return a suggestion to append to an error message; empty if no known name is similar.

    A similar name that is a prefix of the given one is preferred: --dir for --directory.
    """
    similar = difflib.get_close_matches(name, list(known), n=_MAX_SUGGESTIONS, cutoff=cutoff)
    suggested = [known for known in similar if name.startswith(known)] or similar
    return f"; did you mean {' or '.join(suggested)}?" if suggested else ""


def print_usage_error(program: str, error: click.UsageError) -> None:
    """Print the error with the command to see for help."""
    where = program if error.ctx is None else error.ctx.command_path
    if isinstance(error, click.NoSuchOption):
        problem = error.message.rstrip(".") + did_you_mean(error.option_name, error.possibilities or ())
    else:
        problem = error.format_message().rstrip(".")
    click.echo(f"{program}: {problem}{' See' if problem.endswith('?') else '; see'} {where} --help", err=True)
