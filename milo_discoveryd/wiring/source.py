"""Runs a source: drivers update the fleet, and the state file keeps the fleet across restarts."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

import msgspec

from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.fleet.changes import RETRY_S
from milo_discoveryd.fleet.source import RESTORED, ClusterSource
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.sources.keyed import FollowedCollection
from milo_discoveryd.sources.kind import FileObject, RestoredPlace
from milo_discoveryd.state_file.encoding import StateOrigin, StoredCluster, StoredFleet
from milo_discoveryd.watchers.driver import Driver, SourceApi
from milo_discoveryd.watchers.file_driver import FileDriver
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, SourceEvent
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.versions import oldest
from milo_kube.reflect.view_status import ViewState, ViewStatus


class FleetStore(Protocol):
    """Keeps the fleet across restarts of the daemon."""

    @property
    def origin(self) -> StateOrigin: ...

    async def loaded(self) -> StoredFleet | None: ...

    async def save_changes(self, fleet: Callable[[], StoredFleet], changed: Callable[[], Awaitable[None]]) -> None:
        """Save what `fleet` returns each time that `changed` returns, until canceled."""


EARLIER_RUNS = 20
"""Maximum number of earlier runs of the daemon in the state file."""
ANY_REVISION = 2**63 - 1


class Discovery:
    """The tasks that follow collections of an API server, and store the fleet.

    `epoch` identifies the run of the daemon, and `jitter` returns random numbers in [0, 1).
    """

    def __init__(
        self,
        source: ClusterSource,
        store: FleetStore | None,
        *,
        epoch: str,
        policy: ReflectorPolicy,
        jitter: Callable[[], float],
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._source = source
        self._storage = _SourceStorage(source, store, epoch)
        self._policy = policy
        self._jitter = jitter
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s

    async def run(
        self,
        api_at: Callable[[str], SourceApi],
        collections: Sequence[FollowedCollection],
        restored_place: RestoredPlace,
        others_restored: Callable[[], Awaitable[object]] = partial(asyncio.sleep, 0),  # noqa: B008 - has no state
    ) -> None:
        """Follow the source until canceled. `collections` are the collections of the source, in the same order.
        `api_at` returns the API server for the `server` of a collection. `others_restored` waits until the other
        sources are restored too: before that, nothing else may be published.
        """
        status = await self._storage.restore(restored_place)
        await others_restored()
        now = asyncio.get_running_loop().time()
        drivers = [
            Driver(
                api_at(followed.server),
                followed.watched,
                decoder=followed.decoder,
                reflector=Reflector(self._policy, self._jitter, now, status),
                source=self._source,
                collection=collection,
                connect_timeout_s=self._connect_timeout_s,
                request_timeout_s=self._request_timeout_s,
            )
            for collection, followed in zip(self._source.collections, collections, strict=True)
        ]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._storage.save(), name="save the fleet")
            for driver in drivers:
                tasks.create_task(driver.run(), name="follow a collection")


class FileDiscovery:
    """The tasks that follow kubeconfig files, and store the fleet."""

    def __init__(self, source: ClusterSource, store: FleetStore | None, epoch: str) -> None:
        self._source = source
        self._storage = _SourceStorage(source, store, epoch)

    async def run(
        self,
        files: KubeconfigFiles,
        observe: Callable[[FileObject], ObservedObject],
        restored_place: RestoredPlace,
        others_restored: Callable[[], Awaitable[object]],
    ) -> None:
        """Follow the files until canceled. `others_restored`: see `Discovery`."""
        status = await self._storage.restore(restored_place)
        await others_restored()
        (collection,) = self._source.collections
        driver = FileDriver(files, observe, source=self._source, collection=collection, status=status)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._storage.save(), name="save the fleet")
            tasks.create_task(driver.run(), name="follow files")


def set_targets(source: ClusterSource, targets: Iterable[Target], now: float) -> None:
    """Engage the clusters of a source whose clusters are all known from the start."""
    ready: list[SourceEvent[ObservedObject]] = [Listed(Ready(target.uid, "", target)) for target in targets]
    (collection,) = source.collections
    for _ in source.apply(collection, [ListStarted(), *ready, ListEnded()], now):
        pass
    source.set_followed(collection, ViewStatus(ViewState.STREAMING, now, last_contact=now))


class _SourceStorage:
    """Restores a fleet from its store, and saves it there."""

    def __init__(self, source: ClusterSource, store: FleetStore | None, epoch: str) -> None:
        self._source = source
        self._epoch = epoch
        self._store = store

    async def restore(self, restored_place: RestoredPlace) -> ViewStatus | None:
        """Restore the stored fleet, if there is one, and return its status. Without it, the source is as on the first
        start."""
        with log.contained("state not restored", source=self._source.name):
            stored = None if self._store is None else await self._store.loaded()
            return None if stored is None else await self._restored(stored, restored_place)
        return None

    async def _restored(self, stored: StoredFleet, restored_place: RestoredPlace) -> ViewStatus:
        age_s = max(0.0, time.time() - stored.current_at)
        status = ViewStatus(
            ViewState.STALE,
            asyncio.get_running_loop().time() - age_s,
            RESTORED,
            "the clusters are those of the daemon's previous run; the source has not answered in this one",
        )
        restorables = restorable(stored.clusters, restored_place)
        for _ in self._source.restore(restorables, stored.objects, status, stored.highest_version):
            await asyncio.sleep(0)
        if self._source.engagements.present_count == len(stored.clusters):
            self._source.restored_positions = stored.positions
        self._source.changes.releases.expect_return(asyncio.get_running_loop().time())
        return status

    async def save(self) -> None:
        """Save changes once the source is synced: a partial fleet must not replace the stored one."""
        if self._store is None:
            return
        saved_at, clock, origin = -1, asyncio.get_running_loop().time, self._store.origin

        def stored() -> StoredFleet:
            return StoredFleet(
                origin,
                current_at(self._source.status, clock()),
                tuple(self._engaged()),
                oldest(collection.trust.version for collection in self._source.collections),
                tuple(self._source.stored_objects()),
                positions(self._source, self._epoch),
            )

        with self._source.changes.notifier.waiter() as waiter:

            async def changed() -> None:
                nonlocal saved_at
                while not self._source.synced or self._source.changes.log.head == saved_at:
                    await waiter.wait_for_change(3600.0)
                saved_at = self._source.changes.log.head

            is_saved = False
            while not is_saved:
                with log.contained("state not saved", source=self._source.name):
                    await self._store.save_changes(stored, changed)
                    is_saved = True
                if not is_saved:
                    await asyncio.sleep(RETRY_S)

    def _engaged(self) -> Iterator[StoredCluster]:
        for cluster in self._source.engagements.clusters():
            yield StoredCluster(cluster.object_uid, cluster.target, cluster.engaged_at)


def current_at(status: ViewStatus, now: float) -> float:
    """Return the Unix time at which a source with that status was last followed."""
    return time.time() - (now - status.since if status.state is ViewState.STALE else 0.0)


def positions(source: ClusterSource, epoch: str) -> dict[str, int]:
    """Return for each run of the daemon the revision up to which a state file contains everything that subscribers
    received."""
    engagements = source.engagements
    # Drains, and the additional fields of declared clusters, are not stored, although subscribers receive changes of
    # them.
    if engagements.draining_count or not all(type(cluster.target) is Target for cluster in engagements.clusters()):
        return {}
    earlier = source.restored_positions
    if not source.progress.is_restored:
        earlier = dict.fromkeys(earlier, ANY_REVISION)
    return {**dict([*earlier.items()][-EARLIER_RUNS:]), epoch: source.changes.log.head}


def restorable(clusters: Iterable[StoredCluster], restored_place: RestoredPlace) -> Iterator[tuple[Ready, float]]:
    """Yield the stored clusters that the source still accepts. The kind derives their addresses, or accepts those in
    the file."""
    for cluster in clusters:
        try:
            place = restored_place(cluster.target)
        except ValueError:
            continue  # The source no longer accepts the cluster's name, labels or address.
        # With an empty version, the first list always replaces the stored state.
        yield Ready(cluster.uid, "", msgspec.structs.replace(cluster.target, place=place)), cluster.engaged_at
