"""An explicit-state search of a hand-over among three members, with two clusters.

A step is one of: a request takes effect; its response arrives; a handler ends; a member leaves, crashes, is stopped
or continued; time passes. By default each process takes its steps in turn, and time passes when none is left. The
search visits every schedule that deviates from this at most a given number of times, with at most a given number of
faults at any point: all interleavings of renewals, reads, acknowledgements, crashes and stops within these bounds.
"""

from collections.abc import Iterator

import msgspec
import pytest

from milo_discoveryd.sharding.leases import GroupState, MemberLease, Read, Request, View, ViewMember, WaitUntil
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.observed_group import Candidates, ObservedGroup, ObservedWrite
from milo_discoveryd.sharding.ownership import KeyOwnership
from milo_discoveryd.sharding.state import Claim, Holding, Pacing, State, Tenure
from milo_discoveryd.sharding.timing import Timing
from tests.simulation.sharding.lease_api import ConflictError, LeaseApi

TIMING = Timing(
    renew_interval_s=2,
    read_interval_s=2,
    unsettled_read_interval_s=1,
    retry_interval_s=1,
    fence_after_s=4,
    evict_after_s=6,
    debounce_s=1,
    retention_s=1000,
)
NAMES = ("a", "b", "c")
CLUSTERS = ("one", "two")
START = 100.0


class NumberingApi(LeaseApi):
    """A Lease API that numbers the versions of each object separately, so that the order of writes to different
    objects makes no difference."""

    def _next(self, former: str) -> str:
        return str(int(former or "0") + 1)


class InFlight(msgspec.Struct, frozen=True):
    request: Request
    started_at: float
    has_arrived: bool = False
    group: GroupState | None = None
    version: str | None = None


class Process(msgspec.Struct, frozen=True):
    state: State
    in_flight: InFlight | None = None
    engaged: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()
    is_paused: bool = False
    is_dead: bool = False
    fence_at: float = 0.0


class World(msgspec.Struct, frozen=True):
    now: float
    group: GroupState
    processes: tuple[Process, ...]
    faults: int
    ticks: int
    delays: int


class TwoOwnersError(Exception):
    pass


