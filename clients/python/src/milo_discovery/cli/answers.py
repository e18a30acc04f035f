"""The commands that ask once: list, get, explain, status."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from milo_discovery.cli import wording
from milo_discovery.cli.endings import Exit, say
from milo_discovery.cli.options import Connection, filtering, formatted, one_call
from milo_discovery.model import SourceState

if TYPE_CHECKING:
    from milo_discovery._wire import FilterOptions


@click.command("list")
@one_call
@filtering
@formatted("table", "wide", "json", "yaml", "name")
def list_clusters(connection: Connection, *, only: FilterOptions, form: str, headers: bool) -> None:
    """List the engaged clusters."""
    listing = connection.run(lambda client: client.list(**only))
    if form in {"table", "wide"}:
        if not listing.clusters:
            say("no clusters are engaged")
        wide = form == "wide"
        columns = wording.CLUSTER_COLUMNS_WIDE if wide else wording.CLUSTER_COLUMNS
        _print_table(columns, [wording.cluster_row(each, _now(), wide=wide) for each in listing], headers=headers)
    else:
        _print(form, listing, names=(each.name for each in listing))
    if listing.source.state is SourceState.STALE:
        say(f"this may be out of date: the daemon's source is {wording.source(listing.source, _now())}")


@click.command("get")
@click.argument("name")
@one_call
@formatted("table", "wide", "json", "yaml", "name")
def get_cluster(connection: Connection, *, name: str, form: str, headers: bool) -> None:
    """Show what the daemon knows of a project, engaged or not."""
    report = connection.run(lambda client: client.get(name))
    if form in {"table", "wide"}:
        wide = form == "wide"
        columns = wording.REPORT_COLUMNS_WIDE if wide else wording.REPORT_COLUMNS
        _print_table(columns, [wording.report_row(name, report, _now(), wide=wide)], headers=headers)
    else:
        _print(form, report, names=[name])


@click.command("explain")
@click.argument("name")
@one_call
def explain(connection: Connection, *, name: str) -> None:
    """Say why a project is engaged, or why not."""
    report = connection.run(lambda client: client.get(name))
    for line in wording.explanation(name, report, _now()):
        click.echo(line)


@click.command("status")
@one_call
@formatted("table", "json", "yaml")
@click.pass_context
def status(ctx: click.Context, connection: Connection, *, form: str, headers: bool) -> None:
    """Show how the daemon is; its status is 7 while the daemon's view isn't complete and fresh."""
    info = connection.run(lambda client: client.server_info())
    if form == "table":
        for line in wording.status(info, _now()):
            click.echo(line)
    else:
        _print(form, info, names=())
    if not info.synced or info.source.state is SourceState.STALE:
        ctx.exit(Exit.NOT_SYNCED)


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], *, headers: bool) -> None:
    if rows:
        for line in wording.table([columns, *rows] if headers else rows):
            click.echo(line)


def _print(form: str, value: Any, *, names: Iterable[str]) -> None:
    from milo_discovery.cli import json_form, yaml_form  # noqa: PLC0415  (loads protobuf)

    match form:
        case "json":
            click.echo(json_form.document(json_form.to_json(value)))
        case "yaml":
            click.echo(yaml_form.document(json_form.to_json(value)))
        case _:
            for name in names:
                click.echo(name)


def _now() -> datetime:
    return datetime.now(UTC)
