"""The commands that make one query: list, explain, status, shards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from milo_discovery.errors import ClusterNotFound
from milo_discovery.model import Cluster, SourceState
from milo_discovery_cli import jsonpath, templates, text_output
from milo_discovery_cli.exit_status import ExitStatus, print_message, printable
from milo_discovery_cli.names import NAME, suggestion
from milo_discovery_cli.options import ConnectionOptions, filtering, formatted, unary
from milo_discovery_cli.usage import did_you_mean

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.model import ClusterReport, Listing
    from milo_discovery.options import FilterOptions


_CAUSES = (
    "Milo has no project of this name, or it was deleted long ago, or the daemon's `rights` do not permit you to see it"
)


@click.command("list")
@filtering
@formatted("table", "wide", "json", "yaml", "name")
@click.option("--sort-by", metavar="PATH", help="Sort by a field of the JSON output, such as .labels.env.")
@unary
@click.pass_context
def list_clusters(
    ctx: click.Context,
    connection: ConnectionOptions,
    *,
    only: FilterOptions,
    form: str,
    headers: bool,
    sort_by: str | None,
) -> None:
    """List the engaged clusters. Exits with 7 if a source is stale, or has not been listed completely yet."""
    listing = connection.run(lambda client: client.list(**only))
    if sort_by is not None:
        listing = replace(listing, clusters=tuple(_sorted(listing.clusters, sort_by)))
    if form in {"table", "wide"}:
        if not listing.clusters:
            print_message(no_clusters(only))
        wide = form == "wide"
        columns = text_output.CLUSTER_COLUMNS_WIDE if wide else text_output.CLUSTER_COLUMNS
        _print_table(
            columns, [text_output.cluster_row(cluster, _now(), wide=wide) for cluster in listing], headers=headers
        )
    else:
        _print(form, listing, names=(cluster.name for cluster in listing), headers=headers)
    if warn_of_incompleteness(listing):
        ctx.exit(ExitStatus.NOT_SYNCED)


def warn_of_incompleteness(listing: Listing) -> bool:
    """Return whether a list of clusters lacks some or may be out of date, and print why."""
    if listing.pending_sources:
        pending = ", ".join(listing.pending_sources)
        print_message(f"the list lacks clusters: the daemon has not read a complete list of {pending} yet")
    for source in listing.sources or (listing.source,):
        if (warning := text_output.out_of_date(source, _now())) is not None:
            print_message(f"the list {warning}")
    return bool(listing.pending_sources) or listing.source.state is SourceState.STALE


def no_clusters(only: FilterOptions) -> str:
    """Say that a filter selects no cluster."""
    conditions = [f"selector {only['label_selector']!r}"] if only["label_selector"] else []
    if only["organizations"]:
        conditions.append(f"organization {' or '.join(map(repr, only['organizations']))}")
    if only["sources"]:
        conditions.append(f"source {' or '.join(map(repr, only['sources']))}")
    return f"no engaged cluster matches {' and '.join(conditions)}" if conditions else "no clusters are engaged"


@click.command("explain")
@click.argument("name", type=NAME)
@formatted("text", "json", "yaml")
@unary
def explain(connection: ConnectionOptions, *, name: str, form: str, headers: bool) -> None:
    """Explain why a project is or is not engaged."""
    report = _report(connection, name)
    if form == "text":
        for line in text_output.explanation(name, report, _now()):
            click.echo(line)
    else:
        _print(form, report, names=())


def _report(connection: ConnectionOptions, name: str) -> ClusterReport:
    """Get a cluster; for an unknown name, suggest names of engaged clusters, and list the possible causes."""

    async def get(client: DiscoveryClient) -> ClusterReport:
        try:
            return await client.get(name)
        except ClusterNotFound as error:
            error.args = (f"{error}: {_CAUSES}{await suggestion(client, name)}",)
            raise

    return connection.run(get)


@click.command("status")
@formatted("table", "json", "yaml")
@unary
@click.pass_context
def status(ctx: click.Context, connection: ConnectionOptions, *, form: str, headers: bool) -> None:
    """Show the daemon's state. Exits with 7 while it is not synced or a source is stale."""
    info = connection.run(lambda client: client.server_info())
    if form == "table":
        for line in text_output.status(info, _now()):
            click.echo(line)
    else:
        _print(form, info, names=())
    if not info.synced or info.source.state is SourceState.STALE:
        ctx.exit(ExitStatus.NOT_SYNCED)


@click.command("shards")
@formatted("table", "json", "yaml")
@unary
@click.pass_context
def shards(ctx: click.Context, connection: ConnectionOptions, *, form: str, headers: bool) -> None:
    """Show how the clusters are distributed over a group of daemons. Exits with 7 while the group is not settled."""
    info = connection.run(lambda client: client.server_info())
    sharding = info.sharding
    if sharding is None:
        print_message("the daemon is not sharded: sharding.group is not set")
        return
    if form == "table":
        for line in text_output.shards(sharding, info.counts.draining):
            click.echo(line)
        click.echo()
        _print_table(
            text_output.SHARD_COLUMNS, [text_output.shard_row(member) for member in sharding.members], headers=headers
        )
    else:
        _print(form, sharding, names=())
    if not sharding.settled:
        ctx.exit(ExitStatus.NOT_SYNCED)


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], *, headers: bool) -> None:
    if rows:
        for line in text_output.table([columns, *rows] if headers else rows):
            click.echo(line)


def _sorted(clusters: Iterable[Cluster], path: str) -> list[Cluster]:
    """Return the clusters, sorted by a field of their JSON; those without it come last."""
    from milo_discovery_cli import json_output  # noqa: PLC0415  (loads protobuf)

    names, first = json_output.field_names(Cluster), re.match(r"\$?\.?(\w+)", path)
    if first is not None and first[1] not in names:
        hint = did_you_mean(first[1].lower(), names) or f"; the fields are {', '.join(names)}"
        raise click.UsageError(f"--sort-by {path!r}: clusters have no field {first[1]}{hint}")

    def key(cluster: Cluster) -> tuple[bool, str]:
        found = templates.find(path, json_output.to_json(cluster))
        return not found, jsonpath.text(found[0]) if found else ""

    return sorted(clusters, key=key)


def _print(form: str, value: Any, *, names: Iterable[str], headers: bool = True) -> None:
    from milo_discovery_cli import json_output, yaml_output  # noqa: PLC0415  (loads protobuf)

    kind, _, template = form.partition("=")
    match kind:
        case "jsonpath":
            click.echo(templates.render(template, json_output.to_json(value)))
        case "custom-columns":
            columns, document = templates.Columns(template), json_output.to_json(value)
            items = document.get("clusters", [document])
            _print_table(columns.headers, [columns.row(item) for item in items], headers=headers)
        case "json":
            click.echo(json_output.document(json_output.to_json(value)))
        case "yaml":
            click.echo(yaml_output.document(json_output.to_json(value)))
        case _:
            for name in names:
                click.echo(printable(name))


def _now() -> datetime:
    return datetime.now(UTC)
