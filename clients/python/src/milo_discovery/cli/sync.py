"""The command `sync`: keeps a directory of kubeconfigs up to date."""

from __future__ import annotations

import errno
import signal
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from milo_discovery._task_groups import unwrap_single_error
from milo_discovery.cli.exit_status import CommandFailure, print_message
from milo_discovery.cli.kubeconfig_directory import DesiredFile, KubeconfigDirectory
from milo_discovery.cli.options import ConnectionOptions, Duration, connecting, filtering
from milo_discovery.cli.text_output import format_duration
from milo_discovery.cli.watch import StreamMessages
from milo_discovery.errors import TimedOut
from milo_discovery.events import Event, Refreshed, Synced
from milo_discovery.model import EventType

if TYPE_CHECKING:
    import asyncio

    from milo_discovery._convert import FilterOptions, WatchOptions
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.model import Kubeconfig

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK_FULL_RETRY_S = 1.0


@click.command("sync")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), required=True, help="The directory."
)
@click.option("--ttl", type=Duration(), help="Requested lifetime of the credentials. The daemon may shorten it.")
@click.option("--once", is_flag=True, help="Exit when each engaged cluster has its file.")
@filtering
@connecting(timeout=None, timeout_help="With --once: time limit for the run. Default: no limit.")
def sync(
    connection: ConnectionOptions, *, only: FilterOptions, directory: Path, ttl: timedelta | None, once: bool
) -> None:
    """Keep a directory of kubeconfigs up to date.

    It has a file NAME.kubeconfig for each engaged cluster, and an index.json that lists them. Files are replaced
    atomically before their credentials expire, and removed when their clusters are disengaged. Files that this command
    did not write are left alone. All files stay when it exits.
    """
    options = cast("WatchOptions", {**only, "include_kubeconfigs": True})
    if ttl is not None:
        options["kubeconfig_ttl"] = ttl
    try:
        with KubeconfigDirectory(directory) as kubeconfigs:
            connection.run(lambda client: _Synchronizer(kubeconfigs, connection, ttl, once=once).run(client, options))
    except OSError as error:
        raise CommandFailure(f"cannot write to {directory}: {error.strerror}") from error


class _Synchronizer:
    """The two tasks of the command: one updates the desired files from the watch, the other writes them.

    Changes that arrive during a write are written together in the next one.
    """

    def __init__(
        self, directory: KubeconfigDirectory, connection: ConnectionOptions, ttl: timedelta | None, *, once: bool
    ) -> None:
        self._directory = directory
        self._connection = connection
        self._once = once
        self._desired: dict[str, DesiredFile] = {}
        self._complete = False
        self._unreported_ttl = ttl
        self._reported_skipped: dict[str, str] = {}

    async def run(self, client: DiscoveryClient, options: WatchOptions) -> None:
        import asyncio  # noqa: PLC0415  (not needed for help and usage errors)

        changed, done = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
        limit = None if self._connection.timeout is None or not self._once else self._connection.timeout.total_seconds()
        messages = StreamMessages(self._connection)
        try:
            with unwrap_single_error():
                async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._watch(client, options, messages, changed), name="watch"),
                        group.create_task(self._write(changed, done), name="write"),
                    ]
                    await done.wait()
                    for task in tasks:
                        task.cancel()
        except TimeoutError:
            timed_out = TimedOut(f"{self._directory.path} is not complete within --timeout", code="DEADLINE_EXCEEDED")
            raise messages.last_error or timed_out from None

    async def _watch(
        self, client: DiscoveryClient, options: WatchOptions, messages: StreamMessages, changed: asyncio.Event
    ) -> None:
        async with client.watch(**options) as watch, aclosing(watch.feed()) as feed:
            async for item in feed:
                match item:
                    case Event(type=EventType.DISENGAGED):
                        self._desired.pop(item.cluster.name, None)
                    case Event():
                        self._report_longer_lifetime(item.kubeconfig)
                        before = self._desired.get(item.cluster.name)
                        previous = None if before is None else before.kubeconfig
                        self._desired[item.cluster.name] = DesiredFile(item.cluster, item.kubeconfig or previous)
                    case Refreshed():
                        continue
                    case Synced():
                        messages.print(item)
                        self._complete = True
                    case _:
                        messages.print(item)
                        continue
                changed.set()

    async def _write(self, changed: asyncio.Event, done: asyncio.Event) -> None:
        import asyncio  # noqa: PLC0415

        disk_full = False
        while True:
            await changed.wait()
            changed.clear()
            desired, complete = dict(self._desired), self._complete
            try:
                await asyncio.to_thread(self._directory.reconcile, desired, complete=complete)
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    raise
                if not disk_full:
                    print_message(f"cannot write to {self._directory.path}: {error.strerror}; retrying")
                disk_full = True
                await asyncio.sleep(_DISK_FULL_RETRY_S)
                changed.set()
                continue
            if disk_full:
                print_message(f"writing to {self._directory.path} again")
                disk_full = False
            self._report_skipped()
            missing = [name for name, each in desired.items() if each.kubeconfig is None]
            if self._once and complete and not missing:
                done.set()

    def _report_longer_lifetime(self, kubeconfig: Kubeconfig | None) -> None:
        """Report once if credentials live longer than requested."""
        requested = self._unreported_ttl
        if requested is None or kubeconfig is None or kubeconfig.expires_at is None or kubeconfig.issued_at is None:
            return
        self._unreported_ttl = None
        if (lifetime := kubeconfig.expires_at - kubeconfig.issued_at) > requested:
            print_message(
                f"credentials are valid for {format_duration(lifetime)} ({format_duration(requested)} requested)"
            )

    def _report_skipped(self) -> None:
        for name, reason in self._directory.skipped.items():
            if self._reported_skipped.get(name) != reason:
                print_message(f"no file for {name!r}: {reason}")
        self._reported_skipped = dict(self._directory.skipped)
