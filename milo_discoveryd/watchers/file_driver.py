"""Follows a source in files of this machine: each scan of them is a complete list."""

import asyncio
import math
from collections.abc import Callable, Set
from contextlib import suppress

from milo_discoveryd.credentials.kubeconfig_files import (
    FilesError,
    KubeconfigFiles,
    Scan,
    UnsettledFileError,
)
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.logger import log
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.objects.budget import OVER_BUDGET
from milo_discoveryd.objects.collection import ObjectCollection
from milo_discoveryd.objects.pending_deletions import (
    Absent,
    ConfirmationResult,
    Found,
    Inconclusive,
)
from milo_discoveryd.sources.kind import FileObject
from milo_discoveryd.watchers.driver import Confirmations, internal_error
from milo_discoveryd.watchers.inotify import Inotify
from milo_kube.file_content import SETTLED_S
from milo_kube.reflect.messages import UNEXPECTED_ERROR, Listed, ListEnded, ListStarted, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus

POLL_S = 5.0
"""Interval of scans while no notification arrives: changes in network file systems and behind links to other
directories cause none."""
POLL_WITHOUT_INOTIFY_S = 1.0
RETRY_S = 0.1
"""Interval of scans while the files cannot be read, for up to `MAX_RETRY_S`."""
MAX_RETRY_S = 2.0
"""For how long a failing scan is repeated before the source becomes stale: a directory can be missing for a moment."""
MAX_FIRST_S = 2 * SETTLED_S
"""How long the first list waits for files that may be incomplete, whose clusters would appear as deleted."""


class FileDriver:
    """The tasks that follow the files: scans, and the confirmation of deletions."""

    def __init__(
        self,
        files: KubeconfigFiles,
        observe: Callable[[FileObject], ObservedObject],
        *,
        source: ClusterSource,
        collection: ObjectCollection,
        status: ViewStatus | None = None,
    ) -> None:
        """`status` is the status of clusters that were restored from the state file; None if none were restored."""
        self._files = files
        self._observe = observe
        self._source = source
        self._collection = collection
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self._status = status or ViewStatus(ViewState.CATCHING_UP, self._clock(), "Starting")
        self._has_listed = False
        self._confirmations = Confirmations(source, collection, self._read, lambda: self._trusted_from)

    async def run(self) -> None:
        """Follow the files until canceled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow the files")
            tasks.create_task(self._confirmations.run(), name="confirm deletions and end grace periods")

    @property
    def _trusted_from(self) -> float:
        return self._status.since if self._status.state is ViewState.STREAMING else math.inf

    async def _follow(self) -> None:
        self._source.set_followed(self._collection, self._status)
        if (exposure := await asyncio.to_thread(self._files.exposure)) is not None:
            log.warning("kubeconfig directory is exposed", problem=exposure)
        inotify = Inotify()
        if not inotify.is_available:
            log.info("file change notifications unavailable", checked_every_seconds=POLL_WITHOUT_INOTIFY_S)
        try:
            while True:
                try:
                    wait_s = await self._apply_scan(inotify)
                except Exception as error:
                    log.exception("files not followed", source=self._source.name)
                    wait_s, now = POLL_S, self._clock()
                    self._failed(FilesError(UNEXPECTED_ERROR, internal_error(error)), now, now + wait_s)
                await self._wait(inotify.changed, wait_s)
        finally:
            inotify.close()

    async def _apply_scan(self, inotify: Inotify) -> float:
        """Return how long to wait for a notification before the next scan."""
        # Watch before the scan, so that no change in between is missed.
        is_notified = await asyncio.to_thread(inotify.watch, self._files.directories)
        inotify.changed.clear()
        scan = await self._scan(inotify.take_renamed())
        wait_s = POLL_S if is_notified else POLL_WITHOUT_INOTIFY_S
        await self._apply(scan, wait_s)
        if isinstance(scan, Scan) and scan.settles_in_s:
            wait_s = min(wait_s, max(scan.settles_in_s, RETRY_S))
        return wait_s

    async def _wait(self, changed: asyncio.Event, most_s: float) -> None:
        relist_at = self._collection.relist_at
        until = self._clock() + most_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until if relist_at is None else min(until, relist_at)):
                await changed.wait()

    async def _scan(self, renamed: Set[str]) -> Scan | FilesError:
        """Return all objects. Repeats a scan that fails, and repeats the first scan while a file may be incomplete."""
        started_at = self._clock()
        changed: frozenset[str] = frozenset()
        while True:
            scan: Scan | FilesError
            try:
                scan = await asyncio.to_thread(self._files.scan, renamed.__contains__)
            except FilesError as error:
                scan = error
            else:
                changed |= scan.changed
                scan = Scan(scan.objects, changed, scan.settles_in_s)
            wait_s, most_s = RETRY_S, MAX_RETRY_S
            if isinstance(scan, Scan | UnsettledFileError):
                if self._has_listed or not scan.settles_in_s:
                    return scan
                wait_s, most_s = max(scan.settles_in_s, RETRY_S), MAX_FIRST_S
            if self._clock() + wait_s > started_at + most_s:
                return scan
            # Renames count for one scan only: a file may be written in place after it was renamed.
            renamed = frozenset()
            await asyncio.sleep(wait_s)

    async def _apply(self, scan: Scan | FilesError, wait_s: float) -> None:
        now = self._clock()
        if isinstance(scan, FilesError):
            self._failed(scan, now, now + wait_s)
            return
        listed: list[SourceEvent[ObservedObject]] = [Listed(self._observe(file)) for file in scan.objects]
        for _ in self._source.apply(self._collection, [ListStarted(), *listed, ListEnded()], now):
            await asyncio.sleep(0)
        if problem := self._collection.over_budget:
            for _ in self._source.apply(self._collection, [ListStarted()], now):  # discards the incomplete list
                pass
            self._failed(FilesError(OVER_BUDGET, problem), now, now + wait_s)
            return
        self._has_listed = True
        since = self._status.since if self._status.state is ViewState.STREAMING else now
        self._status = ViewStatus(ViewState.STREAMING, since, last_contact=now)
        self._source.set_followed(self._collection, self._status)
        self._files.announce(scan.changed)
        self._confirmations.applied()

    def _failed(self, error: FilesError, now: float, retry_at: float) -> None:
        since = self._status.since if self._status.state is ViewState.STALE else now
        self._status = ViewStatus(ViewState.STALE, since, error.reason, str(error), self._status.last_contact, retry_at)
        self._source.set_followed(self._collection, self._status)

    async def _read(self, key: str) -> ConfirmationResult:
        try:
            file = await asyncio.to_thread(self._files.find, key)
        except FilesError as error:
            return Inconclusive(str(error))
        return Absent() if file is None else Found(self._observe(file))
