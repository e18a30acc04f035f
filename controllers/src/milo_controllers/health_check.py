"""Computes the health of a set of controllers. Safe in any thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from milo_controllers.engaged_clusters import EngagedClusters
from milo_controllers.fleet_view import EngagedNames
from milo_controllers.health import CacheProblem, FailingObject, Health

FIRST_LIST_S = 30.0
"""A cluster whose first lists take longer counts as unresponsive, and no longer delays readiness."""


class HealthCheck:
    """The health of a set of controllers."""

    def __init__(self, engaged: EngagedClusters, clusters: EngagedNames) -> None:
        self._engaged = engaged
        self._clusters = clusters
        self._beginning: dict[str, float] = {}
        """The engaged clusters whose caches did not exist at the last check, as while they wait for a credential or
        after it failed, and since which check."""
        self._was_ready = False

    def health(self) -> Health:
        """Return the state of discovery, caches, clusters and queues."""
        discovery = self._clusters.discovery  # before the clusters: all are known that were when it was synced
        clusters = self._clusters.clusters
        members = dict(self._engaged.members)
        informers = [(member, found) for member in members.values() for found in tuple(member.informers.values())]
        now = self._engaged.now()
        oldest = [since for controller in self._engaged.controllers if (since := controller.oldest) is not None]
        late = time.monotonic() - FIRST_LIST_S
        # One that drains has ended, or will not begin.
        names = (name for name, one in clusters.items() if name not in members and not getattr(one, "draining", None))
        beginning = self._beginning = {name: self._beginning.get(name, time.monotonic()) for name in names}
        is_waiting = any(began > late for began in beginning.values()) or any(
            informer.state == "starting" and member.engaged_at > late for member, informer in informers
        )
        # A cluster that is engaged later does not make the process unready.
        self._was_ready = self._was_ready or (discovery.synced and not is_waiting)
        return Health(
            ready=self._was_ready,
            discovery=discovery,
            clusters=len(members),
            synced=discovery.synced and not beginning and all(informer.cache.synced for _, informer in informers),
            problems=tuple(
                CacheProblem(
                    cluster=member.cluster.name,
                    kind=str(informer.key),
                    state=informer.state,
                    is_synced=informer.cache.synced,
                    problem=informer.problem,
                    since=datetime.fromtimestamp(informer.since, UTC),
                )
                for member, informer in informers
                if informer.problem
            ),
            crashing=tuple(
                problem
                for cluster, problem in tuple(self._engaged.crashes.values())
                if cluster.engaged and not self._has_recovered(cluster.name)
            ),
            failing=sum(len(controller.failures) for controller in self._engaged.controllers),
            oldest_queued=timedelta(seconds=now - min(oldest, default=now)),
        )

    def _has_recovered(self, name: str) -> bool:
        """Return whether a cluster has run long enough since its last crash to count as recovered."""
        member = self._engaged.members.get(name)
        return member is not None and member.engaged_at < time.monotonic() - FIRST_LIST_S

    def failing(self) -> Iterator[FailingObject]:
        """Return the objects whose last reconcile failed."""
        now, wall = self._engaged.now(), time.time()
        for controller in self._engaged.controllers:
            for key, failure, retry_at in controller.failing():
                # An object without a delayed retry is ready to be reconciled, or in flight again.
                due = None if failure.is_stopped else wall + max(0.0, (retry_at or now) - now)
                yield FailingObject(
                    controller=controller.spec.name,
                    cluster=key.cluster,
                    namespace=key.namespace,
                    name=key.name,
                    error=failure.error,
                    attempts=failure.attempts,
                    since=datetime.fromtimestamp(failure.since, UTC),
                    next_try=None if due is None else datetime.fromtimestamp(due, UTC),
                )
