"""The memory budget of the objects of one source. Pure.

A broken or malicious API server can list pages and send watch events without end, and so can a tenant create objects.
If several tenants have objects in a source that is at its limit, the objects of those with the most are not taken, and
only these. A source that exceeds the limit all the same is stale.

A tenant is the namespace of its objects. Objects without a namespace belong to their organization.
"""

from collections.abc import Iterable, Iterator

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
        self._collections: list[CollectionWeight] = []
        self._share = limit
        self.changed = 0
        """By how much `used` changed since the share was computed."""

    def add_collection(self, weight: "CollectionWeight") -> None:
        self._collections.append(weight)

    def add(self, more_used: int, more_kept: int) -> None:
        self.used += more_used
        self.kept += more_kept
        self.changed += abs(more_used)

    def used_by(self, owner: str) -> int:
        return sum(weight.by_owner.get(owner, 0) for weight in self._collections)

    @property
    def has_shares(self) -> bool:
        """Whether several tenants have objects in the source."""
        return self.has_others(next(self._owners(), ""))

    def has_others(self, than: str) -> bool:
        return any(owner != than for owner in self._owners())

    def _owners(self) -> Iterator[str]:
        return (owner for weight in self._collections for owner in weight.by_owner if owner is not MARKERS)

    @property
    def share(self) -> int:
        """The share of each tenant if the source is at its limit."""
        if self.changed * _PRECISION > self.limit:
            self._share, self.changed = fair_share(map(self.used_by, {*self._owners()}), self.limit), 0
        return self._share

    def fits(self, owner: str, more_used: int, more_kept: int) -> bool:
        """Return whether there is room for more of a tenant's objects. At the limit, there is for tenants within their
        share."""
        used, kept = self.used + more_used, self.kept + more_kept
        if (more_used <= 0 or used <= self.limit) and (more_kept <= 0 or kept <= 2 * self.limit):
            return True
        is_within_share = self.has_others(owner) and self.used_by(owner) + more_used <= self.share
        return is_within_share and kept <= self._most_kept

    def fits_marker(self, weight: int, more_kept: int) -> bool:
        is_within_part = self.used_by(MARKERS) + weight <= self.limit // _MARKERS_PART
        return is_within_part and self.kept + more_kept <= self._most_kept

    @property
    def _most_kept(self) -> int:
        return 2 * self.limit + self.limit // _OTHERS_PART


class CollectionWeight:
    """The weights of one collection's objects in the budget: sums that each change adjusts.

    While a list is in progress, it counts instead of the known objects, so that a source at its limit recovers with a
    shorter list.
    """

    def __init__(self, budget: ObjectBudget) -> None:
        self.budget = budget
        budget.add_collection(self)
        self.by_owner: dict[str, int] = {}
        """What counts in the budget now, by tenant."""
        self._known = self._kept = 0
        self._known_by_owner = self.by_owner
        self.names: dict[str, str] = {}
        """One instance of the name of each tenant, which saves memory."""
        self._listed: int | None = None
        self._kept_with_list = 0
        """The weight of all objects, and what the list in progress adds to it."""
        self.problem = ""
        """Why an object exceeded the budget; empty if none has since the start of the last list."""
        self.is_over_share = False
        """Whether an object exceeded the share of its tenant since the start of the last list."""
        self.relist_at: float | None = None
        """When to list again because of that."""

    @property
    def used(self) -> int:
        return self._known if self._listed is None else self._listed

    def add(self, owner: str, more_used: int, more_kept: int) -> None:
        """Add a change in the weight of the known objects."""
        self._known += more_used
        self._kept += more_kept
        if by_owner := self._known_by_owner.get(owner, 0) + more_used:
            self._known_by_owner[owner] = by_owner
        else:
            self._known_by_owner.pop(owner, None)
            self.names.pop(owner, None)
        if self._listed is None:
            budget = self.budget
            budget.used += more_used
            budget.kept += more_kept
            budget.changed += abs(more_used)

    def list_started(self) -> None:
        if self._listed is not None:
            self.list_ended()  # the previous list was not completed
        self.budget.add(-self._known, 0)
        self._listed, self._kept_with_list, self.by_owner, self.names = 0, self._kept, {}, {}
        self.problem, self.is_over_share, self.relist_at = "", False, None

    def add_listed(self, owner: str, weight: int, more_kept: int) -> None:
        """Add the weight of an object to the list in progress."""
        assert self._listed is not None, "no list was started"
        self._listed += weight
        self._kept_with_list += more_kept
        self.by_owner[owner] = self.by_owner.get(owner, 0) + weight
        budget = self.budget
        budget.used += weight
        budget.kept += more_kept
        budget.changed += weight

    def add_unchanged(self, owner: str, weight: int) -> None:
        """Add the weight of a known object to the list in progress."""
        if self.budget.used + weight > self.budget.limit:
            self.is_over_share |= not self.budget.fits(owner, weight, 0)
        self.add_listed(owner, weight, 0)

    def batch_applied(self, now: float) -> None:
        if self.is_over_share and self.relist_at is None:
            self.relist_at = now + OVER_BUDGET_RETRY_S

    def exceed(self) -> None:
        """Record that the source exceeds its budget."""
        self.problem = over_budget_problem(self.budget.limit)

    def list_ended(self) -> None:
        assert self._listed is not None, "no list was started"
        self.budget.add(self._known - self._listed, self._kept - self._kept_with_list)
        self._listed, self.by_owner = None, self._known_by_owner
