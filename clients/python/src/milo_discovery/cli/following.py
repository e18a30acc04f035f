"""The command that doesn't end by itself: watch."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

import click

from milo_discovery.cli import wording
from milo_discovery.cli.endings import cause, end_by_broken_pipe, message, say
from milo_discovery.cli.options import Connection, connecting, filtering, formatted
from milo_discovery.errors import DiscoveryError, TimedOut
from milo_discovery.events import Connected, Disconnected, Event, Mark, Refreshed, Synced
from milo_discovery.model import EventType

if TYPE_CHECKING:
    import asyncio

    from milo_discovery._wire import FilterOptions
    from milo_discovery.client import DiscoveryClient

_COLOURS = {EventType.ENGAGED: "green", EventType.UPDATED: "yellow", EventType.DISENGAGED: "red"}


@click.command("watch")
@connecting(timeout=None, about_timeout="How long to wait for the first complete view; for ever, if not given.")
@filtering
@formatted("table", "wide", "json", "yaml", "name")
@click.option("--once", is_flag=True, help="End with the first complete view.")
@click.option("--timestamps", is_flag=True, help="Say when each event came.")
def watch(
    connection: Connection, *, only: FilterOptions, form: str, headers: bool, once: bool, timestamps: bool
) -> None:
    """Follow the fleet: a line for each cluster that is engaged, updated or disengaged."""
    printer = Printer(form, headers=headers, timestamps=timestamps)
    connection.run(lambda client: _follow(client, connection, only, printer, once=once))


async def _follow(
    client: DiscoveryClient, connection: Connection, only: FilterOptions, printer: Printer, *, once: bool
) -> None:
    import asyncio  # noqa: PLC0415  (help and usage errors do without)

    _end_with_the_reader(asyncio.get_running_loop())
    notes = Notes(connection.address)
    limit = None if connection.timeout is None else connection.timeout.total_seconds()
    async with client.watch(**only) as watch, aclosing(watch.feed()) as feed:
        try:
            async with asyncio.timeout(limit) as first_view:
                async for item in feed:
                    if isinstance(item, Event):
                        printer.event(item)
                        continue
                    notes.mark(item)
                    if isinstance(item, Synced):
                        if once:
                            return
                        first_view.reschedule(None)
        except TimeoutError:
            late = TimedOut(f"no complete view from {connection.address} in time", code="DEADLINE_EXCEEDED")
            raise notes.trouble or late from None


def _end_with_the_reader(loop: asyncio.AbstractEventLoop) -> None:
    """In a pipe, end when its reader does, and not only with the next event, which may be hours away."""
    if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        # The writing end of a pipe becomes "readable" only by its error: nobody reads the other end any more.
        loop.add_reader(sys.stdout.fileno(), end_by_broken_pipe)


class Printer:
    """Events, one by one, to stdout."""

    def __init__(self, form: str, *, headers: bool, timestamps: bool) -> None:
        self._form = form
        self._headers_due = headers and form in {"table", "wide"}
        self._timestamps = timestamps
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def event(self, event: Event) -> None:
        match self._form:
            case "json" | "yaml":
                from milo_discovery.cli import json_form, yaml_form  # noqa: PLC0415  (loads protobuf)

                said = json_form.to_json(event)
                if self._timestamps:
                    said = {"receivedAt": json_form.to_json(_now()), **said}
                click.echo(json_form.line(said) if self._form == "json" else f"---\n{yaml_form.document(said)}")
            case "name":
                self._line(event.cluster.name, wording.stamp(_now()))
            case _:
                wide = self._form == "wide"
                if self._headers_due:
                    self._headers_due = False
                    columns = wording.EVENT_COLUMNS_WIDE if wide else wording.EVENT_COLUMNS
                    self._line(wording.event_line(columns, wide=wide), "TIME".ljust(len(wording.stamp(_now()))))
                line = wording.event_line(wording.event_row(event, wide=wide), wide=wide)
                if self._colours:
                    line = click.style(line, fg=_COLOURS.get(event.type))
                self._line(line, wording.stamp(_now()))

    def _line(self, line: str, time: str) -> None:
        click.echo(f"{time}   {line}" if self._timestamps else line)


class Notes:
    """What happens to the stream, to stderr."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._met = False
        self.trouble: DiscoveryError | None = None
        """Why the daemon doesn't answer, if it doesn't."""

    def mark(self, mark: Mark) -> None:
        match mark:
            case Synced(clusters=1):
                say("synced: 1 cluster")
            case Synced(clusters=count):
                say(f"synced: {count} clusters")
            case Disconnected(error=error):
                self.trouble = error
                what = f"lost the daemon: {cause(error)}" if self._met else message(error, self._address)
                say(f"{what}; trying again, and meanwhile every cluster stays as it was")
            case Connected(resumed=resumed):
                if self.trouble is not None:
                    say("connected again, and going on" if resumed else "connected again, and comparing")
                self.trouble = None
                self._met = True
            case Refreshed():
                pass  # nothing that a person would see
            case _:
                assert_never(mark)


def _now() -> datetime:
    return datetime.now(UTC)
