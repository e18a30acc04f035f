"""Builds the fleets of the configured sources."""

import random
from collections.abc import Callable, Sequence

from milo_discoveryd.config import Settings
from milo_discoveryd.registry.change_notifier import ChangeNotifier
from milo_discoveryd.registry.combined_fleet import CombinedFleet
from milo_discoveryd.registry.direct_fleet import DirectFleet
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.intake_sink import Observer
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.not_ready import NotReadyClusters
from milo_discoveryd.registry.pending_deletions import PendingDeletions
from milo_discoveryd.registry.reduced_fleet import ReducedFleet
from milo_discoveryd.registry.removal_guard import RemovalGuard, RemovalLimits
from milo_discoveryd.wiring.configured_source import ConfiguredSource


def new_fleet(
    sources: Sequence[ConfiguredSource], settings: Settings, log: ChangeLog, observer: Callable[[str], Observer]
) -> Fleet:
    """Return the fleet of one source without a name, or the combined fleet of named ones. `observer` makes that of a
    source."""
    if not sources[0].of.name:
        return _source_fleet(sources[0], settings, log, observer(""), None)
    notifier = ChangeNotifier()
    return CombinedFleet(
        log, notifier, [_source_fleet(each, settings, log, observer(each.of.name), notifier) for each in sources]
    )


def _source_fleet(
    source: ConfiguredSource,
    settings: Settings,
    log: ChangeLog,
    observer: Observer,
    notifier: ChangeNotifier | None,
) -> DirectFleet | ReducedFleet:
    followed = source.followed
    limits, drain_timeout_s = _limits(settings), settings.drain_timeout.total_seconds()
    grace_s = settings.not_ready_grace.total_seconds()
    not_ready = NotReadyClusters(grace_s, limits if settings.removals.hold_not_ready else None)
    if followed.reduce is not None:
        return ReducedFleet(
            log,
            followed.reduce,
            observer,
            keys=followed.keys,
            pending_deletions=_pending_deletions,
            guard=lambda: RemovalGuard(limits),
            not_ready=not_ready,
            drain_timeout_s=drain_timeout_s,
            name=source.of.name,
            kind=source.of.kind,
            context=source.context,
            notifier=notifier,
        )
    return DirectFleet(
        log,
        _pending_deletions(),
        observer,
        not_ready=not_ready,
        drain_timeout_s=drain_timeout_s,
        guard=RemovalGuard(limits),
        name=source.of.name,
        kind=source.of.kind,
        context=source.context,
        notifier=notifier,
        keys=followed.keys[0],
    )


def _pending_deletions() -> PendingDeletions:
    return PendingDeletions(random.random)


def _limits(settings: Settings) -> RemovalLimits:
    removals = settings.removals
    return RemovalLimits(
        count=removals.count,
        share=removals.share,
        verify_after_s=removals.verify_after.total_seconds(),
        per_second=removals.per_second,
    )
