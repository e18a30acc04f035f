"""Decides when a draining cluster is disengaged: when every subscriber that it waits for has released it, or at its
deadline.

A cluster waits for each subscriber that confirms releases and whose view contains it. A subscriber whose stream was
interrupted goes on working and will reconnect, so it is remembered for `REMEMBERED_S`, unless it ends its
subscription. A drain also waits for subscribers that connect during the drain, because they receive the cluster. The
subscribers of an earlier run are unknown. So during the first `REMEMBERED_S` after a restart, a drain without a known
subscriber waits for one to connect.

In a shard group, the ownership of a subscriber without a stream is not renewed. No other member engages a cluster whose
end it was not told until it has ended: see `unreached`. A stream tells it once it has sent all changes from before. Of
those that keep clusters that are not known, such as of an earlier run, no cluster moves: see `may_keep_others`.
"""

import heapq
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from milo_discoveryd.engagement.numbered_sets import NumberedSets
from milo_discoveryd.engagement.subscriber import OWNED_S, SubscriberKey, SubscriberState, Subscription
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.model.cluster import Cluster

REMEMBERED_S = 60.0
"""How long a subscriber without a stream is remembered, as it may reconnect: much longer than a client's backoff."""
REMEMBERED_EACH = 100
"""Maximum number of subscribers without a stream that are remembered per caller. The oldest are dropped first."""
REMEMBERED_FILTER_BYTES = 256 * 1024
"""Maximum total size of the filters of a caller's subscribers without a stream. In memory, a filter takes about twenty
times its size in a request."""
COMPARED_PER_STEP = 2000
"""Maximum number of comparisons of clusters with subscribers in one step. One takes up to 10 µs."""

RETURNING = SubscriberKey("", "a subscriber of the daemon's previous run")
"""Represents the subscribers of an earlier run of the daemon. The key of a real caller is never empty."""


def _forgotten_of(caller: str) -> SubscriberKey:
    """Represents the subscribers of a caller that were forgotten early: no subscriber has this name."""
    return SubscriberKey(caller, "")


class AwaitedRelease(msgspec.Struct, frozen=True):
    """A subscriber that a draining cluster waits for."""

    key: SubscriberKey
    label: str
    connected: bool
    since: float | None
    """When the subscriber connected or disconnected, on the steady clock; None if it is not remembered."""


class _Drain(msgspec.Struct):
    cluster: Cluster
    until: float
    latest: float
    """The deadline that applies once a subscriber is known to see the cluster."""
    expected: int
    """The awaited subscribers, as one of the `NumberedSets`: thousands of drains may wait for thousands each."""
    moves: bool = False
    """Whether another member of the shard group engages the cluster next."""
    released: int = 0

    @property
    def is_released(self) -> bool:
        return self.released == self.expected

    @property
    def unreleased(self) -> int:
        return self.expected & ~self.released


