"""Reviews objects whose clusters are missing from a complete view, before they are deleted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from milo_discovery._removal_guard import Removal, Removals, is_followed
from milo_discovery.errors import ClusterNotFound, StatusError
from milo_discovery.model import ClusterReport, EngagementReason
from milo_publishing.errors import PublishedByAnother, TargetUnavailable
from milo_publishing.objects import ObservedObject, Owner

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.watch import Watch
    from milo_publishing.decisions import Publication
    from milo_publishing.reports import ProblemReports

_LOOKUPS = 8
"""Maximum number of concurrent requests to the daemon about missing clusters."""


class RemovalReview:
    """The review of missing clusters.

    Once the daemon confirms that a cluster is not engaged or does not match the filter, its object may be deleted.
    """

    def __init__(
        self, client: DiscoveryClient, publication: Publication, removals: Removals, reports: ProblemReports
    ) -> None:
        self._client = client
        self._publication = publication
        self._removals = removals
        self._reports = reports
        self.due_at: float | None = None
        self.has_identity = False
        """Whether the daemon's shard group is known."""
        self._elsewhere: set[Removal] = set()
        """Objects whose clusters the daemon has reported as UNASSIGNED since the objects were last listed."""

    @property
    def is_foreign(self) -> bool:
        """Whether the view may belong to another fleet, so that nothing may be written."""
        return self._removals.is_foreign

    @property
    def is_done(self) -> bool:
        return self.due_at is None or bool(self._removals.problem)

    def objects_listed(self, now: float) -> None:
        self._elsewhere.clear()
        self.due_at = now

    async def missing(self, watch: Watch) -> list[Removal]:
        """Return the objects whose clusters are not engaged or do not match the filter, as confirmed by the daemon.

        Raises PublishedByAnother if an object was written for another group or filter.
        """
        await self._identify()
        for name in self._publication.names():
            self.require_own(self._publication.observed(name))
        candidates = [
            removal
            for removal in self._publication.removals()
            if removal not in self._elsewhere and is_followed(watch, removal.cluster)
        ]
        lookups = asyncio.Semaphore(_LOOKUPS)
        missing = await asyncio.gather(*(self._is_missing(removal, lookups) for removal in candidates))
        return [removal for removal, is_missing in zip(candidates, missing, strict=True) if is_missing]

    def confirm(self, missing: list[Removal], now: float) -> None:
        """Permit the deletion of objects whose clusters have been missing for long enough."""
        confirmed = self._removals.review(missing, self._publication.published, now)
        self.due_at = self._removals.next_look_at(now)
        if self._removals.problem:
            self._reports.add_problem("removals", self._removals.problem)
        else:
            self._reports.resolve("removals", "no longer held")
        for removal in confirmed:
            self._publication.end(removal.name, removal.cluster_uid)

    def require_own(self, observed: ObservedObject | None) -> None:
        """Raise PublishedByAnother if an object of this publisher was written for another group or filter."""
        identity = self._publication.identity
        if observed is None or self._removals.accepts or observed.owner(identity) is not Owner.SELF:
            return
        if difference := observed.difference(identity):
            raise PublishedByAnother(
                f"{self._publication.described(observed.name)} of publisher {identity.publisher!r} {difference}: "
                "check the daemon's address and the filter, choose another --publisher, or take the objects over with "
                "--accept-removals"
            )

    async def _identify(self) -> None:
        """Request the daemon's shard group. Raises PublishedByAnother if it changed during this run."""
        try:
            sharding = (await self._client.server_info()).sharding
        except StatusError as error:
            raise TargetUnavailable(f"cannot get the daemon's server info: {error}", error.retry_after) from error
        identity = replace(self._publication.identity, group="" if sharding is None else sharding.group)
        if self.has_identity and identity != self._publication.identity:
            raise PublishedByAnother(
                f"the daemon's shard group changed from {self._publication.identity.group or 'none'} to "
                f"{identity.group or 'none'}: check the daemon's address and its `sharding.group`"
            )
        self._publication.identity, self.has_identity = identity, True

    async def _is_missing(self, removal: Removal, lookups: asyncio.Semaphore) -> bool:
        """Return whether the daemon confirms that a cluster is not engaged, or that it does not match the filter."""
        try:
            async with lookups:
                report = await self._client.get(removal.cluster)
        except ClusterNotFound:
            return True
        except StatusError as error:
            self._reports.add_problem(f"lookup of {removal.cluster}", f"failed: {error}")
            return False
        self._reports.resolve(f"lookup of {removal.cluster}", "succeeded")
        if report.engagement.reason is EngagementReason.UNASSIGNED:
            self._elsewhere.add(removal)
            return False
        return not _is_engaged(report, removal) or bool(self._publication.identity.filter)


def _is_engaged(report: ClusterReport, removal: Removal) -> bool:
    return report.engagement.engaged and report.cluster is not None and report.cluster.uid == removal.cluster_uid