class Search:
    def __init__(self, *, faults: int, ticks: int, delays: int, acknowledges: bool = True, waits: bool = True) -> None:
        self._members = [Member(name, f"{name}#1", timing=TIMING) for name in NAMES]
        self._faults = faults
        self._ticks = ticks
        self._delays = delays
        self._acknowledges_early = not acknowledges
        self._engages_early = not waits
        self.moves = 0

    def start(self) -> World:
        """Return a settled group of `a` and `b`, and `c`, which is about to join it."""
        terms = {name: f"{name}#1.1" for name in NAMES[:2]}
        leases = {
            name: MemberLease(member=name, version="1", holder=f"{name}#1", term=terms[name], acknowledged=1)
            for name in terms
        }
        view = View(number=1, id="a#1.1", members={name: ViewMember(term) for name, term in terms.items()})
        group = GroupState(members=leases, view=view, view_version="1")
        processes = []
        for member in self._members:
            name = member.name
            observed_writes = {lease.member: ObservedWrite(lease.write_id, START) for lease in leases.values()}
            if name in terms:
                state = State(
                    phase=Holding(Tenure(lease=leases[name], renewed_at=START, claim=Claim(START, {}), drained=1)),
                    group=ObservedGroup(
                        leases=group,
                        read_at=START,
                        writes=observed_writes,
                        candidates=Candidates(view.members, START - 5),
                        latest_view=view,
                    ),
                    pacing=Pacing(is_read_due=False),
                    terms=1,
                )
            else:
                state = State()
            processes.append(self._applied(Process(state), member, START))
        return World(START, group, tuple(processes), self._faults, self._ticks, self._delays)

    def run(self, limit: int) -> int:
        """Visit every state that is reachable within the bounds; return their number.

        Raises TwoOwnersError.
        """
        seen = set()
        stack = [self.start()]
        while stack:
            world = stack.pop()
            key = hash(_encoder.encode(world))
            if key in seen:
                continue
            seen.add(key)
            assert len(seen) <= limit, "the bounds of the search are too wide"
            _require_one_owner(world)
            stack.extend(self._steps(world))
        return len(seen)

    def _steps(self, world: World) -> Iterator[World]:
        """Yield the next states. Taking the n-th possible step costs n - 1 delays; faults have a bound of their own."""
        for delays, step in enumerate(self._progress(world)):
            if delays > world.delays:
                break
            yield msgspec.structs.replace(step, delays=world.delays - delays)
        if world.faults:
            yield from self._faulty(msgspec.structs.replace(world, faults=world.faults - 1))

    def _progress(self, world: World) -> Iterator[World]:
        for index, process in enumerate(world.processes):
            if process.is_dead:
                continue
            if process.in_flight is not None and not process.in_flight.has_arrived:
                yield self._arrive(world, index)
            if process.is_paused:
                continue
            if process.in_flight is not None and process.in_flight.has_arrived:
                yield self._respond(world, index)
            for cluster in sorted(process.draining):
                yield self._end_handler(world, index, cluster)
        if world.ticks:
            yield self._tick(world)
        for index, process in enumerate(world.processes):
            if process.is_paused:
                resumed = msgspec.structs.replace(process, is_paused=False)
                yield self._with(world, index, self._applied(resumed, self._members[index], world.now))

    def _faulty(self, world: World) -> Iterator[World]:
        for index, process in enumerate(world.processes):
            if process.engaged and not process.is_dead and not process.is_paused:
                yield self._with(world, index, msgspec.structs.replace(process, is_paused=True))
                dead = msgspec.structs.replace(process, is_dead=True, draining=frozenset(), in_flight=None)
                yield self._with(world, index, dead)
                yield self._leaving(world, index)

    def _tick(self, world: World) -> World:
        now = world.now + 1
        processes = []
        for member, process in zip(self._members, world.processes, strict=True):
            after = process
            if not process.is_dead and not process.is_paused:
                after = self._applied(process, member, now)
            processes.append(after)
        return msgspec.structs.replace(world, now=now, ticks=world.ticks - 1, processes=tuple(processes))

    def _arrive(self, world: World, index: int) -> World:
        process = world.processes[index]
        in_flight = process.in_flight
        assert in_flight is not None
        api = NumberingApi(world.group)
        version: str | None = None
        try:
            group, version = api.apply(in_flight.request, world.now)
        except ConflictError:
            group = api.group
        arrived = msgspec.structs.replace(in_flight, has_arrived=True, group=group, version=version)
        after = self._with(world, index, msgspec.structs.replace(process, in_flight=arrived))
        after = msgspec.structs.replace(after, group=api.group)
        # The request and its response are one step, unless the process is stopped: then only the request takes effect.
        return after if process.is_paused else self._respond(after, index)

    def _respond(self, world: World, index: int) -> World:
        process, member = world.processes[index], self._members[index]
        in_flight = process.in_flight
        assert in_flight is not None
        assert in_flight.group is not None
        member.state = process.state
        if in_flight.version is None:
            member.conflicted(in_flight.request, world.now)
        elif isinstance(in_flight.request, Read):
            member.was_read(in_flight.group, in_flight.started_at, world.now)
        else:
            member.was_written(in_flight.request, in_flight.version, in_flight.started_at, world.now)
        after = msgspec.structs.replace(process, state=member.state, in_flight=None)
        return self._with(world, index, self._applied(after, member, world.now))

    def _end_handler(self, world: World, index: int, cluster: str) -> World:
        process = world.processes[index]
        after = msgspec.structs.replace(
            process, engaged=process.engaged - {cluster}, draining=process.draining - {cluster}
        )
        return self._with(world, index, self._applied(after, self._members[index], world.now))

    def _leaving(self, world: World, index: int) -> World:
        process, member = world.processes[index], self._members[index]
        member.state = process.state
        member.leave()
        return self._with(world, index, msgspec.structs.replace(process, state=member.state))

    def _applied(self, process: Process, member: Member, now: float) -> Process:
        """Apply the member's ownership to the operator, and start the member's next request if none is in flight."""
        member.state = process.state
        engaged, draining = process.engaged, process.draining
        ownership = member.ownership(now)
        if ownership is None:
            engaged = draining = frozenset()
        else:
            for cluster in CLUSTERS:
                state = ownership.decide(cluster).state
                if self._engages_early and state is KeyOwnership.WAITING and ownership.may_engage:
                    state = KeyOwnership.OWNED
                if state is KeyOwnership.OWNED and cluster not in engaged:
                    engaged |= {cluster}
                    self.moves += 1
                elif state is KeyOwnership.FOREIGN and cluster in engaged:
                    draining |= {cluster}
            waiting = (ownership.decide(key).state for _, keys in ownership.pending for key in keys)
            pending = frozenset() if self._acknowledges_early else draining
            member.drained(ownership.view.number, pending, awaits_release=KeyOwnership.WAITING in waiting)
        in_flight = process.in_flight
        if in_flight is None and not isinstance(action := member.next(now), WaitUntil):
            in_flight = InFlight(action, now)
        return msgspec.structs.replace(
            process,
            state=member.state,
            in_flight=in_flight,
            engaged=engaged,
            draining=draining,
            fence_at=member.fence_at,
        )

    @staticmethod
    def _with(world: World, index: int, process: Process) -> World:
        processes = (*world.processes[:index], process, *world.processes[index + 1 :])
        return msgspec.structs.replace(world, processes=processes)


def _require_one_owner(world: World) -> None:
    for cluster in CLUSTERS:
        # A process that was stopped or killed cannot report a lost cluster: its operator relies on the deadline.
        owners = [
            name
            for name, process in zip(NAMES, world.processes, strict=True)
            if cluster in process.engaged and world.now < process.fence_at
        ]
        if len(owners) > 1:
            raise TwoOwnersError(f"{cluster} is owned by {' and '.join(owners)}")


_encoder = msgspec.msgpack.Encoder(order="sorted")


def test_state_search_finds_no_state_with_two_owners() -> None:
    assert Search(faults=1, ticks=14, delays=1).run(limit=200_000) > 5_000


@pytest.mark.parametrize("mutant", [{"acknowledges": False}, {"waits": False}], ids=["early-acknowledgement", "early"])
def test_state_search_finds_two_owners_in_a_mutant(mutant: dict[str, bool]) -> None:
    with pytest.raises(TwoOwnersError):
        Search(faults=1, ticks=14, delays=1, **mutant).run(limit=200_000)
