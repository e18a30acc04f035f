"""One seeded simulation of a group with real fleets: daemons with their sources and releases, on virtual time.

`simulation_run` has only the Leases part, and therefore more faults of clocks and processes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from random import Random

from milo_discoveryd.engagement.subscriber import OWNED_S
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.sharding import rendezvous
from tests.simulation.properties.api_server import ApiObject, Server
from tests.simulation.seeded.daemon import Disk, Traits
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.simulation.seeded.request_faults import EMPTY_LIST
from tests.simulation.seeded.tokens import TokenApi
from tests.simulation.sharding.lease_api import LeaseApi
from tests.simulation.sharding.replica import RELEASE_TIMEOUT_S, Replica
from tests.simulation.sharding.simulation_run import Outcome
from tests.support.logs import capture_logs

NAMES = [f"project-{number}" for number in range(12)]
FAULTS_UNTIL_S = 200.0
CHECKED_EVERY_S = 0.25
SEEN_WITHIN_S = 2.0
"""The time in which every daemon has read a change that its watch sent."""
UNOWNED_S = 6.0
"""The longest time without an owner while nothing but members that join or hand over disturbs the group."""
UNREACHED_S = RELEASE_TIMEOUT_S + OWNED_S
"""How much longer that may be while streams of operators break, or are not read."""
RETURN_S = 14.0
"""The time after a start within which a member that continues its term owns its clusters: see docs/sharding.md."""
ACKNOWLEDGES_WITHIN_S = 36.0
"""The time after a start within which a member that continues its term acknowledges a view."""
EVICTION_S = 55.0
"""The same after a kill, with the change of the view: 51 s, and more while Leases are answered late."""
REJOIN_S = 75.0
"""The same after a Lease was changed, or not renewed: the member joins again, and engages later."""
SETTLED_WITHIN_S = 150.0
MOST_MEMBERS = 5
TEAMS = ("red", "blue")
FILTERS = (("",), ("team=red",), ("team=blue",), ("team=red", "team=blue"), ("team=blue", "team=red"))
"""The filters of an operator's streams: it may work in a part of the clusters, or follow them by two streams."""
LOSS_S = (0.0, 0.05, 2.5)
"""How long a daemon takes to disengage a cluster that it has lost: all at once, in steps, or for longer than until it
owns clusters again."""


@dataclass
class FleetOutcome(Outcome):
    lost_in_steps: int = 0
    refused: int = 0
    """How many renewals of operators that have clusters were refused."""
    regained_meanwhile: int = 0
    """How many changes a daemon made after it had regained its ownership, before it had disengaged what it had lost."""
    notes: list[tuple[float, tuple[object, ...]]] = field(default_factory=list)

    @property
    def history(self) -> str:
        return "\n".join(f"{at:10.3f}  {' '.join(map(str, parts))}" for at, parts in self.notes)


@dataclass
class Truth:
    """What the objects of one name have been."""

    uid: str = ""
    ready_since: float | None = None
    """Since when a daemon that has seen nothing else would engage the cluster."""
    unready_since: float | None = None
    """Since when the object of this UID is readable and not ready."""
    changed_at: float = 0.0
    was_unready: bool = False


