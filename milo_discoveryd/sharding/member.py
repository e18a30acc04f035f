"""One member of a group. Decides which request to send next to the Lease API, and what the member owns.

Time is an argument, and must come from CLOCK_BOOTTIME or another clock that also advances while the machine is
suspended. Times of different machines are never compared. Requests are made elsewhere, one at a time:

    action = member.next(now)
    ... perform it ...
    member.was_read(...) | member.was_written(...) | member.conflicted(...) | member.failed(...)

Safety rests on these rules:

- A member claims ownership only for `fence_after_s` after the start of its last successful renewal. Others evict it, by
  a write that makes its next renewal fail, when its Lease has not changed for `evict_after_s` on their own clocks.
- A Lease counts as unchanged only while the observer reads it regularly: if the Leases were restored from a backup,
  renewals that were written between two reads may be missing.
- The next view is written only when every member of the present and the previous view has acknowledged the present
  view, left or been evicted. So a key has at most two possible owners: the present one, and the former one that has
  not released it. With the acknowledgment, a member lists the keys that it has not released: no other member
  engages those keys.
- A newcomer acknowledges the view, and so enters the next one, only when it may engage clusters, because former owners
  release at once what the view takes from them.
- Malformed data is not evidence: a malformed Lease counts as one that is not renewed, and a member whose own Lease was
  changed by others ends its term.
- A process that started, or was interrupted, engages nothing until every other member has renewed its Lease since then:
  if the Leases were restored from a backup, the other members detect it, and their writes show it.
"""

from collections.abc import Iterator, Mapping
from math import inf

import msgspec

from milo_discoveryd.sharding.leases import (
    Action,
    Delete,
    Evict,
    GroupState,
    MemberLease,
    Read,
    Request,
    View,
    ViewMember,
    WaitUntil,
    WriteLease,
    WriteView,
)
from milo_discoveryd.sharding.ownership import Ownership
from milo_discoveryd.sharding.state import TIMING, Candidates, Intent, ObservedWrite, State, Timing


