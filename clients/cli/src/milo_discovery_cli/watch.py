"""The command `watch`, and the messages about the stream, which `sync` prints as well."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

import click

from milo_discovery.errors import DiscoveryError, StatusError, TimedOut
from milo_discovery.events import Connected, Disconnected, Event, Refreshed, StreamNotice, Synced
from milo_discovery.model import Cluster, EventType, SourceState
from milo_discovery_cli import templates, text_output
from milo_discovery_cli.exit_status import (
    CommandFailure,
    describe,
    exit_by_sigpipe,
    print_message,
    printable,
    root_cause,
)
from milo_discovery_cli.options import ConnectionOptions, connecting, filtering, formatted

if TYPE_CHECKING:
    import asyncio

    from milo_discovery.client import DiscoveryClient
    from milo_discovery.options import FilterOptions
    from milo_discovery.watch import Watch

_COLORS = {EventType.ENGAGED: "green", EventType.UPDATED: "yellow", EventType.DISENGAGED: "red"}


@click.command("watch")
@filtering
@formatted("table", "wide", "json", "yaml", "name")
@click.option("--once", is_flag=True, help="Exit after the first complete view.")
@click.option("--timestamps", is_flag=True, help="Print the time at which each event arrived.")
@connecting(
    timeout=None, timeout_help="How long to wait for the first complete view. Default: no limit.", finds_demo=True
)
def watch(
    connection: ConnectionOptions, *, only: FilterOptions, form: str, headers: bool, once: bool, timestamps: bool
) -> None:
    """Watch clusters and print their events.

    An event is printed for each cluster that is engaged, updated or disengaged.
    """
    if sys.stdout is None:
        raise CommandFailure("cannot write to stdout: it is closed")
    printer = EventPrinter(form, headers=headers, timestamps=timestamps)
    connection.run(lambda client: _print_events(client, connection, only, printer, once=once))


async def _print_events(
    client: DiscoveryClient, connection: ConnectionOptions, only: FilterOptions, printer: EventPrinter, *, once: bool
) -> None:
    import asyncio  # noqa: PLC0415  (not needed for help and usage errors)

    exit_with_reader(asyncio.get_running_loop())
    messages = StreamMessages(connection)
    limit = None if connection.timeout is None else connection.timeout.total_seconds()
    async with client.watch(**only) as watch, aclosing(watch.feed()) as feed:
        reporting = asyncio.create_task(messages.follow_sources(watch), name="report sources")
        try:
            async with asyncio.timeout(limit) as sync_timeout:
                async for item in feed:
                    if isinstance(item, Event):
                        printer.print(item)
                        continue
                    messages.print(item)
                    if isinstance(item, Synced):
                        if once:
                            return
                        sync_timeout.reschedule(None)
        except TimeoutError:
            timed_out = TimedOut(
                f"no complete view from {connection.address} within --timeout", code="DEADLINE_EXCEEDED"
            )
            raise messages.last_error or timed_out from None
        finally:
            reporting.cancel()


def exit_with_reader(loop: asyncio.AbstractEventLoop) -> None:
    """Exit as soon as the read end of stdout's pipe is closed: the next write, which would fail, may be hours away."""
    if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        # The write end of a pipe polls as readable only in its error state, when the read end is closed.
        loop.add_reader(sys.stdout.fileno(), exit_by_sigpipe)


