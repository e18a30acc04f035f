"""What a subscriber that confirms releases may work in: without I/O, and without the clusters themselves.

A stream that has sent all changes from before it was opened tells its subscriber of each end. What a subscriber may
work in without having been told of the end is computed in one place, `SubscriberState.untold`, of what each of its
streams has not told yet, and of what streams have left that ended. In a shard group, no other member engages that
before the ownership has ended, which is not renewed then.
"""

import math
from functools import reduce
from operator import or_

import msgspec

from milo_discoveryd.log.filter import ClusterView, Filter
from milo_discoveryd.model.cluster import Cluster

OWNED_S = 33.0
"""How long a subscriber of a shard group may still work in its clusters after its ownership was renewed last, until
that has expired: `Timing.evict_after_s`."""
MOST_VIEWS = 2
"""Maximum number of views that are kept of what a subscriber may work in. Of more, one without filters is kept."""

_ALL = Filter(confirms_releases=True)


class SubscriberKey(msgspec.Struct, frozen=True):
    """Identifies a subscriber, whichever of its streams it uses."""

    caller: str
    """The key of the authenticated caller, so that a caller cannot release for another."""
    name: str
    """The name that the subscriber chose."""


class ShownClusters(msgspec.Struct, frozen=True):
    """Clusters that streams have shown, in which a subscriber may work."""

    views: tuple[ClusterView, ...] = ()
    """They are among those that one of these views shows."""
    filter_bytes: int = 0
    """Total size of the filters of the views."""

    def __or__(self, other: "ShownClusters") -> "ShownClusters":
        if not (more := tuple(view for view in other.views if not self.has(view))):
            return self
        either = ShownClusters(self.views + more, self.filter_bytes + other.filter_bytes)
        return either if len(either.views) <= MOST_VIEWS else either.unfiltered

    @property
    def unfiltered(self) -> "ShownClusters":
        """The same, or more, without filters, which takes no memory that a subscriber determines."""
        views = {view.fingerprint: view for view in (view.unfiltered for view in self.views)}
        return ShownClusters(tuple(views.values()) if len(views) <= 1 else (_ALL,))

    def has(self, view: ClusterView) -> bool:
        return any(each.fingerprint == view.fingerprint for each in self.views)

    def without(self, view: ClusterView) -> "ShownClusters":
        views = tuple(each for each in self.views if each.fingerprint != view.fingerprint)
        return ShownClusters(views, self.filter_bytes) if views else NOTHING

    def sees(self, cluster: Cluster) -> bool:
        return any(view.matches(cluster) for view in self.views)


NOTHING = ShownClusters()


class Subscription(msgspec.Struct, eq=False):
    """One stream of a subscriber that confirms releases."""

    key: SubscriberKey
    label: str
    """A description of the caller for logs and messages."""
    view: ClusterView
    filter_bytes: int = 0
    is_current: bool = False
    """Whether the stream has sent all changes from before it was opened."""
    keeps_others: bool = False
    """Whether the subscriber says that it has clusters of sources that were not shown to it yet."""
    former: ShownClusters = NOTHING
    """Of what else it tells, until it is current: what it, or streams before it, showed by other filters or rights."""

    @property
    def shown(self) -> ShownClusters:
        return ShownClusters((self.view,), self.filter_bytes)

    @property
    def untold(self) -> ShownClusters:
        return NOTHING if self.is_current else self.shown | self.former


