"""The command `sync`: keeps a directory of kubeconfigs up to date."""

from __future__ import annotations

import errno
import math
import random
import signal
import stat
import time
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import click

from milo_discovery import removals
from milo_discovery.errors import StatusError, TimedOut
from milo_discovery.events import Connected, Event, Refreshed, Synced
from milo_discovery.model import DisengageReason, EngagementReason, EventType
from milo_discovery.removals import Removal, filter_text
from milo_discovery_cli.exit_status import CommandFailure, print_message
from milo_discovery_cli.kubeconfig_directory import DesiredFile, KubeconfigDirectory
from milo_discovery_cli.options import ConnectionOptions, Duration, connecting, filtering
from milo_discovery_cli.text_output import format_duration
from milo_discovery_cli.watch import StreamMessages
from milo_kube.task_groups import unwrap_single_error

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping

    from milo_discovery.client import DiscoveryClient
    from milo_discovery.model import Cluster, Kubeconfig
    from milo_discovery.options import FilterOptions, WatchOptions
    from milo_discovery.watch import Watch

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_RETRY_S = 1.0
_LOOKUPS = 8
"""Maximum number of concurrent requests to the daemon about missing clusters."""
_LOOKUPS_S = 5.0
"""How long the daemon is asked about them at a time, since nothing is written meanwhile."""
_ENDS = removals.ENDS | {DisengageReason.MOVED, DisengageReason.OWNERSHIP_LOST}
"""Reasons after which a file is removed at once, including those after which another replica may own the cluster."""


@click.command("sync")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory to write to."
)
@click.option("--ttl", type=Duration(), help="Requested lifetime of the credentials. The daemon may shorten it.")
@click.option("--once", is_flag=True, help="Exit when each engaged cluster has its file, and no removal is pending.")
@click.option(
    "--accept-removals",
    "accepts_removals",
    is_flag=True,
    help="Remove the files of all clusters that the daemon does not report, however many they are. The limit on "
    "removals applies again once no such file is left. Also take over files that were written for another filter or "
    "shard group.",
)
@filtering
@connecting(timeout=None, timeout_help="With --once: time limit for the run. Default: no limit.")
def sync(
    connection: ConnectionOptions,
    *,
    only: FilterOptions,
    directory: Path,
    ttl: timedelta | None,
    once: bool,
    accepts_removals: bool,
) -> None:
    """Keep a directory of kubeconfigs up to date.

    The directory has a file NAME.kubeconfig for each engaged cluster, and an index.json that lists them. Files are
    replaced atomically before their credentials expire, and removed when their clusters are disengaged. If the daemon
    no longer reports many clusters of an earlier run, their files are removed only with --accept-removals. Files that
    this command did not write are not changed. All files stay when the command exits.
    """
    options = cast("WatchOptions", {**only, "include_kubeconfigs": True})
    if ttl is not None:
        options["kubeconfig_ttl"] = ttl
    try:
        with KubeconfigDirectory(directory) as kubeconfigs:
            if directory.stat().st_mode & stat.S_IWOTH:
                print_message(
                    f"{directory} is world-writable, so any user of this machine can replace the kubeconfigs in it: "
                    "run chmod o-w on it"
                )
            now = time.monotonic()
            guard = removals.Removals(accepts=accepts_removals, began_at=-math.inf if once else now)
            guard.remember(kubeconfigs.memory, now)
            synchronizer = _Synchronizer(kubeconfigs, connection, ttl, guard, filter_text(only), once=once)
            connection.run(lambda client: synchronizer.run(client, options), limits_calls=False)
    except OSError as error:
        raise CommandFailure(f"cannot write to {directory}: {error.strerror}") from error


class _End(NamedTuple):
    """The end of a cluster."""

    uid: str
    waits: bool
    """Whether its file stays while the source is not streaming: it has not just been assigned to another replica."""


