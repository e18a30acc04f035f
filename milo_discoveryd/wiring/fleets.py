"""Builds the fleets of the configured sources."""

import random
from collections.abc import Callable, Sequence

from milo_discoveryd.config import Settings
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.objects.removal_guard import RemovalGuard
from milo_discoveryd.registry.changes import Observer
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.source import ClusterSource, SourceDescription, SourcePolicy
from milo_discoveryd.wiring.configured_source import ConfiguredSource


def new_fleet(
    sources: Sequence[ConfiguredSource], settings: Settings, log: ChangeLog, observer: Callable[[str], Observer]
) -> Fleet:
    """Return the fleet of the configured sources. `observer` returns the observer of a source, given its name."""
    limits, grace_s = _limits(settings), settings.not_ready_grace.total_seconds()
    fleet = Fleet(log)
    for source in sources:
        made = ClusterSource(
            fleet.changes,
            observer(source.of.name),
            SourcePolicy(
                pending_deletions=lambda: PendingDeletions(random.random),
                guard=lambda: RemovalGuard(limits),
                not_ready=NotReadyClusters(grace_s, limits if settings.removals.hold_not_ready else None),
                objects_limit=settings.watch.objects_limit,
                drain_timeout_s=settings.drain_timeout.total_seconds(),
            ),
            SourceDescription(
                name=source.of.name,
                kind=source.of.kind,
                context=source.context,
                ready_when=source.of.settings.ready_when,
                server=source.discovery.server if source.discovery else "",
            ),
            keys=source.followed.keys,
            reduce=source.followed.reduce,
        )
        fleet.add(made)
    return fleet


def _limits(settings: Settings) -> RemovalLimits:
    removals = settings.removals
    return RemovalLimits(
        count=removals.count,
        share=removals.share,
        verify_after_s=removals.verify_after.total_seconds(),
        per_second=removals.per_second,
    )