class EventPrinter:
    """Prints events to stdout, one by one."""

    def __init__(self, form: str, *, headers: bool, timestamps: bool) -> None:
        self._form, _, self._template = form.partition("=")
        self._widths: list[int] = []
        self._header_due = headers
        self._timestamps = timestamps
        self._latest: dict[str, Cluster] = {}
        self._colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def print(self, event: Event) -> None:
        before = self._latest.get(event.cluster.name)
        if event.type is EventType.DISENGAGED:
            self._latest.pop(event.cluster.name, None)
        else:
            self._latest[event.cluster.name] = event.cluster
        match self._form:
            case "name":
                self._print_line(printable(event.cluster.name))
            case "table" | "wide":
                self._print_row(event, before)
            case _:
                self._print_document(event)

    def _print_row(self, event: Event, before: Cluster | None) -> None:
        wide = self._form == "wide"
        self._print_header(
            text_output.event_line(text_output.EVENT_COLUMNS_WIDE if wide else text_output.EVENT_COLUMNS, wide=wide)
        )
        row = text_output.event_row(event, before, wide=wide)
        indent = len(text_output.timestamp(_now())) + 3 if self._timestamps else 0
        line = text_output.event_line(row, wide=wide, indent=indent)
        if self._colored:
            line = click.style(line, fg=_COLORS.get(event.type))
        self._print_line(line)

    def _print_document(self, event: Event) -> None:
        from milo_discovery_cli import json_output, yaml_output  # noqa: PLC0415  (loads protobuf)

        document = json_output.to_json(event)
        if self._timestamps:
            document = {"receivedAt": json_output.to_json(_now()), **document}
        match self._form:
            case "json":
                click.echo(json_output.line(document))
            case "yaml":
                click.echo(f"---\n{yaml_output.document(document)}")
            case "jsonpath":
                self._print_line(templates.render(self._template, document))
            case _:
                columns = templates.Columns(self._template)
                self._print_header(self._aligned(columns.headers))
                self._print_line(self._aligned(columns.row(document)))

    def _aligned(self, cells: tuple[str, ...]) -> str:
        """Format a row of custom columns. A column grows with its cells, since later rows are not known in advance."""
        cells = tuple(map(printable, cells))
        self._widths = list(map(max, self._widths or [0] * len(cells), map(len, cells)))
        return text_output.aligned(cells, self._widths)

    def _print_header(self, line: str) -> None:
        if self._header_due:
            self._header_due = False
            self._print_line(line, "TIME".ljust(len(text_output.timestamp(_now()))))

    def _print_line(self, line: str, time: str | None = None) -> None:
        time = text_output.timestamp(_now()) if time is None else time
        click.echo(f"{time}   {line}" if self._timestamps else line)


class StreamMessages:
    """Prints messages about the stream, such as a lost connection, to stderr."""

    def __init__(self, connection: ConnectionOptions) -> None:
        self._connection = connection
        self._was_connected = False
        self._last_loss = ""
        self.last_error: DiscoveryError | None = None
        """Why the stream is not connected; None while it is connected."""

    async def follow_sources(self, watch: Watch) -> None:
        """Print when a source becomes stale, and when it is followed again."""
        stale: set[str] = set()
        freshness = watch.freshness
        while True:
            freshness = await watch.freshness_changed(freshness)
            for status in [*watch.sources.values()] or ([watch.source] if watch.source else []):
                if status.state is (SourceState.STREAMING if status.name in stale else SourceState.STALE):
                    stale ^= {status.name}
                    which = f"source {status.name}" if status.name else "source"
                    print_message(f"{which} {text_output.freshness(status, _now())}")

    def print(self, notice: StreamNotice) -> None:
        match notice:
            case Synced(clusters=1):
                print_message("synced: 1 cluster")
            case Synced(clusters=count):
                print_message(f"synced: {count} clusters")
            case Disconnected(error=error):
                self.last_error = error
                lost = f"connection lost: {_problem(error)}"
                if not self._was_connected:
                    lost = describe(error, self._connection.address, self._connection.credentials)
                if lost != self._last_loss:
                    print_message(f"{lost}; retrying")
                self._last_loss = lost
            case Connected(resumed=resumed):
                if self.last_error is not None:
                    print_message("connected, stream resumed" if resumed else "connected, receiving a snapshot")
                self.last_error = None
                self._last_loss = ""
                self._was_connected = True
            case Refreshed():
                pass  # only fields that the daemon assigns have changed, and not the cluster itself
            case _:
                assert_never(notice)


def _problem(error: DiscoveryError) -> str:
    """Return why a stream ended. What the daemon says after it is for clients: to keep their clusters, and resume."""
    cause = root_cause(error)
    return cause.partition("; ")[0] if isinstance(error, StatusError) and error.reason else cause


def _now() -> datetime:
    return datetime.now(UTC)