class PendingReleases:
    def __init__(self) -> None:
        self._drains: dict[str, _Drain] = {}
        self._deadlines: list[tuple[float, str]] = []
        """A heap of (deadline, name). An entry whose drain has ended, or has a different deadline now, is stale and
        skipped."""
        self._subscribers: dict[SubscriberKey, SubscriberState] = {}
        self._gone: dict[str, dict[SubscriberKey, int]] = {}
        """Subscribers without a stream, by caller, oldest first, with the size of their filters."""
        self._untold: dict[SubscriberKey, SubscriberState] = {}
        """Subscribers that may work in clusters of whose end no stream has told them."""
        self._numbered = NumberedSets[SubscriberKey]()
        self._return_until = -math.inf
        self._unreached: dict[str, float] = {}
        self.is_sharded = False
        """Whether other members of a shard group may engage the clusters next."""
        self.began_at = -math.inf
        """When this member of a shard group started."""
        self._streams = 0
        self.compared = 0
        """How many times a cluster was compared with the subscribers because it drains, or might."""
        self.clusters_per_step = COMPARED_PER_STEP
        """How many clusters may change in one step: each that drains, or begins to, is compared with the filters of all
        subscribers."""

    def __len__(self) -> int:
        return len(self._drains)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the draining clusters."""
        return iter(self._drains)

    def __contains__(self, name: str) -> bool:
        return name in self._drains

    # --- subscribers ---

    def expect_return(self, now: float) -> None:
        """Record that the daemon has restarted, so that its former subscribers are expected to reconnect."""
        self._return_until = now + REMEMBERED_S

    def open(self, subscription: Subscription, now: float) -> Generator[None, None, None]:
        """Add a stream. Drains of clusters in its view that begin from now on wait for its subscriber. The result makes
        those that have begun wait, and yields between steps."""
        key = subscription.key
        self._recall(key)
        is_young, subscriber = now < self.began_at + OWNED_S, self._subscribers.get(key)
        may_keep_others = is_young and (subscriber is None or bool(subscriber.streams))
        if subscriber is None:
            subscriber = SubscriberState(subscription.label, now, now, now)
            forgotten = self._subscribers.get(_forgotten_of(key.caller))
            if forgotten is not None and forgotten.may_own(now):  # it may be one of those
                subscriber = forgotten.represent(None)
                subscriber.kept_at = now if is_young else forgotten.kept_at
            self._subscribers[key] = subscriber
        subscriber.open(subscription, now, may_keep_others=may_keep_others)
        self._note(key)
        self._streams += 1
        self._limit_steps()
        return self._expect(subscriber, subscription, [*self._drains])

    def _note(self, key: SubscriberKey) -> None:
        """Note whether a subscriber may work in clusters of whose end no stream has told it, after a change of that."""
        subscriber = self._subscribers[key]
        if not self.is_sharded:
            subscriber.forget_former()
        if subscriber.is_told:
            self._untold.pop(key, None)
        else:
            self._untold[key] = subscriber

    def _expect(
        self, subscriber: SubscriberState, subscription: Subscription, names: Sequence[str]
    ) -> Generator[None, None, None]:
        key, step = subscription.key, subscription.view.records_per_step
        for start in range(0, len(names), step):
            if start:
                yield
            if subscriber.is_leaving:
                return
            for name in names[start : start + step]:
                drain = self._drains.get(name)
                if drain is None or drain.expected & self._numbered.find(key):
                    continue
                if subscription.view.matches(drain.cluster):
                    drain.expected = drain.expected & ~self._numbered.find(RETURNING) | self._numbered.bit(key)
                    if drain.until != drain.latest:
                        drain.until = drain.latest
                        heapq.heappush(self._deadlines, (drain.until, name))

    def close(self, subscription: Subscription, now: float) -> None:
        """Remove a stream. Drains still wait for its subscriber, unless the subscriber ended its subscription."""
        key = subscription.key
        subscriber = self._subscribers[key]
        subscriber.close(subscription, now)
        self._note(key)
        self._streams -= 1
        self._limit_steps()
        if subscriber.streams:
            return
        if subscriber.is_leaving:
            self._forget(key)
            return
        gone = self._gone.setdefault(key.caller, {})
        gone[key] = subscriber.left.filter_bytes
        while len(gone) > REMEMBERED_EACH or sum(gone.values()) > REMEMBERED_FILTER_BYTES:
            oldest = next(iter(gone))
            forgotten = self._subscribers[oldest]
            self._forget(oldest)
            if self.is_sharded and forgotten.may_own(now):
                gone = self._represent(oldest.caller, forgotten, now)

    def _represent(self, caller: str, forgotten: SubscriberState, now: float) -> dict[SubscriberKey, int]:
        """Remember, in place of the subscribers of a caller that are forgotten early, one that may work in what each of
        them may. Return those of the caller without a stream."""
        key = _forgotten_of(caller)
        self._recall(key)
        self._subscribers[key] = forgotten.represent(self._subscribers.get(key))
        self._note(key)
        self._limit_steps()
        gone = self._gone.setdefault(caller, {})
        gone[key] = 0
        return gone

    def await_sources(self, subscription: Subscription, *, keeps_others: bool) -> None:
        """Record whether a stream waits for sources: see `Subscription.keeps_others`. Until it is current, its
        subscriber keeps what it kept before."""
        if subscription.is_current:
            self.note_current(subscription, keeps_others=keeps_others)

    def note_current(self, subscription: Subscription, *, keeps_others: bool = False) -> None:
        """Record that a stream has sent all changes from before, of the sources that it does not wait for."""
        self._subscribers[subscription.key].tell(subscription, keeps_others=keeps_others)
        self._note(subscription.key)

    def note_behind(self, subscription: Subscription, now: float) -> None:
        """Record that a stream has to send changes from before."""
        self._subscribers[subscription.key].fall_behind(subscription, now)
        self._note(subscription.key)

    def change_view(self, subscription: Subscription, view: ClusterView) -> Iterator[list[str]]:
        """Apply a change of the caller's authorization rules. The result compares the drains with the subscriber in
        steps, and yields the names of those that waited only for it."""
        self._subscribers[subscription.key].change_view(subscription, view)
        self._note(subscription.key)
        return self._lose(subscription.key)

    def _lose(self, key: SubscriberKey) -> Iterator[list[str]]:
        # Listed only when this subscriber's turn comes: many change at once. Drains that begin later know the new view.
        rest = iter([*self._drains])
        while (subscriber := self._subscribers.get(key)) is not None and (name := next(rest, None)) is not None:
            step = [name, *islice(rest, subscriber.drains_per_step - 1)]
            drains = ((name, self._drains.get(name)) for name in step)
            lost = [name for name, drain in drains if drain is not None and not subscriber.sees(drain.cluster)]
            yield self._drop(key, lost)

    def knows(self, key: SubscriberKey) -> bool:
        return key in self._subscribers

    def is_connected(self, key: SubscriberKey) -> bool:
        subscriber = self._subscribers.get(key)
        return subscriber is not None and bool(subscriber.streams) and not subscriber.is_leaving

    def may_renew(self, key: SubscriberKey, now: float, *, nothing_moves: bool = False) -> bool:
        """Return whether the ownership of a subscriber may be renewed: it has a stream, which told it of clusters that
        ended while it had none. One that gives no name has no clusters, and may receive some as it owns them.

        `nothing_moves`: whether no cluster moves because of a source whose list is awaited.
        """
        if not key.name:
            behind = [one for other, one in self._untold.items() if other.caller == key.caller and one.streams]
            if any(one.may_lose(now) for one in behind) and self.unreached(now):
                return False  # what has ended may still be on its way to it
            for one in behind:
                one.owned_at = now
            return True
        if not self.is_connected(key):
            return False
        if (subscriber := self._subscribers[key]).is_told:
            return True
        may_renew = subscriber.renew(now, has_lost=bool(self.unreached(now)), nothing_moves=nothing_moves)
        self._note(key)
        return may_renew

    def may_keep_others(self, now: float) -> bool:
        """Return whether a subscriber may work in clusters that ended, or that other members own now, without a message
        to it: of an earlier run, or that ended while it waited for a source."""
        return any(one.may_keep_others(now) for one in self._untold.values())

    def note_unreached(self, cluster: Cluster, now: float) -> None:
        """Record the end of a cluster that subscribers without a stream are not told."""
        self._lost(cluster.target.name, now, lambda untold: untold.untold.sees(cluster))

    def note_change(self, before: Cluster, cluster: Cluster, now: float) -> None:
        """Record a change of a cluster, which ends for the subscribers whose view it leaves."""
        name = cluster.target.name
        self._lost(name, now, lambda untold: untold.untold.sees(before) and not untold.sees(cluster))

    def _lost(self, name: str, now: float, has_lost: Callable[[SubscriberState], bool]) -> None:
        untold = [one for one in self._untold.values() if one.may_lose(now)]
        self.compared += bool(untold)
        if (owned_at := max((one.owned_at for one in untold if has_lost(one)), default=None)) is not None:
            self._unreached[name] = max(owned_at + OWNED_S, self._unreached.get(name, 0.0))

    def unreached(self, now: float) -> Iterable[str]:
        """Return the clusters that have ended, and in which a subscriber of a shard group may work on: it had no stream
        then, and its ownership, as of the end of its last one, has not ended. That is renewed once another told it."""
        self._unreached = {name: until for name, until in self._unreached.items() if until > now}
        return self._unreached

    def end_subscription(self, key: SubscriberKey) -> list[str]:
        """End a subscription. Return the names of drains that waited only for this subscriber."""
        subscriber = self._subscribers.get(key)
        ended = self._drop(key, self._drains)
        if subscriber is not None and subscriber.streams:
            subscriber.is_leaving = True
        elif subscriber is not None:
            self._forget(key)
        return ended

    # --- drains ---

    def begin_drain(self, cluster: Cluster, until: float, now: float, *, moves: bool = False) -> bool:
        """Begin a drain that ends at `until` at the latest. Return False if there is no subscriber to wait for.

        `moves`: whether another member of the shard group engages the cluster next. Such a drain does not wait for the
        subscribers of the earlier run shortly after a restart: the group has its own time limits for hand-overs.
        """
        self._forget_gone(now)
        self.compared += 1
        expected = 0
        for key, subscriber in self._subscribers.items():
            if subscriber.sees(cluster):
                expected |= self._numbered.bit(key)
        latest = until
        if not expected and not moves and now < self._return_until:
            expected, until = self._numbered.bit(RETURNING), min(until, self._return_until)
        if not expected:
            return False
        name = cluster.target.name
        self._drains[name] = _Drain(cluster, until, latest, expected, moves)
        heapq.heappush(self._deadlines, (until, name))
        return True

    def update_drain(self, cluster: Cluster) -> bool:
        """Apply a change of a cluster. Return whether its drain is over, because the cluster left a subscriber's view.

        The cluster is disengaged for that subscriber at once, as for any subscriber whose filter it leaves.
        """
        name = cluster.target.name
        drain = self._drains.get(name)
        if drain is None:
            return False
        drain.cluster = cluster
        self.compared += 1
        expected = ((key, self._subscribers.get(key)) for key in self._numbered.members(drain.expected))
        lost = [key for key, subscriber in expected if subscriber is not None and not subscriber.sees(cluster)]
        for key in lost:
            self._drop(key, (name,))
        return bool(lost) and drain.is_released

    def move_deadline(self, name: str, until: float) -> None:
        """Let a drain, if there is one, end at another time."""
        drain = self._drains.get(name)
        if drain is not None:
            drain.until = until
            heapq.heappush(self._deadlines, (until, name))

    def hasten(self, names: Iterable[str], now: float) -> None:
        """Let drains end now that would end later."""
        for name in names:
            if (drain := self._drains.get(name)) is not None and drain.until > now:
                self.move_deadline(name, now)

    def end_drain(self, name: str) -> None:
        """Remove a drain, if there is one."""
        self._drains.pop(name, None)
        if not self._drains:
            self._forget_numbers()

    def release(self, key: SubscriberKey, name: str) -> bool:
        """Record a release. Return whether the drain waits for no other subscriber."""
        drain = self._drains[name]
        drain.released |= drain.expected & self._numbered.find(key)
        return drain.is_released

    def awaits(self, name: str, key: SubscriberKey) -> bool:
        drain = self._drains.get(name)
        return drain is not None and bool(drain.unreleased & self._numbered.find(key))

    def unreleased(self, name: str) -> frozenset[SubscriberKey]:
        """Return the subscribers that have not released a draining cluster; empty if the cluster does not drain."""
        drain = self._drains.get(name)
        return frozenset() if drain is None else frozenset(self._numbered.members(drain.unreleased))

    def awaited(self, name: str) -> list[AwaitedRelease]:
        """Return the subscribers that a draining cluster still waits for, sorted by name."""
        awaited = []
        for key in self.unreleased(name):
            subscriber = self._subscribers.get(key)
            label, since = ("", None) if subscriber is None else (subscriber.label, subscriber.since)
            awaited.append(AwaitedRelease(key, label, self.is_connected(key), since))
        return sorted(awaited, key=lambda release: (release.key.name, release.key.caller))

    @property
    def due_at(self) -> float | None:
        """The earliest deadline of a drain; None if there are no drains."""
        while self._deadlines:
            until, name = self._deadlines[0]
            if (drain := self._drains.get(name)) is not None and drain.until == until:
                return until
            heapq.heappop(self._deadlines)
        return None

    def due(self, now: float) -> list[str]:
        """Return the names of the draining clusters whose deadline has passed. Those that move become `unreached` if a
        subscriber that is not told of it, and has not released them, may work in them."""
        due = {name: drain for name, drain in self._drains.items() if drain.until <= now}
        untold = {key: one for key, one in self._untold.items() if one.may_lose(now)}
        owning = {self._numbered.find(key): one.owned_at for key, one in untold.items()}
        for key in self._numbered if untold else ():
            if key not in self._subscribers and (forgotten := untold.get(_forgotten_of(key.caller))) is not None:
                owning[self._numbered.find(key)] = forgotten.owned_at
        ended_at: dict[int, float] = {}
        for name, drain in due.items() if owning else ():
            unreleased = drain.unreleased if drain.moves else 0
            if unreleased not in ended_at:  # most drains wait for the same subscribers
                owned_at = (at for bit, at in owning.items() if bit & unreleased)
                ended_at[unreleased] = max(owned_at, default=-math.inf)
            if (until := ended_at[unreleased] + OWNED_S) > now:
                self._unreached[name] = max(until, self._unreached.get(name, 0.0))
        return [*due]

    def clear(self) -> None:
        """Remove all drains. Subscribers are kept."""
        self._drains.clear()
        self._deadlines.clear()
        self._forget_numbers()

    # --- storage ---

    def _forget_numbers(self) -> None:
        """Forget the numbers of former subscribers, for which no drain waits any more."""
        self._numbered.forget([key for key in self._numbered if key not in self._subscribers])

    def _drop(self, key: SubscriberKey, names: Iterable[str]) -> list[str]:
        """Stop waiting for a subscriber. Return the names of drains that waited only for this subscriber."""
        ended, bit = [], self._numbered.find(key)
        for name in names if bit else ():
            drain = self._drains[name]
            if not drain.expected & bit:
                continue
            drain.expected &= ~bit
            drain.released &= ~bit
            if drain.is_released:
                ended.append(name)
        return ended

    def _forget_gone(self, now: float) -> None:
        for gone in [*self._gone.values()]:
            for key in [*gone]:
                if self._subscribers[key].since > now - REMEMBERED_S:
                    break
                self._forget(key)

    def _forget(self, key: SubscriberKey) -> None:
        self._recall(key)
        del self._subscribers[key]
        self._untold.pop(key, None)
        self._limit_steps()
        bit = self._numbered.find(key)
        if bit and not any(drain.expected & bit for drain in self._drains.values()):
            self._numbered.forget([key])

    def _limit_steps(self) -> None:
        self.clusters_per_step = max(1, COMPARED_PER_STEP // (len(self._subscribers) + self._streams + 1))

    def _recall(self, key: SubscriberKey) -> None:
        """Remove a subscriber from those that are disconnected."""
        gone = self._gone.get(key.caller)
        if gone is not None and gone.pop(key, None) is not None and not gone:
            del self._gone[key.caller]
