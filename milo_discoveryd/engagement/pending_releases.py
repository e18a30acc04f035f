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
from itertools import chain, islice

import msgspec

from milo_discoveryd.engagement.numbered_sets import NumberedSets
from milo_discoveryd.log.filter import ClusterView, Filter
from milo_discoveryd.model.cluster import Cluster

REMEMBERED_S = 60.0
"""How long a subscriber without a stream is remembered, as it may reconnect: much longer than a client's backoff."""
OWNED_S = 33.0
"""How long a subscriber of a shard group may still work in its clusters after its stream broke, until its ownership has
expired: `Timing.evict_after_s`."""
REMEMBERED_EACH = 100
"""Maximum number of subscribers without a stream that are remembered per caller. The oldest are dropped first."""
REMEMBERED_FILTER_BYTES = 256 * 1024
"""Maximum total size of the filters of a caller's subscribers without a stream. In memory, a filter takes about twenty
times its size in a request."""
COMPARED_PER_STEP = 2000
"""Maximum number of comparisons of clusters with subscribers in one step. One takes up to 10 µs."""

_ALL = Filter(confirms_releases=True)


def _either(one: ClusterView | None, other: ClusterView) -> ClusterView:
    """Return a view without filters that shows what either shows."""
    view = other.unfiltered
    return view if one is None or one.unfiltered.fingerprint == view.fingerprint else _ALL


class SubscriberKey(msgspec.Struct, frozen=True):
    """Identifies a subscriber, whichever of its streams it uses."""

    caller: str
    """The key of the authenticated caller, so that a caller cannot release for another."""
    name: str
    """The name that the subscriber chose."""


RETURNING = SubscriberKey("", "a subscriber of the daemon's previous run")
"""Represents the subscribers of an earlier run of the daemon. The key of a real caller is never empty."""


def _forgotten_of(caller: str) -> SubscriberKey:
    """Represents the subscribers of a caller that were forgotten early: no subscriber has this name."""
    return SubscriberKey(caller, "")


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
    """Whether the subscriber says that it has clusters of sources that were not shown to it before."""


class AwaitedRelease(msgspec.Struct, frozen=True):
    """A subscriber that a draining cluster waits for."""

    key: SubscriberKey
    label: str
    connected: bool
    since: float | None
    """When the subscriber connected or disconnected, on the steady clock; None if it is not remembered."""