class SubscriberState(msgspec.Struct):
    label: str
    since: float
    """When it connected or disconnected."""
    owned_at: float
    """When its ownership may have been renewed last, unless it is told of all ends."""
    kept_at: float
    """The same, of clusters that this run does not know: no renewal without a name counts for these."""
    keeps_others: bool = False
    """Whether it may work in clusters that this run does not know, so that no cluster moves."""
    told_by: float = math.inf
    """Until when the ownership of such clusters is renewed, once others move and no stream has told of their end."""
    is_leaving: bool = False
    """The subscriber ended its subscription, but its last stream is still open."""
    streams: list[Subscription] = msgspec.field(default_factory=list)
    left: ShownClusters = NOTHING
    """What streams have shown that ended, and of which no present stream tells."""
    untold: ShownClusters = NOTHING
    """The clusters of this run in which it may work without having been told of their end."""

    @property
    def is_told(self) -> bool:
        return not (self.untold.views or self.keeps_others)

    @property
    def drains_per_step(self) -> int:
        """How many drains are compared with it in one step."""
        views = (*[stream.view for stream in self.streams], *self.untold.views)
        return max(1, min(view.records_per_step for view in views) // len(views))

    def sees(self, cluster: Cluster) -> bool:
        if self.is_leaving:
            return False
        return any(stream.view.matches(cluster) for stream in self.streams) or self.untold.sees(cluster)

    def may_own(self, now: float) -> bool:
        """Return whether it may work in what it was not told of."""
        return now < self.owned_at + OWNED_S

    def may_keep_others(self, now: float) -> bool:
        return self.keeps_others and now < self.kept_at + OWNED_S

    def may_lose(self, now: float) -> bool:
        """Return whether it has to be noted what it is not told of: no cluster moves for as long as it keeps others."""
        return self.may_own(now) and not (self.keeps_others and self.kept_at >= self.owned_at)

    def renew(self, now: float, *, has_lost: bool, nothing_moves: bool) -> bool:
        """Return whether the ownership may be renewed, and record that it is: see `PendingReleases.may_renew`.
        `has_lost`: whether clusters wait until the ownership of subscribers has ended that were not told."""
        if self.left.views and not self.may_own(now):
            self.left = NOTHING
            self._compute()
        if self.keeps_others:
            # No cluster moves, but for no longer than its client may take to read what a large fleet has.
            self.told_by = math.inf if nothing_moves else min(self.told_by, now + OWNED_S)
            may_renew = nothing_moves or now < min(self.told_by, self.kept_at + OWNED_S)
        else:
            may_renew = not (self.untold.views and has_lost)
        if may_renew:
            self.owned_at = self.kept_at = now
        return may_renew

    # --- streams ---

    def open(self, stream: Subscription, now: float, *, may_keep_others: bool) -> None:
        """Add a stream. `may_keep_others`: whether the subscriber may be one of an earlier run."""
        is_back = self.left.has(stream.view)
        if self.streams:
            self._note_renewal(now)  # the other streams may be dead
        else:
            self.keeps_others, self.left = self.may_keep_others(now), self.left if self.may_own(now) else NOTHING
            self.since = self.owned_at = now  # perhaps it was renewed without a name
            if not is_back:  # its filter, or its rights, may have changed
                stream.former, self.left = self.left, NOTHING
        self.left = self.left.without(stream.view)
        self.keeps_others |= may_keep_others and stream.keeps_others
        self.streams.append(stream)
        self.label, self.is_leaving = stream.label, False
        self._compute()

    def close(self, stream: Subscription, now: float) -> None:
        """Remove a stream. Others tell nothing of what it has shown, unless they have the same view."""
        self._note_renewal(now)
        self.streams.remove(stream)
        if not (same := [other for other in self.streams if other.view.fingerprint == stream.view.fingerprint]):
            self.left |= stream.shown | stream.untold
        elif not same[0].is_current:
            same[0].former |= stream.former
        if not self.streams:
            self.since = now
        self._compute()

    def tell(self, stream: Subscription, *, keeps_others: bool) -> None:
        """Record that a stream has told its subscriber of all ends, except of sources that it waits for."""
        stream.is_current, stream.keeps_others, stream.former = True, keeps_others, NOTHING
        self._compute()

    def fall_behind(self, stream: Subscription, now: float) -> None:
        self._note_renewal(now)
        stream.is_current = False
        self._compute()

    def change_view(self, stream: Subscription, view: ClusterView) -> None:
        """Apply a change of rights. What the stream has not told yet may be of the former ones."""
        stream.former, stream.view = stream.untold, view
        self._compute()

    def forget_former(self) -> None:
        """Let only the views of its streams count, where no other member may engage clusters."""
        self.left = NOTHING if self.streams else self.left
        for stream in self.streams:
            stream.former = NOTHING
        self._compute()

    def _note_renewal(self, now: float) -> None:
        if self.is_told:  # its renewals were not recorded
            self.owned_at = self.kept_at = now

    def _compute(self) -> None:
        self.untold = reduce(or_, (stream.untold for stream in self.streams), self.left)
        is_waiting = bool(self.untold.views) or any(stream.keeps_others for stream in self.streams)
        self.keeps_others = self.keeps_others and is_waiting
        self.told_by = self.told_by if self.keeps_others else math.inf

    # --- subscribers that are forgotten early ---

    def represent(self, other: "SubscriberState | None") -> "SubscriberState":
        """Return one without a stream that may work in what either may."""
        both = [self] if other is None else [self, other]
        keeping = [one for one in both if one.keeps_others] or both
        owned_at, kept_at = max(one.owned_at for one in both), max(one.kept_at for one in keeping)
        held = reduce(or_, (one.left for one in both)).unfiltered
        told_by, keeps_others = min(one.told_by for one in keeping), any(one.keeps_others for one in both)
        return SubscriberState(self.label, self.since, owned_at, kept_at, keeps_others, told_by, left=held, untold=held)
