"""One source, followed: a driver feeds the fleet, and the fleet is remembered over restarts."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol

from milo_discoveryd.model.observation import Ready
from milo_discoveryd.model.source import SourceState, SourceStatus
from milo_discoveryd.reflect.reflector import Reflector, ReflectorPolicy
from milo_discoveryd.reflect.wire import Decoder
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.state_file.encoding import StoredCluster, StoredFleet
from milo_discoveryd.watchers.driver import Driver, SourceApi, WatchedCollection


class FleetStore(Protocol):
    """What outlives the daemon."""

    def recall(self) -> StoredFleet | None: ...

    async def keep(self, fleet: Callable[[], Iterable[StoredCluster]], changed: Callable[[], Awaitable[None]]) -> None:
        """What `fleet` gives, each time that `changed` returns; until it is cancelled."""


class Discovery:
    """`draw` gives random numbers in [0, 1)."""

    def __init__(
        self,
        fleet: Fleet,
        memory: FleetStore | None,
        *,
        policy: ReflectorPolicy,
        draw: Callable[[], float],
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._fleet = fleet
        self._memory = memory
        self._policy = policy
        self._draw = draw
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    async def run(self, api: SourceApi, watched: WatchedCollection, decoder: Decoder[Any]) -> None:
        """Until it is cancelled."""
        image = None if self._memory is None else self._memory.recall()
        status = None if image is None else self._restored(image)
        driver = Driver(
            api,
            watched,
            decoder=decoder,
            reflector=Reflector(self._policy, self._draw, self._clock(), status),
            pending_deletions=self._fleet.pending_deletions,
            sink=self._fleet,
            connect_timeout_s=self._connect_timeout_s,
            request_timeout_s=self._request_timeout_s,
            liveness=self._policy.liveness,
        )
        async with asyncio.TaskGroup() as tasks:
            if self._memory is not None:
                tasks.create_task(self._remember(self._memory), name="remember the fleet")
            await driver.run()

    def _restored(self, image: StoredFleet) -> SourceStatus:
        age_s = max(0.0, time.time() - image.written_at)
        status = SourceStatus(
            SourceState.STALE,
            self._clock() - age_s,
            "Restored",
            "the clusters are as they were when the daemon last ran; the source has not answered since",
        )
        # Without a version, whatever the first list says of an object counts as news.
        kept = ((Ready(each.uid, "", each.target), each.engaged_at) for each in image.clusters)
        self._fleet.restore(kept, status)
        return status

    async def _remember(self, memory: FleetStore) -> None:
        """From the first complete list on: a part of the fleet is not worth remembering."""
        kept_at = -1

        def engaged() -> Iterator[StoredCluster]:
            return (
                StoredCluster(record.uid, cluster.target, cluster.engaged_at)
                for record in self._fleet.registry.records()
                if (cluster := record.cluster) is not None
            )

        with self._fleet.signal.waiter() as bell:

            async def changed() -> None:
                nonlocal kept_at
                while not self._fleet.synced or self._fleet.log.head == kept_at:
                    await bell.wait(3600.0)
                kept_at = self._fleet.log.head

            await memory.keep(engaged, changed)
