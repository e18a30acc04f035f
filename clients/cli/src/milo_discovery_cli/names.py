"""Cluster names as arguments, with their completion in shells."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from milo_discovery.errors import DiscoveryError
from milo_discovery_cli.usage import did_you_mean

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from milo_discovery.client import DiscoveryClient

_COMPLETION_TIMEOUT = timedelta(seconds=2)


class ClusterName(click.ParamType[str]):
    """A cluster's name, completed with the names of the engaged clusters."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # noqa: PLC0415  (needed only in completions)

        from milo_discovery_cli.options import completion_connection  # noqa: PLC0415  (imports this module)

        try:
            listing = completion_connection(ctx, _COMPLETION_TIMEOUT).run(lambda client: client.list())
        except click.ClickException:
            return []  # an error message would disturb the shell's completion
        return [CompletionItem(cluster.name) for cluster in listing if cluster.name.startswith(incomplete)]


async def suggestion(client: DiscoveryClient, name: str) -> str:
    """Return a suggestion of engaged clusters with similar names, to append to an error; empty if there are none."""
    return did_you_mean(name.lower(), await _engaged_names(client))


async def why_not_selected(client: DiscoveryClient, name: str) -> str:
    """Return why a command's filters, of which one is this name, select no cluster."""
    names = await _engaged_names(client)
    if name in names:
        return "it does not match the other filters: --cluster-selector, --organization, --source"
    return f"it is not engaged{did_you_mean(name.lower(), names)}"


async def _engaged_names(client: DiscoveryClient) -> list[str]:
    try:
        return [cluster.name for cluster in await client.list()]
    except DiscoveryError:
        return []


NAME = ClusterName()
