"""The source: a driver feeds the fleet, and the state file keeps the fleet over restarts."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.registry.direct_fleet import DirectFleet
from milo_discoveryd.registry.reduced_fleet import ObjectFeed, ReducedFleet
from milo_discoveryd.state_file.encoding import StoredCluster, StoredFleet, StoredObject
from milo_discoveryd.watchers.driver import Driver, SourceApi, WatchedCollection
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.source_status import SourceState, SourceStatus
from milo_kube.reflect.versions import oldest
from milo_kube.reflect.wire import Decoder


class FleetStore(Protocol):
    """Keeps the fleet over restarts of the daemon."""

    def load(self) -> StoredFleet | None: ...

    async def save_changes(
        self,
        fleet: Callable[[], Iterable[StoredCluster]],
        changed: Callable[[], Awaitable[None]],
        highest_version: Callable[[], str],
        objects: Callable[[], Iterable[StoredObject]],
    ) -> None:
        """Save what the others return each time that `changed` returns, until cancelled."""


PlaceOf = Callable[[Target], tuple[str, ...]]
"""Returns `Target.place` of a stored cluster. Raises ValueError for one that is not to be restored."""


class FollowedCollection(NamedTuple):
    """A watched collection, and the decoder of its objects."""

    watched: WatchedCollection
    decoder: Decoder[Any, Observation]


class Discovery:
    """The tasks that follow the source and store the fleet. `jitter` returns random numbers in [0, 1)."""

    def __init__(
        self,
        fleet: DirectFleet | ReducedFleet,
        store: FleetStore | None,
        *,
        policy: ReflectorPolicy,
        jitter: Callable[[], float],
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._fleet = fleet
        self._store = store
        self._policy = policy
        self._jitter = jitter
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    async def run(self, api: SourceApi, collections: Sequence[FollowedCollection], place_of: PlaceOf) -> None:
        """Follow the source until cancelled. `collections` has an item for each of the fleet's feeds."""
        stored = None if self._store is None else self._store.load()
        status = None if stored is None else self._restored(stored, place_of)
        highest_version = "" if stored is None else stored.highest_version
        drivers, reflectors = [], []
        feeds: Sequence[DirectFleet | ObjectFeed] = self._fleet.feeds
        for feed, (watched, decoder) in zip(feeds, collections, strict=True):
            reflector: Reflector[Observation] = Reflector(
                self._policy, self._jitter, self._clock(), status, highest_version=highest_version
            )
            reflectors.append(reflector)
            drivers.append(
                Driver(
                    api,
                    watched,
                    decoder=decoder,
                    reflector=reflector,
                    pending_deletions=feed.pending_deletions,
                    sink=feed,
                    connect_timeout_s=self._connect_timeout_s,
                    request_timeout_s=self._request_timeout_s,
                    liveness=self._policy.liveness,
                )
            )
        async with asyncio.TaskGroup() as tasks:
            if self._store is not None:
                tasks.create_task(self._save(self._store, reflectors), name="save the fleet")
            for driver in drivers:
                tasks.create_task(driver.run(), name="follow a collection")

    def _restored(self, stored: StoredFleet, place_of: PlaceOf) -> SourceStatus:
        age_s = max(0.0, time.time() - stored.written_at)
        status = SourceStatus(
            SourceState.STALE,
            self._clock() - age_s,
            "Restored",
            "the clusters are those of the daemon's last run; the source has not answered since",
        )
        self._fleet.restore(restorable(stored.clusters, place_of), stored.objects, status)
        return status

    async def _save(self, store: FleetStore, reflectors: Sequence[Reflector[Observation]]) -> None:
        """Save after the first complete list: a partial fleet must not replace the stored one."""
        saved_at = -1

        def engaged() -> Iterator[StoredCluster]:
            return (
                StoredCluster(record.uid, cluster.target, cluster.engaged_at)
                for record in self._fleet.registry.records()
                if (cluster := record.cluster) is not None
            )

        with self._fleet.notifier.waiter() as waiter:

            async def changed() -> None:
                nonlocal saved_at
                while not self._fleet.synced or self._fleet.log.head == saved_at:
                    await waiter.wait(3600.0)
                saved_at = self._fleet.log.head

            await store.save_changes(
                engaged,
                changed,
                lambda: oldest(reflector.trust.highest_version for reflector in reflectors),
                self._fleet.stored_objects,
            )


def restorable(clusters: Iterable[StoredCluster], place_of: PlaceOf) -> Iterator[tuple[Ready, float]]:
    """Yield the stored clusters with addresses from the mode; those in the file are not used."""
    for each in clusters:
        try:
            place = place_of(each.target)
        except ValueError:
            continue  # a name that the mode never engages
        # With an empty version, the first list always replaces the stored state.
        yield Ready(each.uid, "", msgspec.structs.replace(each.target, place=place)), each.engaged_at
