"""The task of a member: performs the member's requests, and makes the fleet engage the clusters that it owns."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import msgspec

from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.instruments import ShardLeaseMetrics
from milo_discoveryd.logger import log
from milo_discoveryd.sharding.assignment import LEFT, LOST, TAKEN, CredentialRevocation
from milo_discoveryd.sharding.lease_client import ConflictError
from milo_discoveryd.sharding.leases import PENDING_SIZE, Delete, Evict, GroupState, Read, Request, WaitUntil, WriteView
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.ownership import Ownership
from milo_discoveryd.sharding.status import GroupStatus, group_status

TICK_S = 1.0
"""Longest wait between two checks of the clock: timers do not advance while the machine is suspended."""

PAUSE = 9.0
"""The pause after the fleet was checked, as a multiple of the time that this took, up to `LONGEST_PAUSE_S`."""
LONGEST_PAUSE_S = 0.1

ERROR_KEPT_S = 35.0
"""How long an error of a request counts as a problem if none of its kind is made: longer than a server can delay the
next one."""


class Leases(Protocol):
    async def read(self) -> GroupState: ...

    async def write(self, request: Request) -> str: ...


class Assignee(Protocol):
    """Engages and disengages the clusters of a member according to the ownership that it receives."""

    def assign(self, ownership: Ownership, holds: Callable[[], bool]) -> Iterable[None]:
        """Engage and drain clusters according to the ownership, in batches. Nothing is engaged, then and later, while
        `holds` returns false."""

    def decide_by(self, ownership: Ownership) -> None:
        """Go on with the assignment under way by a newer ownership of the same view and term."""

    def lose_ownership(self, reason: str) -> Iterator[None]:
        """Engage nothing from now on. The result disengages everything, in batches; `assign` comes after its end."""

    def lost(self) -> Iterable[str] | None:
        """Return the clusters that this member no longer owns and that are still engaged; None if that is unknown."""

    def is_synced(self) -> bool:
        """Return whether the clusters of all sources are known."""

    def unowned(self) -> int:
        """Return the number of ready clusters that are assigned to the member and not engaged."""


def boottime() -> float:
    """Return the time of the clock that also advances while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class GroupRequests:
    """Performs a member's requests to the Lease API, and keeps the problems that were found."""

    def __init__(
        self, name: str, member: Member, leases: Leases, metrics: ShardLeaseMetrics, clock: Callable[[], float]
    ) -> None:
        self.name = name
        """The name of the group."""
        self.problems: tuple[str, ...] = ()
        """Problems for an administrator to fix, as of the last request."""
        self._member = member
        self._leases = leases
        self._metrics = metrics
        self._clock = clock
        self.has_failed = False
        """Whether the last request failed."""
        self._errors: dict[str, tuple[str, float]] = {}
        """Why requests of each kind fail, and when one did last. Others may succeed meanwhile."""

    async def perform(self, request: Request) -> None:
        started_at, name = self._clock(), type(request).__name__
        self.has_failed = False
        try:
            done = await self._answered(request)
        except ConflictError:
            self._metrics.lease_request(name, "conflict")
            self._errors.pop(name, None)
            self._member.conflicted(request, self._clock())
        except BackendError as error:
            self._metrics.lease_request(name, "error")
            self.has_failed = not isinstance(request, Delete)
            self._errors[name] = str(error), self._clock()
            self._member.failed(request, self._clock(), error.retry_after_s)
        else:
            self._metrics.lease_request(name, "ok")
            self._errors.pop(name, None)
            done(started_at, self._clock())
        # What failed may not be due anymore.
        errors = (error for error, at in self._errors.values() if self._clock() < at + ERROR_KEPT_S)
        self._note_problems((*dict.fromkeys(errors), *self._member.problems))

    async def _answered(self, request: Request) -> Callable[[float, float], None]:
        member = self._member
        if isinstance(request, Read):
            group = await self._leases.read()
            if problem := member.state.group.pending_problem(group):
                raise BackendError(
                    f"the Leases of shard group {self.name}, with those that became malformed or were deleted, have "
                    f"{problem}: delete those of members that do not exist"
                )
            return lambda started_at, now: member.was_read(group, started_at, now)
        version = await self._leases.write(request)
        if isinstance(request, Evict):
            log.warning("shard member evicted", member=request.lease.member)
        elif isinstance(request, WriteView):
            log.info("shard view written", view=request.view.number, members=sorted(request.view.members))
        return lambda started_at, now: member.was_written(request, version, started_at, now)

    def _note_problems(self, problems: tuple[str, ...]) -> None:
        for problem in problems:
            if problem not in self.problems:
                log.warning("shard group unhealthy", group=self.name, problem=problem)
        if self.problems and not problems:
            log.info("shard group healthy again", group=self.name)
        self.problems = problems


