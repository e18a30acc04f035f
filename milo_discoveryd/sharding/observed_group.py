"""What a member knows of its group: the Leases as last read or written, and for how long it has seen each unchanged.

Pure. It returns which members may still own clusters, and which Leases are abandoned; `Member` decides what follows.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from math import inf

import msgspec

from milo_discoveryd.sharding.leases import (
    MAX_MEMBERS,
    MAX_NUMBER,
    PENDING_NAMES,
    PENDING_SIZE,
    GroupState,
    MemberLease,
    View,
    ViewMember,
)
from milo_discoveryd.sharding.timing import Timing


class ObservedWrite(msgspec.Struct, frozen=True):
    write: str
    since: float
    pending: frozenset[str] = frozenset()
    """The clusters that the Lease listed as pending when it was last readable."""
    holder: str = ""
    """The last process that was seen to hold the Lease."""
    term: str = ""
    renewal: int = 0
    """The number of the last renewal of the term that was seen."""

    def follows(self, lease: MemberLease) -> bool:
        """Return whether the Lease as it was seen came later than `lease`, or another program has changed that: what
        it lacks was not released. Only the numbers of one process in one term are compared: after a restore from a
        backup, its successor begins with an older one."""
        is_same = bool(lease.term) and (lease.term, lease.holder) == (self.term, self.holder)
        is_other = lease.renewal == self.renewal and lease.pending != self.pending
        return is_same and (lease.renewal < self.renewal < MAX_NUMBER or is_other)


class Candidates(msgspec.Struct, frozen=True):
    """The members with a valid Lease and a weight above 0 that are not leaving, up to `MAX_MEMBERS`. The next view
    contains those of them that may engage clusters."""

    members: Mapping[str, ViewMember]
    since: float
    """Since when these are the candidates; infinite before the first read."""
    other_since: float = inf
    """Since when they are others than the members of the present view; infinite if they are the same."""
    surplus: int = 0
    """The number of members above `MAX_MEMBERS`."""


class ObservedGroup(msgspec.Struct, frozen=True, kw_only=True):
    leases: GroupState = GroupState(members={})
    read_at: float = -inf
    """When the last successful read started."""
    writes: Mapping[str, ObservedWrite] = {}
    """The last write of each Lease, and when it was first observed. `write` is empty for a member of the view that has
    no Lease."""
    candidates: Candidates = Candidates({}, inf)
    latest_view: View | None = None
    """The latest view that was read or written; None after a loss, until the view is read again."""
    released: frozenset[str] = frozenset()
    """The members before `latest_view` of which a Lease showed that they have acknowledged it, or that their term has
    ended. What others do to these Leases later does not change that."""
    own_renewal: int = 0
    """The renewal number of the member's own Lease as last read or written."""

    # Reads and writes

    def read(self, leases: GroupState, own: str, *, started_at: float, now: float, timing: Timing) -> "ObservedGroup":
        """Return the group after a read of all Leases. `own` is the name of the member that reads.

        The latest view remains: whether the view that was read follows it is for the member to decide.
        """
        leases, view = self._kept(leases), self.agreed_view
        released = frozenset() if view is None else view.previous.keys() - self.unreleased(view, -inf, timing)
        own_renewal = leases.members[own].renewal if own in leases.members else 0
        writes = {name: lease.write_id for name, lease in leases.members.items()}
        for view in (leases.view, self.latest_view):
            if view is not None:
                writes = {**dict.fromkeys((*view.members, *view.previous), ""), **writes}
        vanished = (name for name in self.writes if name not in writes and self._is_pending_vanished(name, now, timing))
        writes |= dict.fromkeys(islice(vanished, MAX_MEMBERS), "")  # more are no former members
        # An unchanged Lease proves that its holder has not renewed it since the last read, but not if that read was
        # long ago, or this member's own renewals are lost: the Leases may have been restored from a backup, without
        # the renewals of other members.
        is_comparable = started_at - self.read_at < timing.fence_after_s and own_renewal >= self.own_renewal
        observed = {}
        for name, write in writes.items():
            before = self.writes.get(name)
            is_unchanged = is_comparable and before is not None and before.write == write
            # The pending clusters of a deleted or malformed Lease are kept: its holder may still be running.
            lease = leases.members.get(name)
            since = before.since if before and is_unchanged else now
            observed[name] = _observed(self._naming(name, lease), write, since, self._last_holder(name, lease))
        return msgspec.structs.replace(
            self,
            leases=leases,
            read_at=started_at,
            writes=observed,
            candidates=self._candidates_of(leases, now),
            released=self.released | released,
            own_renewal=own_renewal,
        )

    def _naming(self, name: str, lease: MemberLease | None) -> "MemberLease | ObservedWrite | None":
        """Return what names the pending clusters of a member: what was seen before, if its Lease is not evidence."""
        before = self.writes.get(name)
        is_evidence = lease is not None and not lease.problem and not (before is not None and before.follows(lease))
        return lease if is_evidence else before

    def pending_problem(self, leases: GroupState) -> str:
        """Return why a list must not be used: with it, too many pending clusters would be kept, of its Leases and of
        those that have become malformed or were deleted. Empty if these are few, or no more than now."""
        naming = (self._naming(name, leases.members.get(name)) for name in self.writes.keys() | leases.members.keys())
        now = [observed.pending for observed in self.writes.values()]
        then = [each.pending for each in naming if each is not None]
        names = sum(map(len, then))
        if names > PENDING_NAMES and names > sum(map(len, now)):
            return f"more than {PENDING_NAMES} pending clusters"
        size = sum(map(_size, then))
        if size > MAX_MEMBERS * PENDING_SIZE and size > sum(map(_size, now)):
            return f"pending clusters whose names have more than {MAX_MEMBERS * PENDING_SIZE} characters"
        return ""

    def _last_holder(self, name: str, lease: MemberLease | None) -> str:
        if lease is not None and lease.is_held:
            return lease.holder
        return self.writes[name].holder if name in self.writes else ""

    def _kept(self, leases: GroupState) -> GroupState:
        """Return the Leases with former objects where they are equal: comparisons of these take no time."""
        before = self.leases
        members = {
            name: lease if lease != before.members.get(name) else before.members[name]
            for name, lease in leases.members.items()
        }
        view = before.view if leases.view == before.view else leases.view
        return msgspec.structs.replace(leases, members=members, view=view)

    def _is_pending_vanished(self, name: str, now: float, timing: Timing) -> bool:
        observed = self.writes[name]
        return bool(observed.pending) and (bool(observed.write) or now < observed.since + timing.evict_after_s)

    def replaced(self, lease: MemberLease, now: float) -> "ObservedGroup":
        """Return the group after a write of a Lease."""
        leases = msgspec.structs.replace(self.leases, members={**self.leases.members, lease.member: lease})
        written = _observed(lease, lease.write_id, now, self._last_holder(lease.member, lease))
        return msgspec.structs.replace(
            self,
            leases=leases,
            writes={**self.writes, lease.member: written},
            candidates=self._candidates_of(leases, now),
        )

    def renewed(self, own: MemberLease, now: float) -> "ObservedGroup":
        """Return the group after a write of the member's own Lease."""
        return msgspec.structs.replace(self.replaced(own, now), own_renewal=own.renewal)

    def deleted(self, deleted: MemberLease) -> "ObservedGroup":
        """Return the group after the deletion of a Lease that was not held: the member may have another one since."""
        members = {
            name: lease
            for name, lease in self.leases.members.items()
            if name != deleted.member or lease.version != deleted.version
        }
        return msgspec.structs.replace(self, leases=msgspec.structs.replace(self.leases, members=members))

    def view_written(self, view: View, version: str, now: float) -> "ObservedGroup":
        leases = msgspec.structs.replace(self.leases, view=view, view_version=version)
        writes = {**dict.fromkeys(view.previous, ObservedWrite("", now)), **self.writes}
        candidates = self._candidates_of(leases, now)
        return msgspec.structs.replace(self.following(view), leases=leases, writes=writes, candidates=candidates)

    def following(self, view: View | None) -> "ObservedGroup":
        released = self.released if view == self.latest_view else frozenset()
        return msgspec.structs.replace(self, latest_view=view, released=released)

    def _candidates_of(self, leases: GroupState, now: float) -> Candidates:
        members = {
            lease.member: ViewMember(lease.term, lease.weight)
            for lease in leases.members.values()
            if lease.is_held and not lease.problem and not lease.is_leaving and lease.weight > 0
        }
        surplus = max(0, len(members) - MAX_MEMBERS)
        if surplus:
            present = {} if leases.view is None else leases.view.members
            kept = sorted(members, key=lambda name: (name not in present, name))[:MAX_MEMBERS]
            members = {name: members[name] for name in kept}
        since = min(self.candidates.since, now) if members == self.candidates.members else now
        is_same_view = number_of(leases.view) == number_of(self.leases.view)
        other_since = min(self.candidates.other_since, now) if is_same_view else now
        is_other = leases.view is None or members != dict(leases.view.members)
        return Candidates(members, since, other_since if is_other else inf, surplus)

    def are_stable(self, now: float, timing: Timing) -> bool:
        """Return whether the candidates have not changed for a while, or have been changing for long."""
        candidates = self.candidates
        longest = candidates.other_since + timing.longest_debounce_s
        return now >= min(candidates.since + timing.debounce_s, longest)

    # The view

    @property
    def agreed_view(self) -> View | None:
        """The present view, if the Leases agree on it."""
        return self.latest_view if self.is_authoritative else None

    @property
    def is_authoritative(self) -> bool:
        """Whether no held Lease acknowledges a later view than the one that was read.

        Once this member follows the view that was read, the acknowledgments in other Leases no longer matter.
        """
        if self.latest_view is not None and self.latest_view == self.leases.view:
            return True
        latest = number_of(self.leases.view)
        return not any(lease.acknowledged > latest and lease.is_held for lease in self.leases.members.values())

    @property
    def went_back(self) -> bool:
        """Whether the view that was read does not follow the latest one: it was deleted, changed or restored."""
        latest, read = self.latest_view, self.leases.view
        if latest is None:
            return False
        return read is None or read.number < latest.number or (read.number == latest.number and read.id != latest.id)

    def is_settled(self, timing: Timing) -> bool:
        """Return whether the view contains all present members, and each has acknowledged it."""
        view = self.agreed_view
        return (
            view is not None
            and dict(view.members) == dict(self.candidates.members)
            and not any(self.unsettled(view, {**view.previous, **view.members}, inf, timing))
        )

    def unreleased(self, view: View, now: float, timing: Timing) -> frozenset[str]:
        """Return the members before the agreed view that may still own the keys that it took from them."""
        return frozenset(self.unsettled(view, view.previous, now, timing)) - self.released

    def unsettled(self, view: View, members: Mapping[str, ViewMember], now: float, timing: Timing) -> Iterator[str]:
        """Yield the members that have not acknowledged the view, and may still own the keys that the view took from
        them."""
        for name, member in members.items():
            lease = self.leases.members.get(name)
            if lease is None or lease.is_cleared:
                # The Lease was deleted or cleared, for example manually, and its holder may not have read that yet.
                observed = self.writes.get(name)
                if observed is None or now < observed.since + timing.evict_after_s:
                    yield name
            elif lease.is_held and (lease.problem or (lease.term == member.term and lease.acknowledged != view.number)):
                yield name

    def pending_elsewhere(self, own: str, now: float, timing: Timing) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield each other member that has not released all keys, with these keys."""
        for name, observed in self.writes.items():
            lease = self.leases.members.get(name)
            if lease is None or lease.is_cleared:
                may_run = now < observed.since + timing.evict_after_s
            else:
                may_run = lease.is_held
            if observed.pending and may_run and name != own:
                yield name, observed.pending

    # Other members

    def writes_of_others(self, own: str) -> dict[str, str]:
        """Return the present write of each other member's Lease that is held."""
        members = self.leases.members
        return {name: lease.write_id for name, lease in members.items() if lease.is_held and name != own}

    def expires_at(self, member: str, timing: Timing) -> float:
        """Return when a Lease that is held, or was taken from its holder, counts as abandoned, unless it changes
        before."""
        return self.writes[member].since + timing.evict_after_s

    def is_member(self, lease: MemberLease) -> bool:
        """Return whether the present view, or the one before, has the member of a Lease."""
        view = self.leases.view
        return view is not None and (lease.member in view.members or lease.member in view.previous)

    def removable_at(self, lease: MemberLease, timing: Timing) -> float:
        """Return when a Lease may be cleared, if it is held, or else deleted."""
        if lease.is_held:
            return self.expires_at(lease.member, timing)
        if self.leases.view is None or self.is_member(lease):
            return inf
        return self.writes[lease.member].since + timing.retention_s

    def deadlines(self, timing: Timing) -> Iterator[float]:
        """Yield the times at which something changes without a read."""
        yield self.candidates.since + timing.debounce_s
        yield self.candidates.other_since + timing.longest_debounce_s
        for lease in self.leases.members.values():
            yield self.removable_at(lease, timing)
            if lease.is_cleared:
                yield self.expires_at(lease.member, timing)
        for observed in self.writes.values():
            if not observed.write:
                yield observed.since + timing.evict_after_s


def _observed(named: MemberLease | ObservedWrite | None, write: str, since: float, holder: str) -> ObservedWrite:
    """`named`: what names the pending clusters; None if nothing does."""
    if named is None:
        return ObservedWrite(write, since, holder=holder)
    return ObservedWrite(write, since, named.pending, holder, named.term, named.renewal)


def _size(names: frozenset[str]) -> int:
    return sum(map(len, names))


def number_of(view: View | None) -> int:
    return 0 if view is None else view.number
