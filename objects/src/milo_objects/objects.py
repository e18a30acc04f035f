"""Objects: a store of the objects of all engaged clusters that keeps itself current."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from datetime import UTC, datetime

from milo_discovery.fleet import FleetClient
from milo_kube.change_signal import ChangeSignal
from milo_kube.failure_log import FailureLog
from milo_kube.task_groups import RunsInBackground
from milo_objects.change_backlog import ChangeBacklog
from milo_objects.follow import FollowedFleet
from milo_objects.kinds import Kind
from milo_objects.object_index import IndexFunction
from milo_objects.scope import Change, ObjectSource
from milo_objects.store import FoundObject, Index, Store

log = logging.getLogger("milo_objects")


class Objects(Store, RunsInBackground):
    """The objects of some kinds in all engaged clusters.

    `async with Objects(client, kinds) as objects:` keeps them current while its body runs. It is read in the event loop
    that runs it.
    """

    def __init__(
        self,
        source: FleetClient | ObjectSource,
        kinds: Iterable[Kind],
        *,
        indexes: Mapping[str, IndexFunction | Index] | None = None,
    ) -> None:
        """`source`: a DiscoveryClient, whose clusters are followed, or another source of changes.

        `indexes`: functions by the name of their index. Each takes a ProjectedObject, and returns a list of values.
        Raises ValueError if two kinds have the same resource.
        """
        self._kinds = tuple(kinds)
        resources = [kind.resource for kind in self._kinds]
        if repeated := sorted({name for name in resources if resources.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)}: followed under several kinds: declare one with the fields of all")
        self._source = source if isinstance(source, ObjectSource) else FollowedFleet(source)
        self._backlogs: set[ChangeBacklog] = set()
        self._signal = ChangeSignal()
        self._failures = FailureLog()
        super().__init__(
            resources, indexes or {}, datetime.now(UTC), changed=self._add, index_failed=self._log_index_failure
        )

    async def run(self) -> None:
        """Keep the objects current until canceled. Raises errors that a retry cannot fix."""
        await self._source.run(self._kinds, self)

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Yield what is known now as changes, and then each change.

        A reader that is slow gets the changes of each object merged.
        """
        backlog = ChangeBacklog()
        for change in self.snapshot():
            backlog.add(change)
        self._backlogs.add(backlog)
        try:
            while True:
                while (taken := backlog.take()) is not None:
                    yield taken
                await self._signal.wait_for(lambda: len(backlog) > 0)
        finally:
            self._backlogs.discard(backlog)

    def _add(self, change: Change) -> None:
        for backlog in self._backlogs:
            backlog.add(change)
        self._signal.notify()

    def _log_index_failure(self, index: str, found: FoundObject, error: Exception) -> None:
        if self._failures.is_new(index, error, asyncio.get_running_loop().time()):
            log.warning(
                "%s: index %s failed for %s %s, which is missing from the index: %r",
                *(found.cluster.name, index, found.resource, found.object.name, error),
            )
