"""One member of a group. Decides which request to send next to the Lease API, and what the member owns.

Time is an argument, and must come from CLOCK_BOOTTIME or another clock that also advances while the machine is
suspended. Times of different machines are never compared. Requests are made elsewhere, one at a time, and a deletion
beside the others:

    action = member.next(now)
    ... perform it ...
    member.was_read(...) | member.was_written(...) | member.conflicted(...) | member.failed(...)

What follows in each state (see `state`) when the write of a Lease fails:

    State      a conflict: the Lease changed     an error: it may have taken effect   no renewal for 20 s
    Joining    reads; may then continue the      writes again; if it did take         nothing: it owns nothing
               term of the process before        effect: continues its own term
    Lost       reads; joins when the Lease is    writes again; if it did take         nothing: it owns nothing
               free, its own or expired          effect: joins in a term other than
                                                 the lost one
    Holding    keeps its clusters and reads; a   keeps its clusters, reads once and   owns nothing, and acknowledges
               Lease that it did not write:      writes again; what it may have       no view for 13 s; continues its
               Lost, so it owns nothing          written counts once it is read       term with the next renewal
    Leaving    as Holding, but Departed instead  as Holding                           as Holding
               of Lost
    Resigned   Departed                          Departed; the Lease may stay, and    nothing: it owns nothing
                                                 is evicted after 33 s

A conflict is followed by a read: the first at once, and others a second apart. A list that lacks the own Lease is
followed by a write, which conflicts if the Lease was deleted; a wrong list changes nothing. An error is followed by a
delay of a second, or of what the server states (Retry-After); if that leaves no time for a renewal before the fence, a
write, or the read that has to precede it, is repeated after half the time until then. After a write that succeeds, the
member is Holding or Leaving, or Departed if that write released the Lease or recorded the stop. Writes of views,
evictions and deletions that fail change no state: they are decided again, after a read if it was a conflict. The member
renews its Lease meanwhile, and what the server states delays the same write alone.

Safety rests on these rules:

- A member claims ownership only for `fence_after_s` after the start of its last successful renewal. Others evict it, by
  a write that makes its next renewal fail, when its Lease has not changed for `evict_after_s` on their own clocks.
- A Lease counts as unchanged only while the observer reads it regularly: if the Leases were restored from a backup,
  renewals that were written between two reads may be missing.
- The next view is written only when every member of the present and the previous view has acknowledged the present
  view, left or been evicted. So a key has at most two possible owners: the present one, and the former one that has
  not released it. With the acknowledgment, a member lists the keys that it has not released: no other member
  engages those keys.
- A newcomer acknowledges the view, and so enters the next one, only when it may engage clusters and knows them, because
  former owners release at once what the view takes from them.
- What others change is not evidence: a malformed Lease, and one that was deleted or whose holder was cleared, counts as
  one that is not renewed, and a member whose own Lease was changed by others ends its term. A member that releases its
  Lease, or evicts another, clears the term too. What a Lease has shown about the present view remains so.
- What a Lease states about the end of its holder is so for all processes of that name before it: while these may own
  clusters, the holder states no instance, and ends without a statement that it has stopped.
- A process that started, or was interrupted, engages nothing until every other member has renewed its Lease since then:
  if the Leases were restored from a backup, the other members detect it, and their writes show it.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import TypeAlias

import msgspec

from milo_discoveryd.sharding.leases import (
    MAX_MEMBERS,
    MAX_NUMBER,
    NAMED,
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
from milo_discoveryd.sharding.observed_group import ObservedGroup, number_of
from milo_discoveryd.sharding.ownership import Ownership
from milo_discoveryd.sharding.state import (
    Departed,
    Holding,
    Joining,
    Leaving,
    Lost,
    Pacing,
    Phase,
    Resigned,
    State,
    Tenure,
)
from milo_discoveryd.sharding.timing import TIMING, Timing
from milo_discoveryd.sharding.view_change import next_view

_VIEW = ""
"""Stands for the view among the members whose Leases are written: no member has this name."""
_GroupWrite: TypeAlias = WriteView | Evict | Delete


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

    @property
    def tenure(self) -> Tenure | None:
        """What this process knows while it holds the Lease; None if it does not."""
        phase = self.state.phase
        return phase.tenure if isinstance(phase, Holding | Leaving) else None

    @property
    def has_ended(self) -> bool:
        return isinstance(self.state.phase, Departed)

    @property
    def has_ended_by_loss(self) -> bool:
        """Whether the Lease was taken or changed by others, or the view was, before the member had left."""
        return isinstance(self.state.phase, Departed) and self.state.phase.is_loss

    # What the member owns

    @property
    def fence_at(self) -> float:
        """The time at which ownership ends unless the Lease is renewed."""
        return -inf if (tenure := self.tenure) is None else tenure.renewed_at + self._timing.fence_after_s

    def is_fenced(self, now: float) -> bool:
        return now >= self.fence_at

    def check(self, now: float) -> None:
        """Fence the member if its Lease was not renewed in time."""
        if (tenure := self.tenure) is not None and self.is_fenced(now):
            self._hold(tenure.interrupted(now + self._timing.margin_s))

    def claimed_since(self, now: float) -> float | None:
        """Return since when the member claims ownership without an interruption; None if it claims none."""
        self.check(now)
        return None if (tenure := self.tenure) is None or tenure.claim is None else tenure.claim.since

    def ownership(self, now: float) -> Ownership | None:
        """Return what the member owns; None if it must not own anything, or has not read a view yet."""
        self.check(now)
        group, view, tenure = self.state.group, self.state.group.agreed_view, self.tenure
        if view is None or tenure is None or tenure.claim is None:
            return None
        if self._awaits_successors(tenure, view, now):
            view = msgspec.structs.replace(view, number=view.number - 1, members=view.previous)
        return Ownership(
            view=view,
            member=self.name,
            term=tenure.lease.term,
            unsettled=group.unreleased(view, now, self._timing),
            pending=tuple(sorted(group.pending_elsewhere(self.name, now, self._timing))),
            may_engage=tenure.is_confirmed and now >= tenure.engage_at,
        )

    def _awaits_successors(self, tenure: Tenure, view: View, now: float) -> bool:
        """Return whether the member is leaving, and other members that take over its clusters have not acknowledged the
        view.

        Those members engage nothing before this member has acknowledged the view, so it keeps the clusters that it had.
        Once it has begun to release them, it never owns them again, whatever the other Leases contain then.
        """
        if tenure.drained >= view.number:
            return False
        leaves = tenure.lease.is_leaving and self.name in view.previous and self.name not in view.members
        return leaves and any(self.state.group.unsettled(view, view.members, now, self._timing))

    @property
    def is_confirmed(self) -> bool:
        """Whether every other member has renewed its Lease since this one started or was interrupted."""
        return (tenure := self.tenure) is not None and tenure.is_confirmed

    @property
    def is_settled(self) -> bool:
        """Whether the view contains all present members, each has acknowledged it, and no cluster waits here for its
        release by another one."""
        awaits_release = (tenure := self.tenure) is not None and tenure.awaits_release
        return self.state.group.is_settled(self._timing) and not awaits_release

    @property
    def problems(self) -> Iterator[str]:
        """Yield problems for an administrator to fix."""
        phase, leases, tenure = self.state.phase, self.state.group.leases, self.tenure
        if isinstance(phase, Lost) and phase.problem:
            yield f"{phase.problem}: the member left the group and joins again"
        yield from leases.all_problems
        if surplus := self.state.group.candidates.surplus:
            yield (
                f"the shard group has {surplus} members more than the {MAX_MEMBERS} that it can have, which own "
                "nothing: run fewer replicas"
            )
        own = leases.members.get(self.name)
        if isinstance(phase, Joining | Lost) and own is not None and not own.problem:
            if self._must_wait_for(own, phase):
                yield (
                    f"another process ({own.holder}) holds the Lease of member {self.name}: this process joins after "
                    "the other has ended; if both are to run, give them different names (sharding.member)"
                )
        elif tenure is not None:
            held = (lease for lease in leases.members.values() if lease.is_held and not lease.problem)
            others = [lease.member for lease in held if lease.fleet != tenure.lease.fleet]
            for member in others[:NAMED]:
                yield (
                    f"the sources or selectors of member {member} differ from those of {self.name}: clusters "
                    "that one of them does not see may have no owner; give all members the same settings"
                )
            if len(others) > NAMED:
                yield f"the sources or selectors of {len(others) - NAMED} more members differ"

    # What the daemon says

    def drained(
        self, number: int, pending: frozenset[str] | None = frozenset(), *, awaits_release: bool = False
    ) -> bool:
        """Record that all clusters that the view of this number took from the member are released, except `pending`,
        which is None if unknown, and whether the member would engage clusters that another one has not released.

        Returns whether that is news.
        """
        if (tenure := self.tenure) is None:
            return False
        self._hold(msgspec.structs.replace(tenure.released(number, pending), awaits_release=awaits_release))
        return self.tenure != tenure

    def leave(self) -> None:
        """Begin to leave the group: hand over all keys, then release the Lease."""
        if isinstance(self.state.phase, Joining | Lost | Holding):
            self._end(keeps_term=False)

    def stop(self) -> None:
        """Stop, and keep the term for a successor of the same name."""
        self._end(keeps_term=True)

    def _end(self, *, keeps_term: bool) -> None:
        match self.state.phase:
            case ((Joining() | Lost()) as former) | Resigned(former):
                self._enter(Resigned(former, keeps_term))
            case Holding(tenure) | Leaving(tenure):
                self._enter(Leaving(tenure, keeps_term))

    # Requests

    def next(self, now: float) -> Action:
        self.check(now)
        pacing = self.state.pacing
        if isinstance(self.state.phase, Resigned | Departed):
            if not self.has_ended:
                self._enter(Departed())
            return WaitUntil(inf)
        if now < pacing.next_at:
            return WaitUntil(min(pacing.next_at, self.fence_at) if now < self.fence_at else pacing.next_at)
        return Read() if pacing.is_read_due else self._due(self.state.phase, now)

    def _due(self, phase: Joining | Lost | Holding | Leaving, now: float) -> Action:
        pacing = self.state.pacing
        match phase:
            case Joining():
                return self._join(phase, now)
            case Lost(rejoin_at=rejoin_at):
                return WaitUntil(rejoin_at) if now < rejoin_at else self._join(phase, now)
            case Holding(tenure):
                own = self._renewal(tenure, now)
            case leaving:
                tenure, own = leaving.tenure, self._last_write(leaving, now)
                if own is not None and own.is_stopped and now < tenure.engage_at:
                    self._enter(Departed())  # a process before it may not have stopped: the next one waits for that
                    return WaitUntil(inf)
        if own is not None and now >= pacing.write_at:
            if pacing.has_failed_write and tenure.attempted_at is not None and now >= pacing.read_at:
                return Read()  # perhaps that renewal took effect, and its response is late; tried once
            self._hold(tenure.attempted(own, now))
            return WriteLease(own)
        return self._group_request(now) or WaitUntil(min(at for at in self._deadlines(tenure) if at > now))

    def was_read(self, leases: GroupState, started_at: float, now: float) -> None:
        self.check(now)
        if self._must_confirm(leases, now):
            return
        former = self.state.group
        group = former.read(leases, self.name, started_at=started_at, now=now, timing=self._timing)
        self._observe(group)
        retry_at = {name: at for name, at in self.state.retry_at.items() if name in leases.members or name == _VIEW}
        self.state = msgspec.structs.replace(self.state, retry_at=retry_at)
        self._pace(self.state.pacing.read())
        self._check_own_lease(leases.members.get(self.name), now)
        if self.state.group.went_back:
            self._rejoin(now, "the view of the shard group was changed by another program, or restored")
        elif self.state.group.is_authoritative:
            self._observe(self.state.group.following(group.leases.view))
        if self._regained_without_a_write(former.own_renewal):
            self._rejoin(now, f"the Lease of member {self.name} was restored")
        tenure = self.tenure
        if tenure is not None and tenure.claim is not None and tenure.claim.since <= started_at:
            claim = tenure.claim.confirmed_by(group.writes_of_others(self.name))
            self._hold(msgspec.structs.replace(tenure, claim=claim))

    def _must_confirm(self, leases: GroupState, now: float) -> bool:
        """Return whether a write has to show that the member's own Lease, which a list lacks, was deleted. Nothing of
        the list is used until then."""
        if (tenure := self.tenure) is None or self.name in leases.members or self.state.pacing.is_read_due:
            return False
        self._hold(msgspec.structs.replace(tenure, is_unlisted=True))
        self._pace(self.state.pacing.unlisted(now + self._timing.retry_interval_s))
        return True

    def was_written(self, request: Request, version: str, started_at: float, now: float) -> None:
        """Apply a successful write. `version` is the new version of the object."""
        self.check(now)
        group = self.state.group
        if isinstance(request, Delete):
            self._pace(msgspec.structs.replace(self.state.pacing, delete_at=-inf))
            self._observe(group.deleted(request.lease))
            return
        self._pace(self.state.pacing.written())
        match request:
            case WriteLease(lease):
                self._was_renewed(msgspec.structs.replace(lease, version=version), started_at, now)
            case Evict(lease):
                self._observe(group.replaced(msgspec.structs.replace(lease, version=version), now))
                self._retry(lease.member, -inf)
            case WriteView(view):
                self._observe(group.view_written(view, version, now))
                self._retry(_VIEW, -inf)
            case _:
                raise AssertionError(f"not a write: {request}")

    def conflicted(self, request: Request, now: float) -> None:
        """Record that a write failed with a conflict."""
        self.check(now)
        if isinstance(request, Delete):
            self._failed_for_group(request, now, now + self._timing.read_interval_s)
            return
        if isinstance(request, Evict | WriteView):
            self._retry(_target(request), now)  # after those that were not tried
        of_own = isinstance(request, WriteLease)
        pacing = self.state.pacing.conflicted(now, self._timing.retry_interval_s, of_own=of_own)
        if of_own:
            pacing = msgspec.structs.replace(pacing, read_at=self._before_fence(pacing.read_at, now))
        self._pace(pacing)

    def failed(self, request: Request, now: float, retry_after_s: float | None = None) -> None:
        """Record that a request failed. A write may have taken effect, or may still do so.

        `retry_after_s`: the delay that the server stated. It applies to reads, or to writes if the member's own was
        refused: a member whose reads are refused renews its Lease. Where that is refused, or the read that has to
        precede it, the member does not wait until it is fenced. A write about the group delays only itself.
        """
        self.check(now)
        timing, pacing, of_read = self._timing, self.state.pacing, isinstance(request, Read)
        stated_at = now + min(retry_after_s or 0.0, timing.longest_retry_s)
        if isinstance(request, _GroupWrite):
            shortest_s = timing.read_interval_s if isinstance(request, Delete) else timing.retry_interval_s
            self._failed_for_group(request, now, max(stated_at, now + shortest_s))
            return
        if not of_read or pacing.is_read_due:
            stated_at = self._before_fence(stated_at, now)
        self._pace(pacing.failed(now + timing.retry_interval_s, stated_at, of_read=of_read))

    def _failed_for_group(self, request: _GroupWrite, now: float, retry_at: float) -> None:
        """Delay the write that failed until `retry_at`, and others only as long as the server is not to be flooded."""
        self._retry(_target(request), retry_at)
        other_at = now + self._timing.retry_interval_s
        if isinstance(request, Delete):
            self._pace(msgspec.structs.replace(self.state.pacing, delete_at=other_at))
        else:
            self._pace(msgspec.structs.replace(self.state.pacing, group_write_at=other_at))

    def _before_fence(self, at: float, now: float) -> float:
        """Return when to make a request that the next renewal waits for: earlier than `at` if that leaves no time for
        the renewal."""
        is_late = now < self.fence_at < at + self._timing.last_renewals_s
        return now + (self.fence_at - now) / 2 if is_late else at

    # Joining

    def _join(self, phase: Joining | Lost, now: float) -> Action:
        group, view = self.state.group, self.state.group.leases.view
        lease = group.leases.members.get(self.name)
        joined = MemberLease(
            member=self.name,
            version="" if lease is None else lease.version,
            holder=self.holder,
            term=f"{self.holder}.{self.state.terms + 1}",
            weight=self.weight,
            renewal=self._next_renewal(lease),
            instance=self._instance,
            fleet=self._fleet,
        )
        # The holder of a cleared Lease, or of a deleted one if the view names the member, may not have read that yet.
        may_run = self.name in group.writes if lease is None else lease.is_held or lease.is_cleared
        is_own = isinstance(phase, Lost) and may_run and group.writes[self.name].holder == self.holder
        is_held = may_run and not is_own
        expires_at = group.expires_at(self.name, self._timing) if is_held else -inf
        if now < expires_at:
            if lease is None or not self._may_continue(lease, phase):
                read_at = max(group.read_at + self._timing.renew_interval_s, self.state.pacing.read_at)
                return Read() if read_at <= now else WaitUntil(min(read_at, expires_at))
            joined = msgspec.structs.replace(
                joined,
                term=lease.term,
                # As a newcomer it enters a view only once it knows the clusters itself.
                acknowledged=lease.acknowledged if view is not None and _has(view.members, lease) else 0,
                pending=lease.pending,
                instance=self._instance if self._has_ended(lease) else "",
            )
        elif isinstance(phase, Lost) and now < phase.engage_at:
            joined = msgspec.structs.replace(joined, instance="")
        write_at = self.state.pacing.write_at
        return WriteLease(joined) if now >= write_at else WaitUntil(write_at)

    def _may_continue(self, lease: MemberLease, phase: Joining | Lost) -> bool:
        """Return whether this process may continue the term of the process that holds the Lease."""
        may = lease.is_held and (isinstance(phase, Joining) or lease.holder == self.holder)
        view = self.state.group.leases.view
        has_handed_over = view is not None and _has(view.previous, lease) and not _has(view.members, lease)
        return may and not lease.problem and not has_handed_over and lease.acknowledged <= number_of(view)

    def _has_ended(self, former: MemberLease) -> bool:
        """Return whether the process that holds the Lease has ended, and all before it: no operator but the one beside
        this process may act on their events."""
        is_beside = bool(self._instance) and former.instance == self._instance  # as an unanswered own write says too
        return is_beside or (former.is_stopped and former.holder != self.holder)

    def _must_wait_for(self, lease: MemberLease, phase: Joining | Lost) -> bool:
        is_taken = lease.is_held and not lease.is_stopped and lease.holder != self.holder
        return is_taken and not self._may_continue(lease, phase)

    def _was_renewed(self, lease: MemberLease, started_at: float, now: float) -> None:
        if not lease.is_held or lease.is_stopped:
            self._enter(Departed())
            return
        match self.state.phase:
            case (Joining() | Lost()) as phase:
                self._enter(Holding(self._new_tenure(phase, lease, started_at, now)))
            case Resigned(former, keeps_term):
                self._enter(Leaving(self._new_tenure(former, lease, started_at, now), keeps_term))
        self.state = msgspec.structs.replace(self.state, renewals=lease.renewal)
        self._observe(self.state.group.renewed(lease, now))
        tenure = self.tenure
        assert tenure is not None, "a member that has ended made a request"
        renewed = tenure.renewed(lease, started_at)
        is_late = now >= started_at + self._timing.fence_after_s
        self._hold(renewed if is_late else renewed.resumed(started_at))

    def _new_tenure(self, phase: Joining | Lost, lease: MemberLease, started_at: float, now: float) -> Tenure:
        self.state = msgspec.structs.replace(self.state, terms=self.state.terms + 1)
        engage_at, acknowledge_at = -inf, -inf
        if isinstance(phase, Lost):
            engage_at, acknowledge_at = phase.engage_at, phase.acknowledge_at
        elif not lease.term.startswith(f"{self.holder}."):
            # Operators may act on events of the former process until its fence.
            former = self.state.group.leases.members[self.name]
            acknowledge_at = now + self._timing.evict_after_s
            engage_at = -inf if self._has_ended(former) else acknowledge_at
        return Tenure(
            lease=lease,
            renewed_at=started_at,
            engage_at=engage_at,
            acknowledge_at=acknowledge_at,
            drained=lease.acknowledged,
            pending=lease.pending,
        )

    # Holding and leaving

    def _renewal(self, tenure: Tenure, now: float, *, is_leaving: bool = False) -> MemberLease | None:
        """Return the Lease to write; None if none is due."""
        wanted = self._wanted(tenure, now, is_leaving=is_leaving)
        # Releases are written in batches, and the last one at once.
        is_batch_due = not wanted.pending or now >= tenure.renewed_at + self._timing.unsettled_read_interval_s
        written = tenure.lease if is_batch_due else msgspec.structs.replace(tenure.lease, pending=wanted.pending)
        is_due = (
            tenure.is_unlisted
            or wanted.content != written.content
            or now >= tenure.renewed_at + self._timing.renew_interval_s
        )
        return wanted if is_due else None

    def _wanted(self, tenure: Tenure, now: float, *, is_leaving: bool) -> MemberLease:
        acknowledged, pending = tenure.lease.acknowledged, tenure.lease.pending
        known = tenure.pending
        if known is not None and (view := self._acknowledgeable(tenure, now)) is not None:
            acknowledged, pending = max(view.number, acknowledged), known
        elif known is not None and self.state.group.agreed_view is not None and self._reports_releases(tenure, now):
            pending &= known
        return msgspec.structs.replace(
            tenure.lease,
            acknowledged=acknowledged,
            pending=pending,
            is_leaving=is_leaving,
            is_stopped=False,
            instance=self._instance if now >= tenure.engage_at else "",
            renewal=self._next_renewal(tenure.lease),
        )

    def _reports_releases(self, tenure: Tenure, now: float) -> bool:
        """Return whether what is pending is that of the view that the member has acknowledged. It acknowledges the next
        one later if it awaits its successors, and what was released does not wait for that."""
        return now >= tenure.acknowledge_at and tenure.drained == tenure.lease.acknowledged

    def _next_renewal(self, lease: MemberLease | None) -> int:
        """Return a number that no write of this holder has used, including writes that are not in a restored backup.

        It starts over after the largest one, which another program has written: the Lease would be malformed for ever.
        """
        number = max(self.state.renewals, 0 if lease is None else lease.renewal) + 1
        return number if number <= MAX_NUMBER else 1

    def _acknowledgeable(self, tenure: Tenure, now: float) -> View | None:
        """Return the present view if the member can acknowledge it."""
        view = self.state.group.agreed_view
        if view is None or now < tenure.acknowledge_at or tenure.drained < view.number:
            return None
        return view if tenure.is_confirmed or self.name in view.members or self.name in view.previous else None

    def _last_write(self, phase: Leaving, now: float) -> MemberLease | None:
        """Return the write that ends the membership; until that is due, the renewal to write, or None."""
        tenure, group = phase.tenure, self.state.group
        wanted = self._wanted(tenure, now, is_leaving=not phase.keeps_term)
        if phase.keeps_term or (tenure.lease.is_leaving and not group.candidates.members):
            # A member that leaves while no other can take over its clusters is also recorded as stopped: a member that
            # joins later waits until this Lease expires.
            return msgspec.structs.replace(wanted, is_stopped=True)
        view = group.agreed_view
        has_left = view is not None and self.name not in view.members and wanted.acknowledged >= view.number
        if tenure.lease.is_leaving and not wanted.pending and has_left:
            return msgspec.structs.replace(wanted, holder="", term="")
        return self._renewal(tenure, now, is_leaving=True)

    def _check_own_lease(self, lease: MemberLease | None, now: float) -> None:
        """End the term if the Lease that was read is not what this process has written."""
        tenure = self.tenure
        if tenure is None:
            return
        if lease is None or (not lease.problem and lease.holder != self.holder):
            self._lose(now)  # it was deleted, for example manually, as a write has shown, or taken over
        elif not tenure.has_written(lease):
            self._rejoin(now, f"the Lease of member {self.name} was changed by another program, or restored")
        else:
            read = tenure.read(lease)
            is_renewed = read.renewed_at > tenure.renewed_at and now < read.renewed_at + self._timing.fence_after_s
            self._hold(read.resumed(read.renewed_at) if is_renewed else read)

    def _regained_without_a_write(self, former_renewal: int) -> bool:
        """Return whether this process holds the Lease again after another process of its name had taken it over.

        The Lease was then restored from a backup, and the other process remains an owner until its fence.
        """
        lease = self.state.group.leases.members.get(self.name)
        return (
            isinstance(self.state.phase, Lost)
            and (lease is not None and lease.holder == self.holder and not lease.problem)
            and lease.renewal < former_renewal
        )

    # Losing the term

    def _rejoin(self, now: float, problem: str) -> None:
        """End the term and join again, because the Leases differ from what was written, for example after a restore
        from a backup."""
        self._lose(now)
        if isinstance(lost := self.state.phase, Lost):
            # Other members may have joined after the backup. Within this time, they detect the restore or are fenced.
            after = now + self._timing.evict_after_s
            self._enter(Lost(rejoin_at=lost.rejoin_at, engage_at=after, acknowledge_at=after, problem=problem))

    def _lose(self, now: float) -> None:
        """End the term. A new one shows other members that the subscribers' handlers of the former term have ended,
        including those of a process that had the term before this one."""
        quiet_at = now + self._timing.margin_s
        match self.state.phase:
            case Joining():
                self._enter(Lost(rejoin_at=quiet_at))
            case Lost() as lost:
                self._enter(msgspec.structs.replace(lost, rejoin_at=max(quiet_at, lost.acknowledge_at)))
            case Holding(tenure):
                if tenure.claim is not None:  # a subscriber without a stream works until the fence
                    quiet_at = max(quiet_at, self.fence_at + self._timing.margin_s)
                ended = tenure.interrupted(quiet_at)
                self._enter(
                    Lost(
                        rejoin_at=max(quiet_at, ended.acknowledge_at),
                        engage_at=ended.engage_at,
                        acknowledge_at=ended.acknowledge_at,
                    )
                )
            case Leaving(tenure):
                # The response to the write that released the Lease may have been lost.
                lease = self.state.group.leases.members.get(self.name)
                has_left = lease is not None and not lease.is_held and tenure.has_written(lease)
                self._enter(Departed(is_loss=not has_left))
        self._observe(self.state.group.following(None))

    # The group

    def _group_request(self, now: float) -> Request | None:
        group, pacing = self.state.group, self.state.pacing
        if (pacing.is_group_outdated or self._next_read_at <= now) and now >= pacing.read_at:
            return Read()
        if pacing.is_group_outdated or now < pacing.write_at:
            return None
        others = [lease for lease in group.leases.members.values() if lease.member != self.name]
        removable = [lease for lease in others if group.removable_at(lease, self._timing) <= now]
        if now >= pacing.group_write_at:
            # First what clusters wait for.
            members = sorted((lease for lease in removable if lease.is_held), key=lambda one: not group.is_member(one))
            view = next_view(group, self.holder, now, self._timing)
            views: list[_GroupWrite] = [] if view is None else [view]
            writes = [*views, *(Evict(_evicted(lease)) for lease in members)]
            if (write := self._longest_untried(writes, now)) is not None:
                return write
        if now >= pacing.delete_at:
            deletion = self._longest_untried([Delete(lease) for lease in removable if not lease.is_held], now)
            if deletion is not None:
                self._pace(msgspec.structs.replace(pacing, delete_at=inf))
            return deletion
        return None

    def _longest_untried(self, writes: Sequence[_GroupWrite], now: float) -> _GroupWrite | None:
        """Return the first write that has not failed, or that is tried again since the longest time: one that is always
        refused delays no other."""
        retry_at = self.state.retry_at
        due = [write for write in writes if retry_at.get(_target(write), -inf) <= now]
        return min(due, key=lambda write: retry_at.get(_target(write), -inf), default=None)

    def _retry(self, target: str, at: float) -> None:
        others = {name: other_at for name, other_at in self.state.retry_at.items() if name != target}
        self.state = msgspec.structs.replace(self.state, retry_at=others if at == -inf else {**others, target: at})

    @property
    def _next_read_at(self) -> float:
        timing = self._timing
        is_quiet = self.is_settled and self.is_confirmed
        return self.state.group.read_at + (timing.read_interval_s if is_quiet else timing.unsettled_read_interval_s)

    def _deadlines(self, tenure: Tenure) -> Iterator[float]:
        pacing = self.state.pacing
        yield from (pacing.read_at, pacing.write_at, pacing.group_write_at, pacing.delete_at)
        yield from self.state.retry_at.values()
        yield from (self._next_read_at, self.fence_at, tenure.engage_at, tenure.acknowledge_at)
        yield tenure.renewed_at + self._timing.renew_interval_s
        yield from self.state.group.deadlines(self._timing)

    # The state

    def _enter(self, phase: Phase) -> None:
        self.state = msgspec.structs.replace(self.state, phase=phase)

    def _hold(self, tenure: Tenure) -> None:
        """Replace what is known while the Lease is held."""
        phase = self.state.phase
        assert isinstance(phase, Holding | Leaving), "the member does not hold its Lease"
        self._enter(msgspec.structs.replace(phase, tenure=tenure))

    def _observe(self, group: ObservedGroup) -> None:
        self.state = msgspec.structs.replace(self.state, group=group)

    def _pace(self, pacing: Pacing) -> None:
        self.state = msgspec.structs.replace(self.state, pacing=pacing)


def _has(members: Mapping[str, ViewMember], lease: MemberLease) -> bool:
    """Return whether members of a view have the term of the Lease."""
    return lease.member in members and members[lease.member].term == lease.term


def _target(write: _GroupWrite) -> str:
    return _VIEW if isinstance(write, WriteView) else write.lease.member


def _evicted(lease: MemberLease) -> MemberLease:
    return msgspec.structs.replace(
        lease, holder="", term="", pending=frozenset(), is_leaving=False, is_stopped=False, problem=""
    )
