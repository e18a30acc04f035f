"""The memory budget of the objects of one source. Pure.

A broken or malicious API server can list pages and send watch events without end, and so can a tenant create objects.
If several tenants have objects in a source that is at its limit, the objects of those with the most are not taken, and
only these. A source that exceeds the limit all the same is stale.

A tenant is the namespace of its objects. Objects without a namespace belong to their organization.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import msgspec

from milo_discoveryd.model.contributions import ContributingObject, ObservedObject
from milo_discoveryd.model.observation import Malformed, Ready

OVER_BUDGET = "OverBudget"
"""The status reason of a source with more objects than the daemon keeps."""
OVER_BUDGET_RETRY_S = 300.0
"""After how long the objects are listed again if some were not taken."""
UNLIMITED = 1 << 62
MARKERS = "\0markers"
"""Stands for the tenants of all objects of which only a marker is known."""
_MARKERS_PART = 8
"""Markers may weigh an eighth of the limit beyond it."""
_MARKER_CHARACTERS = 256
_OTHERS_PART = 2
"""The objects of tenants within their share, and markers, may weigh half of the limit beyond what else is kept."""
_PRECISION = 64
"""The share is computed again after changes by a part of the limit."""


def over_budget_problem(limit: int) -> str:
    return (
        f"the objects of the source exceed watch.objects_limit ({limit} bytes per source): the clusters stay as they "
        "are, and the objects are listed again later; raise the limit for a larger source"
    )


def fair_share(weights: Iterable[int], limit: int) -> int:
    """Return how much each tenant may have, so that all together have the limit and nobody lacks what another one has
    beyond it."""
    left, weight = sorted(weights), 0
    for place, weight in enumerate(left):
        if weight * (len(left) - place) > limit:
            return limit // (len(left) - place)
        limit -= weight
    return weight + limit


def marker(observed: ObservedObject, owner: str, limit: int) -> ObservedObject:
    """Return what is known of an object that is not taken. The cluster of a ready one stays in its last state."""
    if isinstance(observed, Ready | ContributingObject):
        message = (
            f"the objects of {owner or 'no tenant'} exceed their share of watch.objects_limit ({limit} bytes per "
            "source), of which others have less: this one is read again later"
        )
        return Malformed(observed.name, observed.uid, observed.version, message)
    excerpt = msgspec.structs.replace(observed, message=observed.message[:_MARKER_CHARACTERS])
    return excerpt if isinstance(excerpt, Malformed) else msgspec.structs.replace(excerpt, fields=None)


class TenantWeights(Protocol):
    @property
    def by_owner(self) -> Mapping[str, int]:
        """What counts in the budget now, by tenant."""


class ObjectBudget:
    """The budget of one source, over all of its collections.

    Objects that are missing from a list are kept until their deletion is confirmed. These objects do not count in
    `used`, so that a fleet at the limit can be replaced. All objects together may weigh twice the limit, and somewhat
    more if several tenants have objects.
    """

    def __init__(self, limit: int = UNLIMITED) -> None:
        self.limit = limit
        self.used = 0
        """The weight of the objects that the last lists contain, and of those seen since."""
        self.kept = 0
        """The weight of all objects."""
        self._collections: list[TenantWeights] = []
        self._share = limit
        self.changed = 0
        """By how much `used` changed since the share was computed."""

    def add_collection(self, weights: TenantWeights) -> None:
        self._collections.append(weights)

    def add(self, more_used: int, more_kept: int) -> None:
        self.used += more_used
        self.kept += more_kept
        self.changed += abs(more_used)

    def used_by(self, owner: str) -> int:
        return sum(weights.by_owner.get(owner, 0) for weights in self._collections)

    @property
    def has_shares(self) -> bool:
        """Whether several tenants have objects in the source."""
        return self.has_others(next(self._owners(), ""))

    def has_others(self, than: str) -> bool:
        return any(owner != than for owner in self._owners())

    def _owners(self) -> Iterator[str]:
        return (owner for weights in self._collections for owner in weights.by_owner if owner is not MARKERS)

    @property
    def share(self) -> int:
        """The share of each tenant if the source is at its limit."""
        if self.changed * _PRECISION > self.limit:
            self._share, self.changed = fair_share(map(self.used_by, {*self._owners()}), self.limit), 0
        return self._share

    def fits_share(self, owner: str, more_used: int, more_kept: int) -> bool:
        """Return whether there is room for more of a tenant's objects in a source at its limit."""
        is_within_share = self.has_others(owner) and self.used_by(owner) + more_used <= self.share
        return is_within_share and self.kept + more_kept <= self._most_kept

    def fits_marker(self, weight: int, more_kept: int) -> bool:
        is_within_part = self.used_by(MARKERS) + weight <= self.limit // _MARKERS_PART
        return is_within_part and self.kept + more_kept <= self._most_kept

    @property
    def _most_kept(self) -> int:
        return 2 * self.limit + self.limit // _OTHERS_PART
