"""What is known of a kind in all clusters: so that "not found" is told apart from "not read yet". Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from milo_objects.scope import FleetState, Pending, ScopeState, Stale, Synced


class ScopeView(NamedTuple):
    """The state of a kind in one cluster, and whether all objects that it had at some time are known."""

    state: ScopeState
    is_filled: bool


class View(NamedTuple):
    """What is known of a kind in all engaged clusters."""

    resource: str
    fleet: FleetState
    """Whether the engaged clusters themselves are known."""
    known: int
    """The number of known clusters."""
    missing: Mapping[str, ScopeState]
    """The known clusters that were not read completely yet, and why: an object that is not found may exist there."""
    outdated: Mapping[str, ScopeState]
    """The clusters that were read and cannot be followed at present, and why."""

    @property
    def synced(self) -> int:
        """The number of clusters that were read completely."""
        return self.known - len(self.missing)

    @property
    def is_complete(self) -> bool:
        """Whether all engaged clusters are known, and each was read completely: what is not found did not exist."""
        return not isinstance(self.fleet, Pending) and not self.missing

    @property
    def stale_since(self) -> datetime | None:
        """Since when some of the clusters that were read, or the list of clusters, may have changed unnoticed; None
        if everything is followed."""
        since = [state.since for state in self.outdated.values()]
        if isinstance(self.fleet, Stale):
            since.append(self.fleet.since)
        return min(since, default=None)


def view_of(resource: str, fleet: FleetState, clusters: Iterable[tuple[str, ScopeView]]) -> View:
    """Return the view of a kind, from the name of each known cluster and its state there."""
    missing: dict[str, ScopeState] = {}
    outdated: dict[str, ScopeState] = {}
    known = 0
    for name, found in clusters:
        known += 1
        if not found.is_filled:
            missing[name] = found.state
        elif not isinstance(found.state, Synced):
            outdated[name] = found.state
    return View(resource, fleet, known, MappingProxyType(missing), MappingProxyType(outdated))