class _Subscriber(msgspec.Struct):
    streams: list[Subscription]
    last: Subscription
    """The stream that was opened or closed most recently."""
    since: float
    owned_at: float
    """When its ownership may have been renewed last, unless it is told of ends."""
    is_leaving: bool = False
    """The subscriber ended its subscription, but its last stream is still open."""
    may_keep_others: bool = False
    """Whether it may own clusters that it was not shown in this run: it was there soon after the daemon's start, and no
    stream has told it of all ends since."""
    kept_at: float = -math.inf
    """When its ownership may have been renewed last while it had such clusters."""
    told_by: float = math.inf
    """Until when the ownership of such clusters is renewed, once clusters move and no stream has told of their end."""
    former: ClusterView | None = None
    """What it may have seen by another filter, or other rights, until a stream told it of the end of that."""
    ended: Subscription | None = None
    """A stream that ended beside streams with other views, which tell nothing of what it has shown, until one with its
    view is opened or the ownership has ended. It is never current. For several, one that shows what they did."""

    @property
    def shown(self) -> list[Subscription]:
        """The streams that determine what it may work in."""
        streams = self.streams or [self.last]
        return streams if self.ended is None else [*streams, self.ended]

    @property
    def is_current(self) -> bool:
        """Whether it has streams, each of which has sent all changes from before."""
        return bool(self.streams) and all(stream.is_current for stream in self.shown)

    @property
    def is_told(self) -> bool:
        """Whether its streams have told it of all ends, so that its renewals are not recorded."""
        return self.is_current and not self.keeps_others

    @property
    def keeps_others(self) -> bool:
        return self.may_keep_others and any(stream.keeps_others for stream in self.shown)

    @property
    def is_catching_up(self) -> bool:
        """Whether it has to be told of ends before clusters move: none does while one keeps others."""
        waits = self.may_keep_others and self.kept_at >= self.owned_at
        return not all(stream.is_current or (waits and stream.keeps_others) for stream in self.shown)

    @property
    def drains_per_step(self) -> int:
        """How many drains are compared with the streams in one step."""
        streams = self.shown
        return max(1, min(stream.view.records_per_step for stream in streams) // len(streams))

    def sees(self, cluster: Cluster) -> bool:
        if self.is_leaving:
            return False
        is_seen = any(stream.view.matches(cluster) for stream in self.shown)
        return is_seen or (self.former is not None and self.former.matches(cluster))

    def change_view(self, before: ClusterView, view: ClusterView) -> None:
        """Record that the view changed. Until it is told of that, it may work in what it saw before."""
        if not self.is_told and before.fingerprint != view.fingerprint:
            self.former = _either(self.former, before)

    def end_beside(self, subscription: Subscription) -> None:
        """Record that a stream ended, while others go on."""
        view, size, former = subscription.view, subscription.filter_bytes, self.ended
        if any(stream.view.fingerprint == view.fingerprint for stream in self.streams):
            return
        if former is not None and former.view.fingerprint != view.fingerprint:
            view, size = _either(former.view, view), 0
        keeps_others = subscription.keeps_others or (former is not None and former.keeps_others)
        self.ended = Subscription(subscription.key, subscription.label, view, size, keeps_others=keeps_others)


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
        self._subscribers: dict[SubscriberKey, _Subscriber] = {}
        self._gone: dict[str, dict[SubscriberKey, int]] = {}
        """Subscribers without a stream, by caller, oldest first, with the size of their filters."""
        self._behind: dict[SubscriberKey, _Subscriber] = {}
        """Subscribers with streams, one of which is not current."""
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
        subscriber = self._subscribers.get(key)
        if subscriber is None:
            self._subscribers[key] = subscriber = _Subscriber([], subscription, now, now)
            subscriber.may_keep_others, subscriber.kept_at = now < self.began_at + OWNED_S, now
            self._continue(subscriber, now)
        elif not subscriber.streams:
            subscriber.since = now
            subscriber.may_keep_others = subscriber.keeps_others and now < subscriber.kept_at + OWNED_S
            subscription.keeps_others |= subscriber.may_keep_others
        else:
            if subscriber.is_told:  # its renewals were not recorded, and the other stream may be dead
                subscriber.may_keep_others = subscriber.keeps_others or now < self.began_at + OWNED_S
                subscriber.owned_at = subscriber.kept_at = now
            subscription.keeps_others |= subscriber.keeps_others
        if (ended := subscriber.ended) is not None and ended.view.fingerprint == subscription.view.fingerprint:
            subscriber.ended = None
        if not subscriber.streams:
            subscriber.owned_at = now  # perhaps it was renewed without a name
        before = subscriber.last.view
        subscriber.streams.append(subscription)
        if self.is_sharded:
            subscriber.change_view(before, subscription.view)
        self._behind[key] = subscriber
        self._streams += 1
        self._limit_steps()
        subscriber.last, subscriber.is_leaving = subscription, False
        return self._expect(subscriber, subscription, [*self._drains])

    def _expect(
        self, subscriber: _Subscriber, subscription: Subscription, names: Sequence[str]
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
        if subscriber.is_told:
            subscriber.owned_at = subscriber.kept_at = now
        subscriber.streams.remove(subscription)
        self._streams -= 1
        self._limit_steps()
        subscriber.last = subscription
        if subscriber.streams:
            if self.is_sharded:
                subscriber.end_beside(subscription)
            self._behind[key] = subscriber
            self._note_told(key)
            return
        self._behind.pop(key, None)
        if subscriber.is_leaving:
            self._forget(key)
            return
        subscriber.since = now
        gone = self._gone.setdefault(key.caller, {})
        gone[key] = sum(stream.filter_bytes for stream in subscriber.shown)
        while len(gone) > REMEMBERED_EACH or sum(gone.values()) > REMEMBERED_FILTER_BYTES:
            oldest = next(iter(gone))
            forgotten = self._subscribers[oldest]
            self._forget(oldest)
            if self.is_sharded and forgotten.owned_at + OWNED_S > now:
                gone = self._represent(forgotten, now)

    def _represent(self, forgotten: _Subscriber, now: float) -> dict[SubscriberKey, int]:
        """Remember, in place of the subscribers of a caller that are forgotten early, one that sees what each of them
        may have seen. Return those of the caller without a stream."""
        key = _forgotten_of(forgotten.last.key.caller)
        view = _either(forgotten.former, forgotten.last.view)
        if forgotten.ended is not None:
            view = _either(view, forgotten.ended.view)
        represented = [forgotten]
        if (other := self._subscribers.get(key)) is not None:
            represented.append(other)
            view = _either(view, other.last.view)
            self._recall(key)
        last = Subscription(key, forgotten.last.label, view, keeps_others=True)
        self._subscribers[key] = _Subscriber([], last, now, max(one.owned_at for one in represented))
        if keeping := [one for one in represented if one.keeps_others]:
            both = self._subscribers[key]
            both.may_keep_others, both.kept_at = True, max(one.kept_at for one in keeping)
            both.told_by = min(one.told_by for one in keeping)
        self._limit_steps()
        gone = self._gone.setdefault(key.caller, {})
        gone[key] = 0
        return gone

    def _continue(self, subscriber: _Subscriber, now: float) -> None:
        """Let a subscriber that is not known be one of those of its caller that were forgotten early."""
        subscription, forgotten = subscriber.last, self._subscribers.get(_forgotten_of(subscriber.last.key.caller))
        if forgotten is None or now >= forgotten.owned_at + OWNED_S:
            return
        subscriber.last = forgotten.last
        if forgotten.keeps_others and now < forgotten.kept_at + OWNED_S:
            subscription.keeps_others = subscriber.may_keep_others = True
            subscriber.kept_at = now if now < self.began_at + OWNED_S else forgotten.kept_at
            subscriber.told_by = forgotten.told_by

    def await_sources(self, subscription: Subscription, *, keeps_others: bool) -> None:
        """Record whether a stream waits for sources: see `Subscription.keeps_others`. Until it is current, its
        subscriber keeps what it kept before."""
        subscription.keeps_others = keeps_others or (subscription.keeps_others and not subscription.is_current)
        self._note_told(subscription.key)

    def note_current(self, subscription: Subscription, *, keeps_others: bool = False) -> None:
        """Record that a stream has sent all changes from before, of the sources that it does not wait for."""
        subscription.is_current, subscription.keeps_others = True, keeps_others
        self._note_told(subscription.key)

    def note_behind(self, subscription: Subscription, now: float) -> None:
        """Record that a stream has to send changes from before."""
        if (subscriber := self._subscribers[subscription.key]).is_told:
            subscriber.owned_at = subscriber.kept_at = now
        subscription.is_current = False
        self._behind[subscription.key] = subscriber

    def _note_told(self, key: SubscriberKey) -> None:
        subscriber = self._subscribers[key]
        if subscriber.is_current:
            subscriber.former = None
        if subscriber.is_told:
            subscriber.told_by = math.inf
            self._behind.pop(key, None)

    def change_view(self, subscription: Subscription, view: ClusterView) -> Iterator[list[str]]:
        """Apply a change of the caller's authorization rules. The result compares the drains with the subscriber in
        steps, and yields the names of those that waited only for it."""
        if self.is_sharded:
            self._subscribers[subscription.key].change_view(subscription.view, view)
        subscription.view = view
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
            behind = [one for other, one in self._behind.items() if other.caller == key.caller]
            if any(one.is_catching_up for one in behind) and self.unreached(now):
                return False  # what has ended may still be on its way to it
            for one in behind:
                one.owned_at = now
            return True
        if not self.is_connected(key):
            return False
        subscriber = self._subscribers[key]
        if subscriber.ended is not None and now >= subscriber.owned_at + OWNED_S:
            subscriber.ended = None
            self._note_told(key)
        if subscriber.keeps_others:
            # No cluster moves, but for no longer than its client may take to read what a large fleet has.
            subscriber.told_by = math.inf if nothing_moves else min(subscriber.told_by, now + OWNED_S)
            if not nothing_moves and now >= min(subscriber.told_by, subscriber.kept_at + OWNED_S):
                return False
        elif not subscriber.is_current and self.unreached(now):
            return False
        if not subscriber.is_told:
            subscriber.owned_at = subscriber.kept_at = now
        return True

    def may_keep_others(self, now: float) -> bool:
        """Return whether a subscriber may work in clusters that ended, or that other members own now, without a message
        to it: of an earlier run, or that ended while it waited for a source."""
        others = chain(self._behind.values(), self._without_stream().values())
        return any(one.keeps_others and one.kept_at + OWNED_S > now for one in others)

    def note_unreached(self, cluster: Cluster, now: float) -> None:
        """Record the end of a cluster that subscribers without a stream are not told."""
        self._note(cluster.target.name, now, lambda untold: untold.sees(cluster))

    def note_change(self, before: Cluster, cluster: Cluster, now: float) -> None:
        """Record a change of a cluster, which ends for the subscribers whose view it leaves."""
        self._note(cluster.target.name, now, lambda untold: untold.sees(before) and not untold.sees(cluster))

    def _note(self, name: str, now: float, has_lost: Callable[[_Subscriber], bool]) -> None:
        untold = self._untold(now)
        self.compared += bool(untold)
        if (owned_at := max((one.owned_at for one in untold.values() if has_lost(one)), default=None)) is not None:
            self._unreached[name] = max(owned_at + OWNED_S, self._unreached.get(name, 0.0))

    def _untold(self, now: float) -> dict[SubscriberKey, _Subscriber]:
        """Return the subscribers that are not told at present that a cluster ends, and whose ownership may not have
        ended."""
        if not self._gone and not self._behind:
            return {}
        behind = {key: one for key, one in self._behind.items() if one.is_catching_up}
        return {key: one for key, one in (self._without_stream() | behind).items() if one.owned_at + OWNED_S > now}

    def _without_stream(self) -> dict[SubscriberKey, _Subscriber]:
        return {key: self._subscribers[key] for keys in self._gone.values() for key in keys}

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
            label, since = ("", None) if subscriber is None else (subscriber.last.label, subscriber.since)
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
        untold = self._untold(now)
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