class _Application(msgspec.Struct):
    """The ownership that was applied last."""

    ownership: Ownership | None = None
    claimed_since: float | None = None
    """Since when the member claimed ownership without an interruption."""
    is_complete: bool = False
    is_outdated: bool = False
    """Whether more clusters may be engaged now than when the ownership was applied."""


class ShardGroup:
    def __init__(
        self,
        name: str,
        member: Member,
        leases: Leases,
        assignee: Assignee,
        *,
        metrics: ShardLeaseMetrics,
        revocation: CredentialRevocation | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        """`revocation` revokes the credentials of former owners before clusters are engaged."""
        self.member = member
        self._requests = GroupRequests(name, member, leases, metrics, clock)
        self._assignee = assignee
        self._revocation = revocation
        self._clock = clock
        self._woken = asyncio.Event()
        self._drained = asyncio.Event()
        self._applied = _Application()
        self._losing: Iterator[None] = iter(())
        """Disengages what was engaged when the ownership was lost."""
        self._is_silent = False
        self._has_share = False
        self._view_since: tuple[int, float] = (0, clock())
        self.leaving = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def members(self) -> int:
        view = self.member.state.group.latest_view
        return 0 if view is None else len(view.members)

    @property
    def problems(self) -> int:
        return len(self._requests.problems)

    def unowned(self) -> int:
        return self._assignee.unowned()

    def status(self) -> GroupStatus:
        return group_status(self._requests.name, self.member, "; ".join(self._requests.problems))

    def share_problem(self) -> str | None:
        """Return why this member has not taken over its share of the clusters since it joined; None if it has."""
        return (
            None if self._has_share else "this member of the shard group has not taken over its share of the clusters"
        )

    def valid_s(self) -> float | None:
        """Return the seconds for which the present ownership is valid; None while the member may engage nothing."""
        now = self._clock()
        ownership = self.member.ownership(now)
        if ownership is None or self._applied.ownership is None or not ownership.may_engage:
            return None
        return self.member.fence_at - now

    def unsettled_s(self) -> float:
        """Return the seconds for which the group has been changing its view; 0 if the view is settled."""
        self._note_view()
        return 0.0 if self.member.is_settled else self._clock() - self._view_since[1]

    def wake(self) -> None:
        """Check the fleet again, for example because a cluster that moves to another member was released."""
        self._woken.set()

    def reassign(self) -> None:
        """Apply the ownership again, because more clusters may be engaged."""
        self._applied.is_outdated = True
        self.wake()

    async def run(self) -> None:
        """Take part in the group until the membership has ended, or the task is canceled."""
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(self._apply_in_time(), name="apply ownership")]
            if self._revocation is not None:
                revoking = self._revocation.run(self.reassign, lambda: self.member.ownership(self._clock()))
                working.append(tasks.create_task(revoking, name="revoke credentials"))
            deletion = None
            while not self.member.has_ended:
                action = self.member.next(self._clock())
                self._woken.set()
                if isinstance(action, WaitUntil):
                    await self._wait(action.until)
                elif isinstance(action, Delete):
                    deletion = tasks.create_task(self._delete(action), name="delete a Lease")
                else:
                    await self._requests.perform(action)
            await self._lose()
            self.ended.set()
            for task in (*working, *filter(None, [deletion])):
                task.cancel()

    async def _delete(self, request: Delete) -> None:
        """Delete the Lease of a former member. Nothing waits for that: it may hang."""
        with log.contained("Lease of a former member not deleted", member=request.lease.member):
            await self._requests.perform(request)
            return
        self.member.failed(request, self._clock())

    def hand_over(self) -> None:
        """Begin to leave, and hand over all clusters."""
        self.member.leave()
        self.leaving.set()
        self.wake()
        self._drained.set()

    async def leave(self, *, keeps_term: bool) -> None:
        """End the membership: hand over all clusters, or keep the term for a successor of the same name."""
        if keeps_term:
            # Operators continue until their deadline, and a successor engages the same clusters.
            self._is_silent = True
            self.member.stop()
        else:
            self.hand_over()
        self.wake()
        await self.ended.wait()

    async def _wait(self, until: float) -> None:
        delay = min(TICK_S, until - self._clock())
        if delay > 0:
            await _within(delay, self._drained)
        self._drained.clear()

    async def _apply_in_time(self) -> None:
        while True:
            self._woken.clear()
            began = self._clock()
            await self._apply()
            # Each release of a cluster wakes this task: of a hand-over, there are as many as clusters.
            pause_s = min(LONGEST_PAUSE_S, PAUSE * (self._clock() - began))
            await asyncio.sleep(max(0.0, min(pause_s, self.member.fence_at - self._clock())))
            fenced_in_s = self.member.fence_at - self._clock()
            await _within(min(TICK_S, fenced_in_s) if fenced_in_s > 0 else TICK_S, self._woken)

    async def _apply(self) -> None:
        self._note_view()
        now = self._clock()
        if self.member.ownership(now) is None or self.member.claimed_since(now) != self._applied.claimed_since:
            # Also if the ownership was regained before this task noticed the loss, at the end of a pause: operators
            # have stopped, and the clusters are engaged again, not drained.
            await self._lose()
        now = self._clock()
        ownership, claimed_since = self.member.ownership(now), self.member.claimed_since(now)
        if ownership is None:
            return
        applied = self._applied
        if ownership != applied.ownership or applied.is_outdated or not applied.is_complete:
            self._applied = applied = _Application(ownership, claimed_since)
            for _ in self._assignee.assign(ownership, self._claim_holds(claimed_since)):
                await asyncio.sleep(0)
                now = self._clock()
                newer, is_interrupted = self.member.ownership(now), self.member.claimed_since(now) != claimed_since
                if newer is None or is_interrupted or not newer.has_view_of(ownership):
                    self._woken.set()
                    return
                if newer != ownership:
                    # What others release could change it again and again: this pass goes on, and another one follows.
                    ownership = applied.ownership = newer
                    applied.is_outdated = True
                    self._assignee.decide_by(ownership)
                    self._woken.set()
            applied.is_complete = True
        self._note_share(ownership)
        lost = self._assignee.lost()
        pending = None if lost is None else _fitting(lost)
        awaits_release = bool(ownership.pending and self._assignee.unowned())
        if self.member.drained(ownership.view.number, pending, awaits_release=awaits_release):
            self._drained.set()

    def _note_share(self, ownership: Ownership) -> None:
        """Record once that this member has taken over its share: later moves of clusters do not make it unready."""
        if not self._has_share:
            is_given = ownership.may_engage and (ownership.is_in_view or self.member.weight == 0)
            self._has_share = is_given and self._assignee.is_synced() and not self._assignee.unowned()

    def _claim_holds(self, since: float | None) -> Callable[[], bool]:
        """Return a function that returns whether the claim of ownership has not been interrupted. A cluster can become
        ready before this task notices that: at the end of a pause of the process, or once a member that stops for its
        successor ignores it."""
        return lambda: since is not None and self.member.claimed_since(self._clock()) == since

    async def _lose(self) -> None:
        """Own nothing from now on, and return once everything is disengaged."""
        self._begin_loss()
        for _ in self._losing:
            await asyncio.sleep(0)

    def _begin_loss(self) -> None:
        self._has_share = False
        has_stopped = self._is_silent and self.member.has_ended and not self.member.has_ended_by_loss
        if self._applied.ownership is None or has_stopped:
            return
        self._applied = _Application()
        if self.member.has_ended_by_loss:
            log.warning("shard ownership lost", member=self.member.name, problem=TAKEN)
            self._losing = self._assignee.lose_ownership(TAKEN)
        elif self.member.has_ended and not self._requests.has_failed:
            log.info("shard group left", member=self.member.name)
            self._losing = self._assignee.lose_ownership(LEFT)
        else:
            problem = "; ".join(self._requests.problems)
            log.warning("shard ownership lost", member=self.member.name, problem=problem or LOST)
            self._losing = self._assignee.lose_ownership(LOST)

    def _note_view(self) -> None:
        view = self.member.state.group.latest_view
        number = 0 if view is None else view.number
        if self.member.is_settled or number != self._view_since[0]:
            self._view_since = (number, self._clock())


def _fitting(names: Iterable[str]) -> frozenset[str] | None:
    """Return the names; None if they do not fit into a Lease. Those after the first that does not are not read."""
    found, size = set[str](), 0
    for name in names:
        size += 0 if name in found else len(name)
        if size > PENDING_SIZE:
            return None
        found.add(name)
    return frozenset(found)


async def _within(delay: float, event: asyncio.Event) -> None:
    """Wait for the event, but no longer than `delay`."""
    try:
        async with asyncio.timeout(delay):
            await event.wait()
    except TimeoutError:
        pass
