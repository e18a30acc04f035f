"""The commands that make one query: list, get, explain, status."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from milo_discovery.cli import text_output
from milo_discovery.cli.exit_status import ExitStatus, print_message
from milo_discovery.cli.options import Connection, filtering, formatted, unary
from milo_discovery.model import SourceState

if TYPE_CHECKING:
    from milo_discovery._convert import FilterOptions


@click.command("list")
@unary
@filtering
@formatted("table", "wide", "json", "yaml", "name")
def list_clusters(connection: Connection, *, only: FilterOptions, form: str, headers: bool) -> None:
    """List the engaged clusters."""
    listing = connection.run(lambda client: client.list(**only))
    if form in {"table", "wide"}:
        if not listing.clusters:
            print_message("no clusters are engaged")
        wide = form == "wide"
        columns = text_output.CLUSTER_COLUMNS_WIDE if wide else text_output.CLUSTER_COLUMNS
        _print_table(columns, [text_output.cluster_row(each, _now(), wide=wide) for each in listing], headers=headers)
    else:
        _print(form, listing, names=(each.name for each in listing))
    if listing.source.state is SourceState.STALE:
        print_message(f"the list may be out of date: the source is {text_output.source(listing.source, _now())}")


@click.command("get")
@click.argument("name")
@unary
@formatted("table", "wide", "json", "yaml", "name")
def get_cluster(connection: Connection, *, name: str, form: str, headers: bool) -> None:
    """Show what the daemon knows of a project, engaged or not."""
    report = connection.run(lambda client: client.get(name))
    if form in {"table", "wide"}:
        wide = form == "wide"
        columns = text_output.REPORT_COLUMNS_WIDE if wide else text_output.REPORT_COLUMNS
        _print_table(columns, [text_output.report_row(name, report, _now(), wide=wide)], headers=headers)
    else:
        _print(form, report, names=[name])


@click.command("explain")
@click.argument("name")
@unary
def explain(connection: Connection, *, name: str) -> None:
    """Explain why a project is or is not engaged."""
    report = connection.run(lambda client: client.get(name))
    for line in text_output.explanation(name, report, _now()):
        click.echo(line)


@click.command("status")
@unary
@formatted("table", "json", "yaml")
@click.pass_context
def status(ctx: click.Context, connection: Connection, *, form: str, headers: bool) -> None:
    """Show the daemon's state. Exits with 7 while it is not synced or its source is stale."""
    info = connection.run(lambda client: client.server_info())
    if form == "table":
        for line in text_output.status(info, _now()):
            click.echo(line)
    else:
        _print(form, info, names=())
    if not info.synced or info.source.state is SourceState.STALE:
        ctx.exit(ExitStatus.NOT_SYNCED)


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], *, headers: bool) -> None:
    if rows:
        for line in text_output.table([columns, *rows] if headers else rows):
            click.echo(line)


def _print(form: str, value: Any, *, names: Iterable[str]) -> None:
    from milo_discovery.cli import json_output, yaml_output  # noqa: PLC0415  (loads protobuf)

    match form:
        case "json":
            click.echo(json_output.document(json_output.to_json(value)))
        case "yaml":
            click.echo(yaml_output.document(json_output.to_json(value)))
        case _:
            for name in names:
                click.echo(name)


def _now() -> datetime:
    return datetime.now(UTC)