class Member:
    def __init__(
        self,
        name: str,
        holder: str,
        *,
        weight: float = 1.0,
        instance: str = "",
        fleet: str = "",
        timing: Timing = TIMING,
    ) -> None:
        """`holder` identifies this process among all processes that ever use the member's name."""
        self.name = name
        self.holder = holder
        self.weight = weight
        self._instance = instance
        self._fleet = fleet
        self._timing = timing
        self.state = State()

    # What the member owns

    @property
    def fence_at(self) -> float:
        """The time at which ownership ends unless the Lease is renewed."""
        return -inf if self.state.lease is None else self.state.renewed_at + self._timing.fence_after_s

    @property
    def has_ended(self) -> bool:
        return self.state.intent is Intent.ENDED

    def is_fenced(self, now: float) -> bool:
        return now >= self.fence_at

    def ownership(self, now: float) -> Ownership | None:
        """Return what the member owns; None if it must not own anything, or has not read a view yet."""
        self.check(now)
        state, view = self.state, self._view
        if view is None or state.lease is None or state.resumed_at is None:
            return None
        if self._awaits_successors(view, now):
            view = msgspec.structs.replace(view, number=view.number - 1, members=view.previous)
        return Ownership(
            view=view,
            member=self.name,
            term=state.lease.term,
            unsettled=frozenset(self._unsettled(view, view.previous, now)),
            pending=dict(self._pending_elsewhere(now)),
            may_engage=self.is_confirmed and now >= state.engage_at,
        )

    def _awaits_successors(self, view: View, now: float) -> bool:
        """Return whether the member is leaving, and other members that take over its clusters have not acknowledged the
        view.

        Those members engage nothing before this member has acknowledged the view, so it keeps the clusters that it had.
        Once it has begun to release them, it never owns them again, whatever the other Leases contain then.
        """
        assert self.state.lease is not None
        if self.state.drained >= view.number:
            return False
        leaves = self.state.lease.is_leaving and self.name in view.previous and self.name not in view.members
        return leaves and any(self._unsettled(view, view.members, now))

    @property
    def is_confirmed(self) -> bool:
        """Whether every other member has renewed its Lease since this one started or was interrupted."""
        return self.state.unconfirmed is not None and not self.state.unconfirmed

    @property
    def is_settled(self) -> bool:
        """Whether the view contains all present members, each has acknowledged it, and none has clusters to release."""
        view, group = self._view, self.state.group
        return (
            view is not None
            and group is not None
            and dict(view.members) == dict(self.state.candidates.members)
            and not any(self._unsettled(view, {**view.previous, **view.members}, inf))
            and not any(lease.pending for lease in group.members.values() if lease.is_held)
        )

    @property
    def problems(self) -> Iterator[str]:
        """Yield problems for an administrator to fix."""
        state = self.state
        if state.problem:
            yield state.problem
        if state.group is None:
            return
        yield from state.group.problems
        for lease in state.group.members.values():
            if lease.problem:
                yield lease.problem
            elif state.lease is None and lease.member == self.name and self._must_wait_for(lease, state.group):
                yield (
                    f"another process ({lease.holder}) holds the Lease of member {self.name}: this process joins after "
                    "the other has ended; if both are to run, give them different names (sharding.member)"
                )
            elif lease.is_held and state.lease is not None and lease.fleet != state.lease.fleet:
                yield (
                    f"the sources or selectors of member {lease.member} differ from those of {self.name}: clusters "
                    "that one of them does not see may have no owner; give all members the same settings"
                )

    def check(self, now: float) -> None:
        """Fence the member if its Lease was not renewed in time."""
        if self.state.resumed_at is not None and self.is_fenced(now):
            self._interrupt(now)

    def _must_wait_for(self, lease: MemberLease, group: GroupState) -> bool:
        is_taken = lease.is_held and not lease.is_stopped and lease.holder != self.holder
        return is_taken and not self._may_continue(lease, group)

    def _may_continue(self, lease: MemberLease, group: GroupState) -> bool:
        """Return whether this process may continue the term of the process that holds the Lease."""
        is_mine = lease.holder == self.holder
        return (is_mine or not self.state.has_held) and not lease.problem and lease.acknowledged <= _number(group.view)

    def drained(self, number: int, pending: frozenset[str] = frozenset()) -> None:
        """Record that all clusters that the view of this number took from the member are released, except `pending`."""
        if number >= self.state.drained:
            self._set(drained=number, pending=pending)

    def leave(self) -> None:
        """Begin to leave the group."""
        if self.state.intent is Intent.STAY:
            self._set(intent=Intent.LEAVE)

    def stop(self) -> None:
        """Stop, and keep the term for a successor of the same name."""
        if not self.has_ended:
            self._set(intent=Intent.STOP)

    # Requests

    def next(self, now: float) -> Action:
        self.check(now)
        state = self.state
        if self.has_ended:
            return WaitUntil(inf)
        if now < state.retry_at:
            return WaitUntil(min([state.retry_at, *(due_at for due_at in (self.fence_at,) if due_at > now)]))
        if state.group is None or state.is_read_due:
            return Read()
        if state.lease is None:
            return self._join(state.group, now)
        own = self._own_write(state.lease, now)
        if own is not None and own.lease.content not in self._written:
            self._set(attempts=(*state.attempts, own.lease.content))
        due = own or self._group_request(state.group, now)
        return due or WaitUntil(min(due_at for due_at in self._deadlines(state.group) if due_at > now))

    def was_read(self, group: GroupState, started_at: float, now: float) -> None:
        self.check(now)
        state = self.state
        writes = {name: lease.write_id for name, lease in group.members.items()}
        for view in (group.view, state.latest_view):
            if view is not None:
                writes = {**dict.fromkeys((*view.members, *view.previous), ""), **writes}
        own_renewal = group.members[self.name].renewal if self.name in group.members else 0
        vanished = (
            name for name in state.observed_writes if name not in writes and self._is_pending_vanished(name, now)
        )
        writes |= dict.fromkeys(vanished, "")
        comparable = state.observed_writes if self._has_observed(own_renewal, started_at) else {}
        observed_writes = {
            name: ObservedWrite(
                write,
                comparable[name].since if name in comparable and comparable[name].write == write else now,
                pending,
            )
            for name, write in writes.items()
            for pending in [self._last_pending(name, group)]
        }
        self._set(
            group=group,
            read_at=started_at,
            is_read_due=False,
            retry_at=-inf,
            observed_writes=observed_writes,
            own_renewal=own_renewal,
        )
        self._update_candidates(now)
        self._check_own_lease(group, now)
        self._check_view(group, now)
        if self._regained_without_a_write(group, state.own_renewal):
            self._rejoin(now, f"the Lease of member {self.name} was restored")
        self._confirm(group, started_at)

    def _last_pending(self, name: str, group: GroupState) -> frozenset[str]:
        """Return a member's pending clusters. The pending clusters of a deleted Lease are kept: its holder may still be
        running."""
        if name in group.members:
            return group.members[name].pending
        return self.state.observed_writes[name].pending if name in self.state.observed_writes else frozenset()

    def _is_pending_vanished(self, name: str, now: float) -> bool:
        observed = self.state.observed_writes[name]
        return bool(observed.pending) and (bool(observed.write) or now < observed.since + self._timing.evict_after_s)

    def _pending_elsewhere(self, now: float) -> Iterator[tuple[str, str]]:
        """Yield each key that another member has not released, with that member."""
        group = self.state.group
        assert group is not None
        for name, observed in self.state.observed_writes.items():
            lease = group.members.get(name)
            if lease is None:
                pending = observed.pending if now < observed.since + self._timing.evict_after_s else frozenset()
            else:
                pending = lease.pending if lease.is_held else frozenset()
            if name != self.name:
                yield from ((key, name) for key in pending)

    def _has_observed(self, own_renewal: int, started_at: float) -> bool:
        """Return whether an unchanged Lease proves that its holder has not renewed it since the last read.

        It proves nothing if that read was long ago, or if this member's own renewals are lost: the Leases may have been
        restored from a backup, without the renewals of other members.
        """
        state = self.state
        return started_at - state.read_at < self._timing.fence_after_s and own_renewal >= state.own_renewal

    def _regained_without_a_write(self, group: GroupState, own_renewal: int) -> bool:
        """Return whether this process holds the Lease again after another process of its name had taken it over.

        The Lease was then restored from a backup, and the other process remains an owner until its fence.
        """
        lease = group.members.get(self.name)
        return (
            (self.state.lease is None and self.state.has_held)
            and (lease is not None and lease.holder == self.holder and not lease.problem)
            and lease.renewal < own_renewal
        )

    def was_written(self, request: Request, version: str, started_at: float, now: float) -> None:
        """Apply a successful write. `version` is the new version of the object."""
        self.check(now)
        state, group = self.state, self.state.group
        assert group is not None, "the group has not been read yet"
        self._set(retry_at=-inf)
        match request:
            case WriteLease(lease):
                self._hold(msgspec.structs.replace(lease, version=version), started_at, now)
            case Evict(lease):
                self._replace_lease(msgspec.structs.replace(lease, version=version), now)
            case Delete(lease):
                members = {
                    name: lease_of_member for name, lease_of_member in group.members.items() if name != lease.member
                }
                self._set(group=msgspec.structs.replace(group, members=members))
            case WriteView(view):
                self._set(group=msgspec.structs.replace(group, view=view, view_version=version), latest_view=view)
                self._set(
                    observed_writes={**dict.fromkeys(view.previous, ObservedWrite("", now)), **state.observed_writes}
                )
            case _:
                raise AssertionError(f"not a write: {request}")

    def conflicted(self, now: float) -> None:
        """Record that a write failed with a conflict."""
        self.check(now)
        self._set(is_read_due=True)

    def failed(self, now: float) -> None:
        """Record that a request failed. A write may have taken effect, or may still do so."""
        self.check(now)
        # No read is due: a write is repeated. If it did take effect, the version differs, and a read follows.
        self._set(retry_at=now + self._timing.retry_interval_s)

    # Joining and renewing

    def _join(self, group: GroupState, now: float) -> Action:
        state, timing = self.state, self._timing
        if state.intent is not Intent.STAY:
            self._set(intent=Intent.ENDED)
            return WaitUntil(inf)
        if now < state.rejoin_at:
            return WaitUntil(state.rejoin_at)
        lease = group.members.get(self.name)
        joined = MemberLease(
            member=self.name,
            holder=self.holder,
            term=f"{self.holder}.{state.terms + 1}",
            weight=self.weight,
            renewal=self._next_renewal(lease),
            instance=self._instance,
            fleet=self._fleet,
        )
        if lease is None:
            return WriteLease(joined)
        rejoined = msgspec.structs.replace(joined, version=lease.version)
        is_mine = lease.holder == self.holder
        expires_at = state.observed_writes[self.name].since + timing.evict_after_s
        if not lease.is_held or (is_mine and state.has_held) or expires_at <= now:
            return WriteLease(rejoined)
        if self._may_continue(lease, group):
            return WriteLease(
                msgspec.structs.replace(
                    rejoined, term=lease.term, acknowledged=lease.acknowledged, pending=lease.pending
                )
            )
        read_at = state.read_at + timing.renew_interval_s
        return Read() if read_at <= now else WaitUntil(min(read_at, expires_at))

    def _hold(self, lease: MemberLease, started_at: float, now: float) -> None:
        if not lease.is_held or lease.is_stopped:
            self._interrupt(now)
            self._set(intent=Intent.ENDED, lease=None)
            return
        if self.state.lease is None:
            self._begin_to_hold(lease, now)
        self._set(lease=lease, attempts=(), renewals=lease.renewal, own_renewal=lease.renewal, renewed_at=started_at)
        self._replace_lease(lease, now)
        if self.state.resumed_at is None and not self.is_fenced(now):
            self._set(resumed_at=started_at, unconfirmed=None, problem="")

    def _begin_to_hold(self, lease: MemberLease, now: float) -> None:
        state = self.state
        assert state.group is not None
        self._set(has_held=True, drained=0, pending=frozenset(), terms=state.terms + 1)
        if not lease.term.startswith(f"{self.holder}."):
            # Operators may act on events of the former process until its fence.
            former = state.group.members[self.name]
            has_ended = former.is_stopped or (self._instance and former.instance == self._instance)
            after = now + self._timing.evict_after_s
            engage_at = -inf if has_ended and former.holder != self.holder else after
            self._set(acknowledge_at=after, engage_at=engage_at)

    def _own_write(self, lease: MemberLease, now: float) -> WriteLease | None:
        state = self.state
        acknowledged = self._acknowledgeable(now)
        pending = state.pending if self._can_acknowledge(now) else lease.pending
        is_leaving = state.intent is Intent.LEAVE
        wanted = msgspec.structs.replace(lease, acknowledged=acknowledged, pending=pending, is_leaving=is_leaving)
        # Releases are written in batches, and the last one at once.
        is_batch_due = not pending or now >= state.renewed_at + self._timing.unsettled_read_interval_s
        is_changed = wanted != (lease if is_batch_due else msgspec.structs.replace(lease, pending=pending))
        wanted = msgspec.structs.replace(wanted, renewal=self._next_renewal(lease))
        if state.intent is Intent.STOP or (lease.is_leaving and not state.candidates.members):
            # A member that leaves while no other can take over its clusters is also recorded as stopped: a member that
            # joins later waits until this Lease expires.
            return WriteLease(msgspec.structs.replace(wanted, is_stopped=True))
        if lease.is_leaving and not pending and self._has_left(acknowledged):
            return WriteLease(msgspec.structs.replace(wanted, holder=""))
        if is_changed or now >= state.renewed_at + self._timing.renew_interval_s:
            return WriteLease(wanted)
        return None

    def _next_renewal(self, lease: MemberLease | None) -> int:
        """Return a number that no write of this holder has used, including writes that are not in a restored backup."""
        return max(self.state.renewals, 0 if lease is None else lease.renewal) + 1

    def _acknowledgeable(self, now: float) -> int:
        """Return the number of the latest view that the member can acknowledge."""
        state, view = self.state, self._view
        assert state.lease is not None
        if view is None or not self._can_acknowledge(now):
            return state.lease.acknowledged
        return max(view.number, state.lease.acknowledged)

    def _can_acknowledge(self, now: float) -> bool:
        state, view = self.state, self._view
        if view is None or now < state.acknowledge_at or state.drained < view.number:
            return False
        return self.is_confirmed or self.name in view.members or self.name in view.previous

    def _has_left(self, acknowledged: int) -> bool:
        view = self._view
        return view is not None and self.name not in view.members and acknowledged >= view.number

    # Effects of a read

    def _check_own_lease(self, group: GroupState, now: float) -> None:
        lease, own_lease = self.state.lease, group.members.get(self.name)
        if lease is None:
            return
        if own_lease is None:
            self._lose_term(now)  # the Lease was deleted, for example manually
        elif not own_lease.problem and own_lease.holder != self.holder:
            self._lose_term(now)
        elif own_lease.content not in self._written:
            self._rejoin(now, f"the Lease of member {self.name} was changed by another program, or restored")
        else:
            self._set(lease=own_lease)

    @property
    def _written(self) -> tuple[MemberLease, ...]:
        """The contents that the member's own Lease may have."""
        lease = self.state.lease
        return self.state.attempts if lease is None else (lease.content, *self.state.attempts)

    def _check_view(self, group: GroupState, now: float) -> None:
        latest, read = self.state.latest_view, group.view
        if latest is not None and (read is None or read.number < latest.number or _differ(read, latest)):
            self._rejoin(now, "the view of the shard group was changed by another program, or restored")
        elif self._is_authoritative(group):
            self._set(latest_view=read)

    def _rejoin(self, now: float, problem: str) -> None:
        """End the term and join again, because the Leases differ from what was written, for example after a restore
        from a backup."""
        self._lose_term(now)
        self._set(problem=f"{problem}: the member left the group and joins again")
        # Other members may have joined after the backup. Within this time, they detect the restore or are fenced.
        after = now + self._timing.evict_after_s
        self._set(engage_at=after, acknowledge_at=after)

    def _lose_term(self, now: float) -> None:
        self._interrupt(now)
        # A new term shows other members that the subscribers' handlers of the former term have ended, including those
        # of a process that had the term before this one.
        self._set(rejoin_at=max(now + self._timing.margin_s, self.state.acknowledge_at))
        self._set(
            lease=None, attempts=(), latest_view=None, renewed_at=-inf, drained=0, pending=frozenset(), has_held=True
        )

    def _interrupt(self, now: float) -> None:
        """End ownership. Acknowledge nothing until the subscribers' handlers have had time to finish."""
        if self.state.resumed_at is not None:
            after = max(self.state.acknowledge_at, now + self._timing.margin_s)
            self._set(resumed_at=None, unconfirmed=None, acknowledge_at=after)

    def _confirm(self, group: GroupState, started_at: float) -> None:
        state = self.state
        if state.resumed_at is None or started_at < state.resumed_at or self.is_confirmed:
            return
        others = {name: lease.write_id for name, lease in group.members.items() if lease.is_held and name != self.name}
        if state.unconfirmed is not None:
            others = {name: write for name, write in state.unconfirmed.items() if others.get(name) == write}
        self._set(unconfirmed=others)

    def _update_candidates(self, now: float) -> None:
        group = self.state.group
        assert group is not None
        members = {
            lease.member: ViewMember(lease.term, lease.weight)
            for lease in group.members.values()
            if lease.is_held and not lease.problem and not lease.is_leaving and lease.weight > 0
        }
        if members != self.state.candidates.members:
            self._set(candidates=Candidates(members, now))

    def _replace_lease(self, lease: MemberLease, now: float) -> None:
        group = self.state.group
        assert group is not None
        self._set(
            group=msgspec.structs.replace(group, members={**group.members, lease.member: lease}),
            observed_writes={
                **self.state.observed_writes,
                lease.member: ObservedWrite(lease.write_id, now, lease.pending),
            },
        )
        self._update_candidates(now)

    # The group

    def _group_request(self, group: GroupState, now: float) -> Request | None:
        if self._next_read_at <= now:
            return Read()
        for lease in group.members.values():
            if lease.member != self.name and self._removable_at(group, lease) <= now:
                return Delete(lease) if not lease.is_held else Evict(_cleared(lease))
        return self._next_view(group, now)

    def _removable_at(self, group: GroupState, lease: MemberLease) -> float:
        since = self.state.observed_writes[lease.member].since
        if lease.is_held:
            return since + self._timing.evict_after_s
        view = group.view
        if view is None or lease.member in view.members or lease.member in view.previous:
            return inf
        return since + self._timing.retention_s

    def _next_view(self, group: GroupState, now: float) -> WriteView | None:
        candidates, view = self.state.candidates, group.view
        members = self._next_members(group)
        former: Mapping[str, ViewMember] = {} if view is None else view.members
        is_stable = now >= candidates.since + self._timing.debounce_s
        if not members or not (is_stable or self._only_loses_leaving_members(group, former)):
            return None
        if not self._is_authoritative(group) or (view is None and self.state.latest_view is not None):
            return None
        if view is not None and (
            dict(former) == members or any(self._unsettled(view, {**view.previous, **former}, now))
        ):
            return None
        number = _number(view) + 1
        view = View(number=number, id=f"{self.holder}.{number}", members=members, previous=former)
        return WriteView(view, group.view_version)

    def _only_loses_leaving_members(self, group: GroupState, former: Mapping[str, ViewMember]) -> bool:
        """Return whether the only change in the next view is that members that hand over their clusters are removed."""
        leaving = {name for name, lease in group.members.items() if lease.is_held and lease.is_leaving}
        staying = {name: member for name, member in former.items() if name not in leaving}
        return staying == self._next_members(group)

    def _next_members(self, group: GroupState) -> dict[str, ViewMember]:
        """Return the candidates, except newcomers that may not engage clusters yet. The first view contains all
        candidates."""
        view, candidates = group.view, self.state.candidates.members
        if view is None:
            return dict(candidates)
        return {
            name: member
            for name, member in candidates.items()
            if name in view.members or group.members[name].acknowledged > 0
        }

    @property
    def _view(self) -> View | None:
        """The present view, if the Leases agree on it."""
        group = self.state.group
        return self.state.latest_view if group is not None and self._is_authoritative(group) else None

    def _is_authoritative(self, group: GroupState) -> bool:
        """Return whether no held Lease acknowledges a later view than the one that was read.

        Once this member follows the view that was read, the acknowledgments in other Leases no longer matter.
        """
        if self.state.latest_view is not None and self.state.latest_view == group.view:
            return True
        latest = _number(group.view)
        return not any(lease.acknowledged > latest and lease.is_held for lease in group.members.values())

    def _unsettled(self, view: View, members: Mapping[str, ViewMember], now: float) -> Iterator[str]:
        """Yield the members that have not acknowledged the view, and may still own the keys that the view took from
        them."""
        group = self.state.group
        assert group is not None
        for name, member in members.items():
            lease = group.members.get(name)
            if lease is None:
                # The Lease was deleted, for example manually, and its holder may not have read that yet.
                observed = self.state.observed_writes.get(name)
                if observed is None or now < observed.since + self._timing.evict_after_s:
                    yield name
            elif lease.is_held and (lease.problem or (lease.term == member.term and lease.acknowledged != view.number)):
                yield name

    @property
    def _next_read_at(self) -> float:
        timing = self._timing
        is_quiet = self.is_settled and self.is_confirmed
        return self.state.read_at + (timing.read_interval_s if is_quiet else timing.unsettled_read_interval_s)

    def _deadlines(self, group: GroupState) -> Iterator[float]:
        state, timing = self.state, self._timing
        yield from (self._next_read_at, self.fence_at, state.engage_at, state.acknowledge_at)
        yield state.renewed_at + timing.renew_interval_s
        yield state.candidates.since + timing.debounce_s
        for lease in group.members.values():
            yield self._removable_at(group, lease)
        for observed in state.observed_writes.values():
            if not observed.write:
                yield observed.since + timing.evict_after_s

    def _set(self, **changes: object) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)


def _number(view: View | None) -> int:
    return 0 if view is None else view.number


def _differ(one: View, other: View) -> bool:
    return one.number == other.number and one.id != other.id


def _cleared(lease: MemberLease) -> MemberLease:
    return msgspec.structs.replace(
        lease, holder="", pending=frozenset(), is_leaving=False, is_stopped=False, problem=""
    )