class _Synchronizer:
    """The two tasks of the command: one updates the desired files from the watch, the other writes them.

    Changes that arrive during a write are written together in the next one.
    """

    def __init__(
        self,
        directory: KubeconfigDirectory,
        connection: ConnectionOptions,
        ttl: timedelta | None,
        guard: removals.Removals,
        only: str,
        *,
        once: bool,
    ) -> None:
        self._directory = directory
        self._connection = connection
        self._guard = guard
        self._reviewed = set(directory.own)
        """The names of the clusters that had a file when none was missing, or at the last review."""
        self._filter = only
        self._once = once
        self._desired: dict[str, DesiredFile] = {}
        self._ended: dict[str, _End] = {}
        """Clusters whose files are to be removed, by name."""
        self._has_view = False
        """Whether `_desired` is a complete view, and not a partially received snapshot."""
        self._may_write = False
        """Whether the view was reviewed, and is not the view of another fleet."""
        self._review_at: float | None = None
        self._unreported_ttl = ttl
        self._reported = ""
        self._reported_skipped: dict[str, str] = {}

    async def run(self, client: DiscoveryClient, options: WatchOptions) -> None:
        import asyncio  # noqa: PLC0415  (not needed for help and usage errors)

        changed, done, terminated = asyncio.Event(), asyncio.Event(), False

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            done.set()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        limit = None if self._connection.timeout is None or not self._once else self._connection.timeout.total_seconds()
        messages = StreamMessages(self._connection)
        try:
            with unwrap_single_error():
                async with (
                    asyncio.timeout(limit),
                    asyncio.TaskGroup() as group,
                    client.watch(**options) as watch,
                ):
                    tasks = [
                        group.create_task(self._follow(watch, messages, changed), name="follow"),
                        group.create_task(self._write(client, watch, changed, done), name="write"),
                    ]
                    await done.wait()
                    for task in tasks:
                        task.cancel()
        except TimeoutError:
            timed_out = TimedOut(f"{self._directory.path} was not complete within --timeout", code="DEADLINE_EXCEEDED")
            raise messages.last_error or timed_out from None
        if self._once and terminated:
            raise CommandFailure(f"ended by SIGTERM before {self._directory.path} was complete")

    async def _follow(self, watch: Watch, messages: StreamMessages, changed: asyncio.Event) -> None:
        import asyncio  # noqa: PLC0415

        async with aclosing(watch.feed()) as feed:
            async for item in feed:
                match item:
                    case Event(type=EventType.DISENGAGED):
                        self._desired.pop(item.cluster.name, None)
                        if self._has_view and item.reason in _ENDS:
                            self._ended[item.cluster.name] = _End(item.cluster.uid, item.reason in removals.ENDS)
                        elif self._has_view:
                            self._review_at = asyncio.get_running_loop().time()
                    case Event():
                        self._report_longer_lifetime(item.kubeconfig)
                        before = self._desired.get(item.cluster.name)
                        previous = None if before is None else before.kubeconfig
                        self._desired[item.cluster.name] = DesiredFile(item.cluster, item.kubeconfig or previous)
                        self._engaged(item.cluster)
                    case Refreshed():
                        continue
                    case Synced():
                        messages.print(item)
                        self._has_view = True
                        self._review_at = asyncio.get_running_loop().time()
                    case Connected(resumed=True) if not self._has_view:
                        # A snapshot broke off, such as that of another daemon: the last complete view continues.
                        messages.print(item)
                        self._has_view = True
                        self._review_at = asyncio.get_running_loop().time()
                    case _:
                        if isinstance(item, Connected) and not item.resumed:
                            self._has_view = self._may_write = False
                        messages.print(item)
                        continue
                changed.set()

    async def _write(self, client: DiscoveryClient, watch: Watch, changed: asyncio.Event, done: asyncio.Event) -> None:
        import asyncio  # noqa: PLC0415

        loop = asyncio.get_running_loop()
        disk_full = False
        while True:
            now = loop.time()
            if self._has_view and self._review_at is not None and now >= self._review_at:
                await self._review(client, watch, now)
            desired, is_reviewed = dict(self._desired), self._may_write
            is_whole = not any(map(self._is_doubted, self._directory.own))
            ended = {
                name: end
                for name, end in self._ended.items()
                if not end.waits or name in desired or removals.is_followed(watch, name)
            }
            try:
                if is_reviewed:
                    for name in desired.keys() - self._directory.own:
                        self._guard.created(name)
                    self._directory.memory = self._guard.memory
                    uids = {name: end.uid for name, end in ended.items()}
                    await asyncio.to_thread(self._directory.reconcile, desired, ended=uids)
                    self._reconciled(ended, now, is_whole=is_whole)
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    raise
                if not disk_full:
                    print_message(f"cannot write to {self._directory.path}: {error.strerror}; retrying")
                disk_full = True
                await asyncio.sleep(_RETRY_S)
                continue
            if disk_full:
                print_message(f"writing to {self._directory.path} succeeds again")
                disk_full = False
            self._report_skipped()
            if self._once and self._is_complete(desired, watch, now, is_reviewed=is_reviewed):
                done.set()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._review_at if self._has_view else None):
                    await changed.wait()
            changed.clear()

    def _is_complete(self, desired: Mapping[str, DesiredFile], watch: Watch, now: float, *, is_reviewed: bool) -> bool:
        """Return whether each engaged cluster has its file, and no removal is pending. Raises CommandFailure if that is
        not to be waited for."""
        has_all = is_reviewed and all(file.kubeconfig is not None for file in desired.values())
        if self._guard.problem and (has_all or self._guard.is_foreign):
            raise CommandFailure("removals are held; see the message above")
        if has_all and self._directory.skipped:
            raise CommandFailure("some clusters have no file; see the messages above")
        waiting = sum(self._lacks(name) and not removals.is_followed(watch, name) for name in self._directory.own)
        if waiting and watch.connected and (has_all or self._guard.unknown):
            raise CommandFailure(f"not finished: {waiting} files wait until their clusters' sources are streaming")
        return has_all and self._guard.next_look_at(now) is None and not any(map(self._is_doubted, desired))

    async def _review(self, client: DiscoveryClient, watch: Watch, now: float) -> None:
        """Check the clusters that are missing from the view, and add those that are confirmed as ended to `_ended`."""
        import asyncio  # noqa: PLC0415

        if not watch.connected:
            self._review_at = now + _RETRY_S
            return
        self._review_at = None
        try:
            sharding = (await client.server_info()).sharding
        except StatusError as error:
            self._report(f"cannot get the daemon's server info: {error}; retrying")
            self._review_at = now + _RETRY_S
            return
        fleet = "" if sharding is None else sharding.group, self._filter
        if not self._guard.accepts and (difference := self._directory.difference(*fleet)):
            raise CommandFailure(
                f"{self._directory.path} {difference}: check the daemon's address and the filter, choose another "
                "--dir, or take the files over with --accept-removals"
            )
        names = {name for name in self._directory.own if self._lacks(name) and not self._is_ended(name)}
        followed = [name for name in names if removals.is_followed(watch, name)]
        lookups, until = asyncio.Semaphore(_LOOKUPS), asyncio.get_running_loop().time() + _LOOKUPS_S
        # Only in a shard group, because the daemon rate-limits failed lookups of callers with limited rights.
        looked_up = [name for name in followed if name not in self._desired] if fleet[0] else []
        random.shuffle(looked_up)  # the next review asks about others
        elsewhere = await asyncio.gather(*(_is_elsewhere(client, name, lookups, until) for name in looked_up))
        if not self._has_view or self._review_at is not None:
            return  # the view changed during the lookups; it will be reviewed again
        self._remove(name for name, moved in zip(looked_up, elsewhere, strict=True) if moved)
        published = {name for name in self._directory.own if not self._is_ended(name)}
        self._guard.note_lacking(bool(names))
        for name in published - self._reviewed:
            self._guard.created(name)
        self._reviewed = published
        lacked = {name for name in names & published if self._lacks(name)}
        missing = [Removal(name, name, self._directory.uid(name), "") for name in followed if name in lacked]
        others = lacked.difference(followed)
        confirmed = self._guard.review(missing, published, now, others=others, are_all_known=not others)
        self._remove(removal.name for removal in confirmed)
        # Until the source is streaming, a view that lacks all files may be that of another fleet.
        is_unknown = bool(others) and lacked == published and not self._guard.accepts
        self._guard.note_unknown(len(published), len(others) if is_unknown else 0)
        problem = self._guard.problem or self._guard.unknown
        self._report(f"removals: {problem}" if problem else "")
        if not self._guard.problem:
            self._directory.claim(*fleet)
        self._may_write = not (self._guard.is_foreign or is_unknown)
        self._review_at = self._guard.next_look_at(now)
        if self._review_at is None and others:
            self._review_at = now + removals.SECOND_LOOK_S

    def _reconciled(self, ended: Mapping[str, _End], now: float, *, is_whole: bool) -> None:
        """Forget the clusters whose files were removed, and review those whose files were not. `is_whole`: whether no
        cluster was missing when the files were desired that are written now."""
        self._ended = {name: end for name, end in self._ended.items() if ended.get(name) != end}
        if is_whole:
            self._reviewed = set(self._directory.own)
        if self._review_at is None and any(map(self._is_doubted, self._desired)):
            self._review_at = now
        if self._review_at is None and (self._ended or ended.keys() & self._directory.own - self._desired.keys()):
            self._review_at = now + removals.SECOND_LOOK_S

    def _is_ended(self, name: str) -> bool:
        """Return whether the file of a cluster is to be removed: not that of another one of this name."""
        return name in self._ended and self._ended[name].uid == self._directory.uid(name)

    def _lacks(self, name: str) -> bool:
        """Return whether the cluster of a present file is not engaged, although another one of its name may be."""
        return name not in self._desired or self._directory.is_of_another(name, self._desired[name])

    def _is_doubted(self, name: str) -> bool:
        """Return whether a present file is that of a cluster that is missing, and not known to have ended."""
        return self._lacks(name) and not self._is_ended(name)

    def _engaged(self, cluster: Cluster) -> None:
        """Have the file of an engaged cluster kept, but not that of another one of its name that has ended."""
        if (end := self._ended.get(cluster.name)) is not None and end.uid in ("", cluster.uid):
            del self._ended[cluster.name]
        if not self._is_doubted(cluster.name):
            self._guard.engaged(cluster.name, self._directory.uid(cluster.name))

    def _remove(self, names: Iterable[str]) -> None:
        """Have the present files of clusters removed, unless these have just been engaged."""
        for name in names:
            if self._lacks(name):
                self._ended[name] = _End(self._directory.uid(name), waits=False)

    def _report(self, problem: str) -> None:
        """Report a problem once. An empty string reports that the last problem is resolved."""
        if problem != self._reported:
            print_message(problem or f"resolved: {self._reported}")
        self._reported = problem

    def _report_longer_lifetime(self, kubeconfig: Kubeconfig | None) -> None:
        """Report once if credentials are valid for longer than requested."""
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


async def _is_elsewhere(client: DiscoveryClient, name: str, lookups: asyncio.Semaphore, until: float) -> bool:
    """Return whether the cluster is ready, but not assigned to this member of the shard group, as far as is known in
    time."""
    import asyncio  # noqa: PLC0415

    try:
        async with asyncio.timeout_at(until), lookups:
            return (await client.get(name)).engagement.reason is EngagementReason.UNASSIGNED
    except (StatusError, TimeoutError):
        return False
