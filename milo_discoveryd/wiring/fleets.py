"""Builds the fleet of a source from settings."""

import random

from milo_discoveryd.config import Settings
from milo_discoveryd.modes.mode import Mode, ReducedMode
from milo_discoveryd.registry.direct_fleet import DirectFleet
from milo_discoveryd.registry.intake_sink import Observer
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.not_ready import NotReadyClusters
from milo_discoveryd.registry.pending_deletions import PendingDeletions
from milo_discoveryd.registry.reduced_fleet import ReducedFleet
from milo_discoveryd.registry.removal_guard import RemovalGuard, RemovalLimits
from milo_discoveryd.wiring.mode import keys_of


def new_fleet(settings: Settings, mode: Mode, log: ChangeLog, observer: Observer) -> DirectFleet | ReducedFleet:
    limits, drain_timeout_s = _limits(settings), settings.drain_timeout.total_seconds()
    grace_s = settings.not_ready_grace.total_seconds()
    not_ready = NotReadyClusters(grace_s, limits if settings.removals.hold_not_ready else None)
    if isinstance(mode, ReducedMode):
        return ReducedFleet(
            log,
            mode.reduce,
            observer,
            keys=keys_of(mode),
            pending_deletions=_pending_deletions,
            guard=lambda: RemovalGuard(limits),
            not_ready=not_ready,
            drain_timeout_s=drain_timeout_s,
        )
    return DirectFleet(
        log,
        _pending_deletions(),
        observer,
        not_ready=not_ready,
        drain_timeout_s=drain_timeout_s,
        guard=RemovalGuard(limits),
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
