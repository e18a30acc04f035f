"""Cluster names as arguments: completion in shells, and suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COMPLETION_TIMEOUT = timedelta(seconds=2)
_MAX_SUGGESTIONS = 3


class ClusterName(click.ParamType[str]):
    """A cluster's name, completed with the names of the engaged clusters."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # noqa: PLC0415  (needed only in completions)

        from milo_discovery.cli.options import completion_connection  # noqa: PLC0415  (imports this module)

        try:
            listing = completion_connection(ctx, _COMPLETION_TIMEOUT).run(lambda client: client.list())
        except click.ClickException:
            return []  # a completion prints no errors
        return [CompletionItem(each.name) for each in listing if each.name.startswith(incomplete)]


NAME = ClusterName()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to an error message; empty if no known name is similar."""
    similar = difflib.get_close_matches(name, list(known), n=_MAX_SUGGESTIONS)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""