class FleetSimulation:
    def __init__(self, seed: int, random: Random, loop: VirtualLoop) -> None:
        self.random = random
        self.outcome = FleetOutcome(seed)
        self._clock = loop.time
        self._wall = lambda: loop.wall
        self.traits = Traits(
            streaming=random.random() < 0.5,
            page_size=500,
            grace_s=random.choice((0.0, 20.0, 60.0)),
            batch_bytes=1 << 20,
            stale_slots=1000,
            tombstones=10_000,
            has_memory=random.random() < 0.5,
            token_life_s=600.0,
        )
        self.loss_s = LOSS_S[seed % len(LOSS_S)]
        self.is_stateful = random.random() < 0.5
        """Whether the pods are those of a StatefulSet, which keep their names and hand nothing over."""
        self.is_unsteady = random.random() < 0.5
        """Whether the operators' streams are disturbed all the time."""
        self.server = Server()
        self.lease_api = LeaseApi()
        self.replicas: list[Replica] = []
        self._truth = {name: Truth() for name in NAMES}
        self._unowned_since: dict[str, float] = {}
        self._disturbed_until = 60.0
        self._unreached_until = 0.0
        self._lying_until = -inf
        self._older_until = 0.0
        """Until when daemons may know older states of the objects."""
        self._made = 0
        self._drains: dict[tuple[Replica, str], float] = {}
        self._ending: set[Replica] = set()
        """The pods that end, or are about to."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> FleetOutcome:
        self.tokens = TokenApi(self.random, lambda *_: None, 600.0, self._wall)
        for name in NAMES:
            self._put(name, self._new())
        for number in range(self.random.randint(2, 3)):
            self._add(f"operator-{number}")
        checking = asyncio.create_task(self._check_in_time(), name="check")
        await asyncio.sleep(40.0)
        faults = [self._random_fault() for _ in range(self.random.randint(3, 8))]
        for at, name, strike in sorted(faults, key=lambda fault: fault[0]):
            await self._sleep_until(at)
            self.outcome.faults.append(f"{at:.0f} {name}")
            self.note("fault:", name)
            await strike()
        await self._sleep_until(FAULTS_UNTIL_S + 40.0)
        await self._settle()
        checking.cancel()
        for task in self._tasks:
            task.cancel()
        for replica in self.replicas:
            await replica.kill()
        self.outcome.views, self.outcome.virtual_s = len(self.lease_api.views), self._clock()
        self.outcome.refused = sum(replica.operator.refused for replica in self.replicas)
        return self.outcome

    async def _sleep_until(self, at: float) -> None:
        while (now := self._clock()) < at:
            await asyncio.sleep(min(at - now, self.random.expovariate(1 / 8.0)))
            if self.random.random() < 0.7:
                self._change_object()
            if self.is_unsteady and now > 50.0 and self.random.random() < 0.4:
                await getattr(self, f"_{self.random.choice(STREAM_FAULTS)}")()

    async def _until(self, holds: Callable[[], bool], latest: float) -> None:
        while not holds():
            if self._clock() >= latest:
                return
            await asyncio.sleep(1.0)

    @property
    def living(self) -> list[Replica]:
        return [replica for replica in self.replicas if not replica.is_dead]

    @property
    def _standing(self) -> list[Replica]:
        return [replica for replica in self.living if replica not in self._ending and replica.daemon is not None]

    def _add(self, name: str, disk: Disk | None = None) -> Replica:
        replica = Replica(self, name, len(self.replicas) + 1, disk)
        self.replicas.append(replica)
        self._started()
        return replica

    def _started(self) -> None:
        """Allow for a member that has started: it observes anew for how long others are silent."""
        view, living = self.lease_api.group.view, {replica.name for replica in self.living}
        if view is not None and not living.issuperset(view.members):
            self._disturb(EVICTION_S)

    def _later(self, work: Awaitable[None]) -> None:
        async def done() -> None:
            await work

        task = asyncio.create_task(done())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _disturb(self, seconds: float) -> None:
        self._disturbed_until = max(self._disturbed_until, self._clock() + seconds)

    # --- objects ---

    def _new(self, *, ready: bool = True) -> ApiObject:
        self._made += 1
        return ApiObject(f"uid-{self._made}", 0, ready, True, True, self._made, TEAMS[self._made % 2])

    def _put(self, name: str, obj: ApiObject | None) -> None:
        now, truth = self._clock(), self._truth[name]
        if obj is None:
            self.server.delete(name)
            self._truth[name] = Truth(changed_at=now)
        else:
            self.server.put(name, obj)
            same = truth if truth.uid == obj.uid else Truth(obj.uid)
            is_unready = obj.readable and not obj.ready
            since = (same.ready_since or now) if obj.readable and obj.ready and same.ready_since is not None else now
            self._truth[name] = Truth(
                obj.uid,
                since if obj.readable and obj.ready else None,
                (same.unready_since or now) if is_unready else (None if obj.readable else same.unready_since),
                now,
                same.was_unready or is_unready,
            )
        self.note("object:", name, obj)
        for replica in self.living:
            replica.api.ring()

    def _like(self, obj: ApiObject, *, ready: bool | None = None, readable: bool = True) -> ApiObject:
        self._made += 1
        is_ready, team = obj.ready if ready is None else ready, obj.team
        if self._clock() < self._unreached_until and self.random.random() < 0.3:
            team = TEAMS[team == TEAMS[0]]  # it leaves one filter, and enters another
        return ApiObject(obj.uid, 0, is_ready, True, readable, self._made, team)

    def _change_object(self) -> None:
        name = self.random.choice(NAMES)
        before = self.server.objects.get(name)
        if before is None:
            self._put(name, self._new(ready=self.random.random() < 0.8))
            return
        match self.random.choices(("turn", "update", "garble", "delete", "replace"), (6, 2, 2, 1, 1))[0]:
            case "turn":
                self._put(name, self._like(before, ready=not before.ready))
            case "update":
                self._put(name, self._like(before))
            case "garble":
                self._put(name, self._like(before, readable=False))
            case "delete":
                self._put(name, None)
            case _:
                self._put(name, None)
                self._put(name, self._new())

    # --- faults ---

    def _random_fault(self) -> tuple[float, str, Callable[[], Awaitable[None]]]:
        name = self.random.choice(FLEET_FAULTS)
        return self.random.uniform(60.0, FAULTS_UNTIL_S), name, getattr(self, f"_{name}")

    def _some(self) -> Replica | None:
        standing = self._standing
        return self.random.choice(standing) if standing else None

    @property
    def _may_start(self) -> bool:
        """Whether a new daemon would not believe a list that lacks objects."""
        return self._clock() >= self._lying_until

    async def _join(self) -> None:
        if len(self._standing) < MOST_MEMBERS and self._may_start:
            joined = self._add(f"operator-{len(self.replicas)}")
            if self.random.random() < 0.4:
                self._lose_source(joined, self.random.uniform(5.0, 40.0))

    async def _leave(self) -> None:
        if len(self._standing) > 2 and not self.is_stateful and (replica := self._some()):
            self._ending.add(replica)
            self._later(self._left(replica))

    async def _roll(self) -> None:
        """Replace a pod, as a rollout does."""
        if (replica := self._some()) and self._may_start:
            self._ending.add(replica)
            self._later(self._replaced(replica, is_killed=False))

    async def _kill(self) -> None:
        if (replica := self._some()) and self._may_start:
            self._ending.add(replica)
            self._later(self._replaced(replica, is_killed=True))

    async def _replaced(self, replica: Replica, *, is_killed: bool) -> None:
        if is_killed:
            self._disturb(EVICTION_S)
            await replica.kill()
        elif self.is_stateful:
            self._disturb(RETURN_S)
            await replica.stop(keeps_term=True)
        else:
            added = self._add(f"operator-{len(self.replicas)}")
            await self._until(lambda: added.is_dead or added.group.share_problem() is None, FAULTS_UNTIL_S)
            await self._left(replica)
            return
        away_s = self.random.uniform(0.5, 20.0)
        self._disturb(away_s + (EVICTION_S if is_killed else RETURN_S))
        await asyncio.sleep(away_s)
        if self.is_stateful:
            self._add(replica.name, replica.disk)
        else:
            self._add(f"operator-{len(self.replicas)}")

    async def _return(self) -> None:
        """Kill a pod, which returns after its eviction with its state file, and cannot read its source."""
        if self.is_stateful and len(self._standing) > 1 and (replica := self._some()) and self._may_start:
            self._ending.add(replica)
            self._later(self._returned(replica))

    async def _returned(self, replica: Replica) -> None:
        self._disturb(EVICTION_S)
        await replica.kill()
        await asyncio.sleep(EVICTION_S + self.random.uniform(0.0, 10.0))
        self._disturb(EVICTION_S)
        self._lose_source(self._add(replica.name, replica.disk), self.random.uniform(5.0, 40.0))

    async def _left(self, replica: Replica) -> None:
        await replica.stop(keeps_term=False)
        if not replica.group.ended.is_set():  # not in time: it is evicted
            self._disturb(EVICTION_S)

    async def _crash(self) -> None:
        if (replica := self._some()) and self._may_start:
            away_s = self.random.uniform(0.1, 8.0)
            self._disturb(away_s + RETURN_S)
            await replica.crash()
            self._drains = {key: began for key, began in self._drains.items() if key[0] is not replica}

            async def restart() -> None:
                await asyncio.sleep(away_s)
                if not replica.is_dead:
                    replica.start()
                    self._started()

            self._later(restart())

    async def _stop_leases(self) -> None:
        seconds = self.random.uniform(2.0, 50.0)
        for replica in self.random.choice((self.living, self._standing[:1])):
            replica.leases.down_until = self._clock() + seconds
        self._disturb(seconds + REJOIN_S)

    async def _fail_lease_requests(self) -> None:
        if replica := self._some():
            replica.leases.error_share, replica.leases.late_s = self.random.uniform(0.1, 0.6), 2.5
            seconds = self.random.uniform(5.0, 40.0)
            self._disturb(seconds + REJOIN_S)
            await asyncio.sleep(seconds)
            replica.leases.error_share, replica.leases.late_s = 0.0, 0.1

    async def _change_lease(self) -> None:
        if replica := self._some():
            self._disturb(REJOIN_S)
            kind = self.random.random()
            if kind < 0.5:
                self.lease_api.delete(replica.name, self._clock())
            else:
                changes = {"acknowledged": 0} if kind < 0.75 else {"holder": ""}
                self.lease_api.change(replica.name, self._clock(), **changes)

    async def _lose_a_source(self) -> None:
        if replica := self._some():
            self._lose_source(replica, self.random.uniform(5.0, 60.0))

    def _lose_source(self, replica: Replica, seconds: float) -> None:
        replica.api.down_until = self._clock() + seconds
        replica.api.cut()
        self._disturb(seconds + 40.0)

    def _lie(self, seconds: float) -> None:
        """Record that daemons may not know the present states of the objects for that time."""
        self._lying_until = max(self._lying_until, self._clock() + seconds)
        self._disturb(seconds)

    async def _shorten_lists(self) -> None:
        """Answer lists without objects for a while, so that the daemons hold removals."""
        if any(replica.daemon is None or not replica.daemon.collection.lists for replica in self.living):
            return  # a daemon believes a first list
        seconds = self.random.uniform(1.0, 25.0)
        self._lie(seconds + 60.0)
        self.server.compact()
        lied_to = self.living
        for replica in lied_to:
            replica.api.only = EMPTY_LIST
            replica.api.cut()
        # Members that join meanwhile have read complete lists, and believe their watches.
        self._add(f"operator-{len(self.replicas)}")
        await asyncio.sleep(seconds)
        for replica in lied_to:
            replica.api.only = None
            replica.api.cut()

    async def _serve_an_older_state(self) -> None:
        """Read from a replica of the server that lags behind: the daemons ignore its lists, and a member that joins
        meanwhile believes them."""
        version = min((replica.followed_version for replica in self.living), default=0) - 1
        if version < 1:
            return
        seconds = self.random.uniform(10.0, 25.0)
        self._older_until = self._clock() + seconds + 60.0
        self._lie(seconds + 60.0)
        older = Server()
        older.objects = dict([*self.server.objects.items()][::2])
        older.version = older.compacted = version
        self._add(f"operator-{len(self.replicas)}")
        behind = self.living
        for replica in behind:
            replica.api.server = older
            replica.api.expire()
        await asyncio.sleep(seconds)
        self.server.compact()
        for replica in behind:
            replica.api.server = self.server
            replica.api.cut()

    async def _unready_all(self) -> None:
        unready = [name for name, obj in self.server.objects.items() if obj.ready and obj.readable]
        for name in unready:
            self._put(name, self._like(self.server.objects[name], ready=False))
        self._disturb(60.0)
        await self._join()
        await asyncio.sleep(self.random.uniform(5.0, 25.0))
        for name in unready:
            if (obj := self.server.objects.get(name)) is not None:
                self._put(name, self._like(obj, ready=True))

    def _delay_operator(self, seconds: float) -> Replica | None:
        """Return an operator whose streams are to be disturbed for that time."""
        if replica := self._some():
            until = self._clock() + seconds + UNREACHED_S
            self._unreached_until = max(self._unreached_until, until)
        return replica

    async def _break_streams(self) -> None:
        for _ in range(self.random.randint(1, 5)):
            if replica := self._delay_operator(5.0):
                self._after(self.random.uniform(0.0, 5.0), replica.operator.break_streams)

    async def _hang_streams(self) -> None:
        seconds = self.random.choice((3.0, 15.0, 40.0, 90.0, 120.0))
        if replica := self._delay_operator(seconds):
            replica.operator.hang(hangs=True)
            replica.operator.break_streams()
            self._after(seconds, lambda: replica.operator.hang(hangs=False))
            if self.random.random() < 0.7:  # clusters move meanwhile
                await asyncio.sleep(self.random.uniform(0.0, 5.0))
                await (self._join if self.random.random() < 0.6 else self._leave)()

    async def _leave_streams_unread(self) -> None:
        seconds = self.random.choice((3.0, 15.0, 40.0, 90.0))
        if replica := self._delay_operator(seconds):
            replica.operator.leave_unread(leaves=True)
            if self.random.random() < 0.5:
                replica.operator.break_streams()
            self._after(seconds, lambda: replica.operator.leave_unread(leaves=False))

    async def _change_filters(self) -> None:
        seconds = self.random.uniform(1.0, 60.0)
        if replica := self._delay_operator(seconds):
            replica.operator.select(*self.random.choice(FILTERS), is_dead=self.random.random() < 0.5)
            self._after(seconds, lambda: replica.operator.select("", is_dead=self.random.random() < 0.5))

    async def _stop_renewals(self) -> None:
        seconds = self.random.uniform(5.0, 50.0)
        if replica := self._delay_operator(seconds):
            replica.operator.mute_until = self._clock() + seconds

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, act)

    # --- checks ---

    def note(self, *parts: object) -> None:
        self.outcome.notes.append((self._clock(), parts))

    def breach(self, text: str) -> None:
        self.note("BREACH:", text)
        self.outcome.breaches.append(f"{self._clock():.2f}: {text}")

    def changed(self, replica: Replica, event: Event) -> None:
        name, cluster = event.cluster.target.name, event.cluster
        if replica.is_losing:
            self._disturb(len(NAMES) * MOST_MEMBERS * self.loss_s)
            self.outcome.lost_in_steps += event.reason is DisengageReason.OWNERSHIP_LOST
            self.outcome.regained_meanwhile += replica.is_member
            if event.type is EventType.ENGAGED or replica.group.valid_s() is not None:
                self.breach(f"{replica.name} has lost its ownership, and {event.type.value} {name}")
        if event.type is EventType.ENGAGED:
            self.outcome.engagements += 1
            for other in self.living:
                if other is not replica and other.engages(name) and not other.is_ending:
                    self.breach(f"{replica.name} engaged {name} before {other.name} released it")
        draining = cluster.draining
        key = (replica, name)
        if event.type is EventType.DISENGAGED:
            began = self._drains.pop(key, None)
            if began is None:
                self._check_end(replica, name, event.reason, cluster.object_uid)
            elif self._clock() > began + RELEASE_TIMEOUT_S + OWNED_S + 1.0:  # its subscriber may have lost the stream
                self.breach(f"{name} drained for {self._clock() - began:.1f} s at {replica.name}")
        elif draining is not None and key not in self._drains:
            self._drains[key] = self._clock()
            self._check_end(replica, name, draining.reason, cluster.object_uid)

    def _check_end(self, replica: Replica, name: str, reason: DisengageReason | None, uid: str) -> None:
        """Check the end of an engagement, or the begin of its drain."""
        now, truth = self._clock(), self._truth[name]
        is_same = truth.uid == uid
        match reason:
            case DisengageReason.DELETED | DisengageReason.REPLACED if is_same:
                self.breach(f"{name} was disengaged at {replica.name} as {reason.value}, although it exists")
            case DisengageReason.NOT_READY if is_same:
                # A daemon that resumes its watch sees former states of the object.
                grace_s, since = self.traits.grace_s, truth.unready_since
                is_early = now > truth.changed_at + SEEN_WITHIN_S if since is None else now < since + grace_s - 0.1
                has_read_all = now >= self._lying_until + grace_s and replica.is_streaming_for(grace_s)
                if not truth.was_unready or (is_early and grace_s and has_read_all):
                    self.breach(f"{name} was disengaged at {replica.name} as not ready, within its grace")
            case DisengageReason.MOVED:
                is_held = truth.ready_since is None and now > truth.changed_at + SEEN_WITHIN_S
                if replica.is_ignoring and replica.is_member:
                    self.breach(f"{name} moved from {replica.name}, which ignores the lists of its source")
                if is_held and now >= self._older_until and replica.is_member and not replica.is_stale:
                    self.breach(f"{name} moved from {replica.name}, although its next owner cannot engage it")

    def read(self) -> None:
        owners: dict[str, str] = {}
        for replica in self.living:
            for name in replica.view:
                if name in owners:
                    self.breach(f"the operators of {owners[name]} and {replica.name} work in {name}")
                owners[name] = replica.name

    async def _check_in_time(self) -> None:
        while True:
            await asyncio.sleep(CHECKED_EVERY_S)
            self.read()
            self._check_unowned()
            self._check_readiness()
            self._check_newcomers()

    def _check_unowned(self) -> None:
        now = self._clock()
        if not all(replica.is_told for replica in self._standing):
            self._unreached_until = max(self._unreached_until, now + UNREACHED_S)
        unreached_s = UNREACHED_S if now < self._unreached_until else 0.0
        engaged = {name for replica in self.living for name in replica.view}
        if unreached_s:  # an operator that is not reached follows its daemon later
            engaged |= {name for replica in self.living for name in NAMES if replica.engages(name)}
        is_disturbed = now < self._disturbed_until or any(map(self._delays_moves, self.living))
        for name, truth in self._truth.items():
            may_engage = truth.ready_since is not None and not is_disturbed
            if not may_engage or name in engaged:
                self._unowned_since.pop(name, None)
                continue
            since = max(self._unowned_since.setdefault(name, now), truth.ready_since or 0.0)
            if now > since + UNOWNED_S + unreached_s:
                self.breach(f"{name} is engaged by nobody since {since:.2f}")
                self._unowned_since[name] = now + 1000.0

    def _delays_moves(self, replica: Replica) -> bool:
        """Return whether a restarted member does not acknowledge the view yet, in case operators of the process before
        it work in clusters that the view takes from it."""
        view, lease = self.lease_api.group.view, self.lease_api.group.members.get(replica.name)
        if view is None or lease is None or self._clock() >= replica.started_at + ACKNOWLEDGES_WITHIN_S:
            return False
        return bool(lease.pending) or lease.acknowledged < view.number

    def _check_readiness(self) -> None:
        for replica in self._standing:
            has_share = replica.group.share_problem() is None
            ownership = replica.group.member.ownership(self._clock())
            former, replica.seen_view = replica.seen_view, ownership and ownership.view
            # A view that is new now came after the member took over its share of the one before.
            if has_share and not replica.has_had_share and former == replica.seen_view:
                lacking = [
                    name
                    for name, truth in self._truth.items()
                    if ownership is not None
                    and truth.ready_since is not None
                    and self._clock() > truth.ready_since + SEEN_WITHIN_S
                    and rendezvous.owner(name, ownership.view.weights) == replica.name
                    and not replica.engages(name)
                ]
                if lacking and not replica.is_stale and self._clock() >= self._lying_until:
                    self.breach(f"{replica.name} is ready, and lacks {', '.join(lacking)} of its share")
            replica.has_had_share = has_share

    def _check_newcomers(self) -> None:
        view = self.lease_api.group.view
        for replica in self._standing:
            tenure = replica.group.member.tenure
            if replica.is_listed or view is None or tenure is None or not tenure.lease.acknowledged:
                continue
            known = (members.get(replica.name) for members in (view.members, view.previous))
            if tenure.lease.term not in [member.term for member in known if member is not None]:
                self.breach(f"{replica.name} may enter the view, and has no list")

    # --- the end ---

    async def _settle(self) -> None:
        for replica in self.living:
            replica.api.down_until, replica.api.only = 0.0, None
            replica.leases.down_until = replica.leases.error_share = 0.0
            replica.leases.late_s = 0.1
            replica.operator.mute_until = 0.0
            replica.operator.hang(hangs=False)
            replica.operator.leave_unread(leaves=False)
            replica.operator.select("")
        for name, obj in [*self.server.objects.items()]:
            if not obj.readable:
                self._put(name, self._like(obj))
        self.note("all faults have ended")
        began = self._clock()
        await self._until(lambda: not self._problem(), began + SETTLED_WITHIN_S)
        self.outcome.settled_s = self._clock() - began
        if problem := self._problem():
            self.breach(problem)
        for replica in self.living:
            self.outcome.breaches += replica.operator.broken

    def _problem(self) -> str:
        """Return why the group does not have its final state; empty if it has."""
        names = {replica.name: 1.0 for replica in self._standing}
        for replica in self._standing:
            problem = replica.group.share_problem()
            if problem or not replica.group.member.is_settled:
                return f"{replica.name} is not settled, or not ready: {replica.group.status()}, {problem}"
        for replica in self.living:
            if replica.operator.late:
                return f"{replica.name} was not told of the end of {', '.join(sorted(replica.operator.late))}"
        for name, truth in self._truth.items():
            owners = [replica.name for replica in self.living if name in replica.view]
            due = [] if truth.ready_since is None else [rendezvous.owner(name, names)]
            if owners != due:
                return f"{name} is engaged by {owners}, not {due}"
        return ""


STREAM_FAULTS = ("break_streams", "hang_streams", "leave_streams_unread", "change_filters", "stop_renewals")
FLEET_FAULTS = (
    "join",
    "join",
    "leave",
    "roll",
    "roll",
    "kill",
    "crash",
    "stop_leases",
    "fail_lease_requests",
    "change_lease",
    "lose_a_source",
    "return",
    "serve_an_older_state",
    "shorten_lists",
    "unready_all",
    *STREAM_FAULTS,
)


def simulate_fleets(seed: int) -> FleetOutcome:
    random = Random(seed)
    loop = VirtualLoop(random)
    with capture_logs() as lines:
        outcome = run_on(loop, FleetSimulation(seed, random, loop).run())
        outcome.breaches += lines.errors
        return outcome
