"""A source of clusters without an API server, to which the test applies events."""

from typing import Any

import msgspec

from milo_discoveryd.fleet.changes import Observer
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourceDescription, SourcePolicy
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from tests.unit.fleet.fleets import NeverMass


def new_source(
    observer: Observer,
    log: ChangeLog | None = None,
    *,
    fleet: Fleet | None = None,
    pending_deletions: PendingDeletions | None = None,
    **settings: Any,
) -> ClusterSource:
    """Return a source of `fleet`, by default of a new one, with one collection unless `settings` contain `keys`."""
    pending = PendingDeletions(lambda: 0.0) if pending_deletions is None else pending_deletions
    policy = {name: settings.pop(name) for name in SourcePolicy.__struct_fields__ if name in settings}
    description = {name: settings.pop(name) for name in SourceDescription.__struct_fields__ if name in settings}
    fleet = fleet or Fleet(log or ChangeLog(msgspec.json.encode, Retention()))
    made = ClusterSource(
        fleet.changes,
        observer,
        SourcePolicy(**{"pending_deletions": lambda: pending, "removals": NeverMass(verify_after_s=3600.0), **policy}),
        SourceDescription(**description),
        **settings,
    )
    return fleet.add(made)
