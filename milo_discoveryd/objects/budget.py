"""The memory budget of the objects of one source, and of all sources together. Pure.

A broken or malicious API server can list pages and send watch events without end, and so can a tenant create objects.
If several tenants have objects in a source that is at its limit, the objects of those with the most are not taken, and
only these. A marker is kept of each, as far as there is room for markers; of further new ones nothing is known. A
source that exceeds the limit all the same is stale.

A tenant is the namespace of its objects. Objects without a namespace belong to their organization.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
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
_LEFT_OUT_PART = 4
"""What a list leaves out may weigh four times the limit, without its content: a list without end exceeds that."""
_OTHERS_PART = 4
"""Of the twice the limit that all objects may weigh, only the objects of tenants within their share, and markers, may
take the last quarter of the limit. As much again is for the objects that each source may have in any case."""
_PRECISION = 64
"""The share is computed again after changes by a part of the limit."""


def over_budget_problem(limit: int) -> str:
    return (
        f"the objects of the source exceed watch.objects_limit ({limit} bytes per source), or those of all sources "
        "twice that: the clusters stay as they are, and the objects are listed again later; raise the limit for larger "
        "sources"
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


def least_marker(marked: ObservedObject) -> ObservedObject:
    """Return the marker of a known object for which there is no room: it takes no more than what is known."""
    return msgspec.structs.replace(marked, message=OVER_BUDGET)


class TenantWeights(Protocol):
    @property
    def by_owner(self) -> Mapping[str, int]:
        """What counts in the budget now, by tenant."""

    @property
    def known_by_owner(self) -> Mapping[str, int]:
        """The weights of the known objects by tenant, also while a list is in progress: it may contain all of them."""


class AllObjects:
    """What the objects of all sources weigh."""

    def __init__(self) -> None:
        self.sources = 0
        self.kept = 0


class ObjectBudget:
    """The budget of one source, over all of its collections.

    Objects that are missing from a list are kept until their deletion is confirmed. These objects do not count in
    `used`, so that most of a fleet at the limit can be replaced at once. The objects of all sources together may weigh
    twice the limit (see `_OTHERS_PART`). Whatever other sources have, those of each source may weigh its part of a
    quarter of the limit.
    """

    def __init__(self, limit: int = UNLIMITED, of_all: AllObjects | None = None) -> None:
        self.limit = limit
        self.most_kept = 2 * limit - limit // _OTHERS_PART
        """What the objects of all sources may weigh before only those of tenants within their share are taken."""
        self.of_all = of_all or AllObjects()
        self.of_all.sources += 1
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
        self.of_all.kept += more_kept
        self.changed += abs(more_used)

    def used_by(self, owner: str) -> int:
        return sum(weights.by_owner.get(owner, 0) for weights in self._collections)

    @property
    def has_shares(self) -> bool:
        """Whether several tenants have objects in the source; only those count that a list in progress contains."""
        first = next(self._owners(), "")
        return any(owner != first for owner in self._owners())

    def has_others(self, than: str) -> bool:
        """Return whether other tenants have objects in the source, as far as is known while a list is in progress."""
        known = (owner for weights in self._collections for owner in weights.known_by_owner if owner is not MARKERS)
        return any(owner != than for owner in chain(self._owners(), known))

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
        is_within_share = self.has_others(owner) and self._claimed_by(owner, more_used, more_kept) <= self.share
        return is_within_share and self._fits_beside_others(more_kept)

    def is_reserved(self, more_kept: int) -> bool:
        """Return whether there is room for more weight of this source's objects, whatever other sources have."""
        return self.kept + more_kept <= self.limit // (_OTHERS_PART * self.of_all.sources)

    def _fits_beside_others(self, more_kept: int) -> bool:
        return self.of_all.kept + more_kept <= 2 * self.limit or self.is_reserved(more_kept)

    def _claimed_by(self, owner: str, more_used: int, more_kept: int) -> int:
        known = sum(weights.known_by_owner.get(owner, 0) for weights in self._collections)
        return max(self.used_by(owner) + more_used, known + more_kept)

    def is_beyond_share(self, owner: str, weight: int) -> bool:
        """Return whether it is a tenant's own objects that leave no room for more of them, as far as tenants are known.

        If not even the first object of a tenant fits, the source has too many tenants.
        """
        claimed = self._claimed_by(owner, 0, 0)
        return not self.has_others(owner) or 0 < claimed > self.share - weight

    def leaves_out(self, weight: int) -> bool:
        """Return whether a list may leave out that much."""
        return weight <= _LEFT_OUT_PART * self.limit

    def fits_marker(self, weight: int, more_kept: int) -> bool:
        is_within_part = self.used_by(MARKERS) + weight <= self.limit // _MARKERS_PART
        return is_within_part and self._fits_beside_others(more_kept)
