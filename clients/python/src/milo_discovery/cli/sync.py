"""The command that keeps a directory of kubeconfigs, for tools that only read files."""

from __future__ import annotations

import signal
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from milo_discovery._group import one_error_as_itself
from milo_discovery.cli.endings import Failed, say
from milo_discovery.cli.folder import Folder, Wanted
from milo_discovery.cli.following import Notes
from milo_discovery.cli.options import Connection, Duration, connecting, filtering
from milo_discovery.errors import TimedOut
from milo_discovery.events import Event, Refreshed, Synced
from milo_discovery.model import EventType

if TYPE_CHECKING:
    import asyncio

    from milo_discovery._wire import FilterOptions, WatchOptions
    from milo_discovery.client import DiscoveryClient


@click.command("sync")
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where.")
@click.option("--ttl", type=Duration(), help="How long each credential should live. The daemon may give less.")
@click.option("--once", is_flag=True, help="End when each engaged cluster has its file.")
@connecting(timeout=None, about_timeout="With --once: how long that may take; for ever, if not given.")
@filtering
def sync(connection: Connection, *, only: FilterOptions, directory: Path, ttl: timedelta | None, once: bool) -> None:
    """Keep a kubeconfig file for each engaged cluster, NAME.kubeconfig, and an index.json of them.

    Files are replaced in one step before their credentials end, and removed when their clusters are disengaged. What
    was in the directory before, and wasn't written by this command, stays. At the end all files stay.
    """
    options = cast("WatchOptions", {**only, "include_kubeconfigs": True})
    if ttl is not None:
        options["kubeconfig_ttl"] = ttl
    try:
        with Folder(directory) as folder:
            connection.run(lambda client: _Keeping(folder, connection, once=once).run(client, options))
    except OSError as error:
        raise Failed(f"can't keep {error.filename or directory}: {error.strerror}") from error


class _Keeping:
    """What the watch tells goes into `wanted`; beside that, the folder is made to be like it, again and again.

    What comes while files are written is written next, at once, however much it is.
    """

    def __init__(self, folder: Folder, connection: Connection, *, once: bool) -> None:
        self._folder = folder
        self._connection = connection
        self._once = once
        self._wanted: dict[str, Wanted] = {}
        self._complete = False
        self._told_left_out: dict[str, str] = {}

    async def run(self, client: DiscoveryClient, options: WatchOptions) -> None:
        import asyncio  # noqa: PLC0415  (help and usage errors do without)

        changed, ended = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        limit = None if self._connection.timeout is None or not self._once else self._connection.timeout.total_seconds()
        notes = Notes(self._connection.address)
        try:
            with one_error_as_itself():
                async with asyncio.timeout(limit), asyncio.TaskGroup() as tasks:
                    working = [
                        tasks.create_task(self._follow(client, options, notes, changed), name="follow"),
                        tasks.create_task(self._write(changed, ended), name="write"),
                    ]
                    await ended.wait()
                    for task in working:
                        task.cancel()
        except TimeoutError:
            late = TimedOut(f"{self._folder.path} isn't complete in time", code="DEADLINE_EXCEEDED")
            raise notes.trouble or late from None

    async def _follow(
        self, client: DiscoveryClient, options: WatchOptions, notes: Notes, changed: asyncio.Event
    ) -> None:
        async with client.watch(**options) as watch, aclosing(watch.feed()) as feed:
            async for item in feed:
                match item:
                    case Event(type=EventType.DISENGAGED):
                        self._wanted.pop(item.cluster.name, None)
                    case Event():
                        before = self._wanted.get(item.cluster.name)
                        kept = None if before is None else before.kubeconfig
                        self._wanted[item.cluster.name] = Wanted(item.cluster, item.kubeconfig or kept)
                    case Refreshed():
                        continue
                    case Synced():
                        notes.mark(item)
                        self._complete = True
                    case _:
                        notes.mark(item)
                        continue
                changed.set()

    async def _write(self, changed: asyncio.Event, ended: asyncio.Event) -> None:
        import asyncio  # noqa: PLC0415

        while True:
            await changed.wait()
            changed.clear()
            wanted, complete = dict(self._wanted), self._complete
            await asyncio.to_thread(self._folder.become, wanted, complete=complete)
            self._say_left_out()
            missing = [name for name, each in wanted.items() if each.kubeconfig is None]
            if self._once and complete and not missing:
                ended.set()

    def _say_left_out(self) -> None:
        for name, why in self._folder.left_out.items():
            if self._told_left_out.get(name) != why:
                say(f"no file for {name!r}: {why}")
        self._told_left_out = dict(self._folder.left_out)
