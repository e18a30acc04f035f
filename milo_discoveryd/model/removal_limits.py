"""The mass-removal limit, and whether clusters that subscribers know may be missing from the first list of a run. Pure.

A subscriber that claims to know more clusters than it does only delays itself. In a shard group, a member does not
acknowledge a view until the first list is verified, which takes `removals.verify_after`: until then, a subscriber may
keep clusters that are missing from the list, and no other member may engage them.
"""

import sys

import msgspec


class RemovalLimits(msgspec.Struct, frozen=True, kw_only=True):
    count: int = 10
    """The number of engaged clusters that may be missing from a list."""
    share: float = 0.2
    """The share of engaged clusters that may be missing from a list. The limit is the larger of this and `count`, but
    with at least two engaged clusters never more than half of them."""
    verify_after_s: float = 30.0
    per_second: float = 50.0
    """The rate at which verified removals are confirmed one by one."""

    def is_burst(self, ended: int, engaged: int) -> bool:
        """Return whether as many clusters as this end too fast, one by one: more than `count`, whatever their share."""
        return ended > max(self.count, min(self.share, 0.5) * engaged)

    def is_mass(self, missing: int, engaged: int) -> bool:
        """Return whether the number of clusters that are missing at once is a mass removal: a burst, or more than half
        of a small fleet."""
        return engaged > 1 and (2 * missing > engaged or self.is_burst(missing, engaged))


class FirstList(msgspec.Struct, frozen=True):
    clusters: int
    """The number of engaged clusters that lists of this run contained."""
    limits: RemovalLimits | None
    """The limits for clusters that are missing from the list; None if a second list verified it, or no verification is
    needed."""
    version: int = 0
    """The resource version up to which the source is followed; 0 if versions cannot be compared."""
    initial: int = sys.maxsize
    """The number of clusters in the very first list."""

    @property
    def is_verified(self) -> bool:
        return self.limits is None

    def is_older(self, version: int) -> bool:
        """Return whether the list is older than this version: it may come from a replica that lags behind."""
        return self.limits is not None and 0 < self.version < version

    def may_lack(self, known_count: int, present_count: int, *, has_lacked: bool = False) -> bool:
        """Return whether the list may be incomplete, for a subscriber that knows more clusters than are present.

        A list without any cluster may be incomplete even if only one is known: waiting only costs time. If the first
        list was short, or an earlier list `has_lacked` too many clusters, later lists may be incomplete until they have
        all clusters.
        """
        if self.limits is None or present_count >= known_count:
            return False
        fewest = min(present_count, self.initial)
        return has_lacked or not present_count or self.limits.is_mass(known_count - fewest, known_count)


class ListedClusters:
    """The numbers of clusters in the lists of one source and run."""

    def __init__(self) -> None:
        self._initial: int | None = None
        self._most = 0

    def note(self, count: int) -> None:
        """Record the number of clusters in a list."""
        self._initial = count if self._initial is None else self._initial
        self._most = max(self._most, count)

    def first_list(self, engaged: int, limits: RemovalLimits | None, version: int) -> FirstList:
        """Return the first list, without clusters that the watch added: these do not prove that it was complete."""
        if self._initial is None:
            return FirstList(engaged, limits, version, engaged)
        return FirstList(min(engaged, self._most), limits, version, self._initial)
