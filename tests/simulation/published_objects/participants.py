"""The publishers and readers of a simulation: their pure parts, with lag, cuts and restarts."""

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from milo_objects.kinds import Kind
from milo_objects.messages import Heartbeat, decoded
from milo_objects.projection import ProjectedObject
from milo_objects.publication import StreamConnected, StreamPublication
from milo_objects.scope import (
    Change,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    Gone,
    ObjectChanged,
    ObjectGone,
    OverBudget,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    Stale,
    Synced,
)
from milo_objects.store import Store
from milo_objects.stream_commands import Command, Purge, ReadCluster, Relist, WriteMessage
from milo_objects.stream_reader import ReadAgain, StreamReader
from tests.simulation.published_objects.stream import Conflict, Full

if TYPE_CHECKING:
    from tests.simulation.published_objects.simulation_run import Known, Simulation

KINDS = (Kind("v1/namespaces", ("status.phase",)), Kind("example.com/v1/widgets", ("status.phase",)))
TIMEOUT_S = 5.0
HEARTBEAT_S = 2.0
BEAT_EVERY_S = 10.0
SECOND_LOOK_S = 10.0


class Publisher:
    """A process that follows the clusters of its daemon, and publishes their objects."""

    def __init__(self, world: "Simulation", index: int) -> None:
        self.world = world
        self.index = index
        self.name = name = f"publisher-{index}"
        self.is_killed = False
        self.is_cut = False
        self.engaged: dict[str, FleetCluster] = {}
        self.kinds = world.kinds
        self.store = Store([kind.resource for kind in KINDS], {}, self.time(), changed=self._changed)
        self.publication = StreamPublication(
            self.kinds, lambda _: not self.is_stale, world.timeline.now, world.gone_bytes
        )
        self._member = name if world.is_group else ""
        self.publication.publisher = self._member
        self.died_at = 0.0
        self.connected_at = 0.0
        self._stale: set[Scope] = set()
        self._behind: dict[Scope, float] = {}
        self._seen: tuple[str, int, int] | None = None
        self._missing: dict[str, float] = {}
        self._asked: set[Scope] = set()

    def time(self) -> datetime:
        return datetime.fromtimestamp(self.world.timeline.now, UTC)

    def _changed(self, change: Change) -> None:
        self.publication.apply(change, self.world.timeline.now)

    @property
    def is_stale(self) -> bool:
        """Whether the daemon has no contact with its source."""
        return self.world.stale_until[self.index] > self.world.timeline.now

    # --- the daemon and the API servers ---

    def engage(self, name: str, project: "Known", incarnation: str) -> None:
        if self.is_killed:
            return
        former = self.engaged.get(name)
        if former is not None and former.incarnation == incarnation:
            return
        if former is not None:
            self.disengage(name, "REPLACED" if former.uid != project.uid else "NOT_READY")
        cluster = self.engaged[name] = FleetCluster(name=name, incarnation=incarnation, uid=project.uid)
        self.store.apply(ClusterChanged(cluster))
        for kind in self.kinds:
            scope = Scope(name, incarnation, kind.resource)
            self.store.apply(ScopeChanged(scope, Pending(self.time())))
            self.world.timeline.after(self.world.lag(), partial(self.list, scope))
        self.step()

    def disengage(self, name: str, reason: str) -> None:
        cluster = self.engaged.pop(name, None)
        if cluster is not None and not self.is_killed:
            self.store.apply(ClusterEnded(cluster, reason))
            self.step()

    def is_following(self, scope: Scope) -> bool:
        cluster = self.engaged.get(scope.cluster)
        is_declared = any(kind.resource == scope.resource for kind in self.kinds)
        is_engaged = cluster is not None and cluster.incarnation == scope.incarnation
        return not self.is_killed and is_declared and is_engaged

    def list(self, scope: Scope) -> None:
        """Request a list, which is of now and arrives later. Changes after it arrive after it."""
        cluster = self.engaged.get(scope.cluster)
        if not self.is_following(scope) or cluster is None:
            return
        self._stale.discard(scope)
        objects = self.world.listing(cluster, scope.resource)
        self._later(scope, partial(self._listed, scope, objects))

    def _listed(self, scope: Scope, objects: dict[str, ProjectedObject]) -> None:
        for held in [*self.store.objects(scope).values()]:
            if held.name not in objects:
                self.store.apply(ObjectGone(scope, held, Gone.MISSING))
        for found in objects.values():
            self._object(scope, found)
        self.store.apply(ScopeChanged(scope, Synced(self.time())))
        if scope in self._asked:
            self._asked.discard(scope)
            self.publication.relisted(self._subject_relist(scope), self.world.timeline.now)
        self.step()

    def _subject_relist(self, scope: Scope) -> Relist:
        return Relist(self.publication._scope(scope))

    def watched(self, scope: Scope, found: ProjectedObject, *, is_deleted: bool) -> None:
        """Receive a change of the truth, in order, unless the watch is broken."""
        if self.is_following(scope) and scope not in self._stale:
            self._later(scope, partial(self._watched, scope, found, is_deleted=is_deleted))

    def _watched(self, scope: Scope, found: ProjectedObject, *, is_deleted: bool) -> None:
        if is_deleted:
            held = self.store.objects(scope).get(found.place)
            if held is not None and held.uid == found.uid:
                self.store.apply(ObjectGone(scope, held, Gone.OBJECT_DELETED))
        else:
            self._object(scope, found)
        self.step()

    def _object(self, scope: Scope, found: ProjectedObject) -> None:
        self.store.apply(ObjectChanged(scope, found))

    def lose_watch(self, scope: Scope, back_s: float) -> None:
        if self.is_following(scope):
            self._stale.add(scope)
            self._later(scope, partial(self.store.apply, ScopeChanged(scope, Stale(self.time(), "no answer"))))
            self.world.timeline.after(back_s, partial(self.list, scope))

    def exceed(self, scope: Scope, back_s: float) -> None:
        """Drop the objects of a scope, which take too much memory, and list them again later."""
        if self.is_following(scope):
            self._stale.add(scope)
            self._later(scope, partial(self._exceeded, scope))
            self.world.timeline.after(back_s, partial(self.list, scope))

    def _exceeded(self, scope: Scope) -> None:
        self.store.apply(ScopeEnded(scope, ScopeEnd.OVER_BUDGET))
        self.store.apply(ScopeChanged(scope, OverBudget(self.time(), "too large")))
        self.step()

    def _later(self, scope: Scope, happens: "partial[None]") -> None:
        at = max(self.world.timeline.now + self.world.lag(), self._behind.get(scope, 0.0))
        self._behind[scope] = at
        self.world.timeline.at(at, lambda: happens() if self.is_following(scope) else None)

    def complete(self) -> None:
        """The daemon has sent all of its clusters. From now on look for clusters that went before."""
        if not self.is_killed:
            self.store.apply(FleetChanged(Synced(self.time())))
            self._look()
            self._beat()

    def kill(self) -> None:
        self.is_killed, self.died_at = True, self.world.timeline.now

    def _beat(self) -> None:
        if self.is_killed:
            return
        is_current = self.publication.is_current("", self.world.timeline.now)
        if is_current and not self.is_cut and not self.world.is_down:
            self.world.beat(Heartbeat(self._member, {"": "stale" if self.is_stale else ""}))
        self.world.timeline.after(BEAT_EVERY_S if is_current else 1.0, self._beat)

    def _look(self) -> None:
        if self.is_killed:
            return
        now = self.world.timeline.now
        if not self.is_cut and not self.world.is_down and not self.is_stale:
            orphans, others = {}, set()
            stored = decoded(self.world.stream.scopes_and_clusters(now))
            for name, cluster in self.publication.orphans(stored).items():
                project = self.world.projects.get(name)
                if self.world.is_group and self.world.owners[name] != self.index:
                    others.add(name)
                elif project is None or not project.is_ready or project.uid != cluster.uid:
                    orphans[name] = cluster
            for purge in self.publication.review(stored, self.world.stream.last_sequence, now):
                self._effect(purge)
            for write in self.publication.disown(stored, others):
                self._effect(write)
            self._missing = {name: self._missing.get(name, now) for name in orphans}
            for name, cluster in orphans.items():
                if now >= self._missing[name] + SECOND_LOOK_S:
                    self.publication.end_orphan(cluster, now)
            self.step()
        self.world.timeline.after(5.0, self._look)

    # --- NATS ---

    def connect(self) -> None:
        if self.is_killed or self.is_cut:
            return
        stream = self.world.stream
        seen = self._seen
        is_same = seen is not None and seen[0] == stream.created and seen[1] == self.world.server
        self._seen = (stream.created, self.world.server, 0)
        self.connected_at = self.world.timeline.now
        self.publication.connected(self.world.limit, self.world.timeline.now, is_same=is_same)
        self.step()

    def disconnect(self) -> None:
        if not self.is_killed:
            sent = self.publication._sent.values()
            self.world.unsure.update(str(command.subject) for command in sent if isinstance(command, WriteMessage))
            self.publication.disconnected("connection lost", self.world.timeline.now)
            self.step()

    def step(self) -> None:
        if self.is_killed:
            return
        now = self.world.timeline.now
        for command in self.publication.due(now):
            if isinstance(command, Relist):
                scope = next(
                    (
                        Scope(name, cluster.incarnation, kind.resource)
                        for name, cluster in self.engaged.items()
                        for kind in KINDS
                        if (name, kind.paths.plural) == (command.scope.cluster, command.scope.resource)
                    ),
                    None,
                )
                if scope is not None:
                    self._asked.add(scope)
                    self.list(scope)
            else:
                self._send(command)
        if self.publication.next_at < float("inf"):
            self.world.timeline.at(max(self.publication.next_at, now + 0.001), self._woken)

    def _woken(self) -> None:
        if not self.is_killed and self.publication.next_at <= self.world.timeline.now:
            self.step()

    def _send(self, command: Command) -> None:
        assert not isinstance(command, Relist)
        world, random = self.world, self.world.random
        fate = random.random()
        if fate < world.loss:
            is_late = random.random() < 0.5
            if is_late and not isinstance(command, ReadCluster):
                world.timeline.after(random.uniform(0.01, 20.0), lambda: self._effect(command))
            world.unsure.add(str(command.subject) if isinstance(command, WriteMessage) else "")
            world.timeline.after(TIMEOUT_S, lambda: self._failed(command))
            return
        world.timeline.after(random.uniform(0.0005, 0.02), lambda: self._arrive(command))

    def _arrive(self, command: Command) -> None:
        world = self.world
        if self.is_cut or world.is_down:
            return  # the connection is closed, which answers it
        result = self._effect(command)
        world.timeline.after(world.random.uniform(0.0005, 0.02), lambda: self._answer(command, result))

    def _effect(self, command: Command) -> object:
        world = self.world
        try:
            match command:
                case WriteMessage():
                    return world.stream.write(command, world.timeline.now)
                case Purge():
                    return world.stream.purge(command)
                case ReadCluster(cluster):
                    return world.stream.of_cluster(cluster, world.timeline.now), world.stream.last_sequence
        except (Conflict, Full) as error:
            return error
        return None

    def _answer(self, command: Command, result: object) -> None:
        if self.is_killed or self.is_cut or self.world.is_down:
            return
        now, publication = self.world.timeline.now, self.publication
        if not isinstance(publication.connection, StreamConnected):
            return
        match command, result:
            case WriteMessage(), int(sequence):
                publication.written(command, sequence, now)
            case WriteMessage(), Conflict():
                publication.conflicted(command, now)
                self.world.outcome.conflicts += 1
            case WriteMessage(), Full():
                publication.full(command, "full", now)
            case Purge(), _:
                publication.purged(command, now)
            case ReadCluster(), (stored, last):
                publication.read(command, decoded(stored), last, now)
        self.step()

    def _failed(self, command: Command) -> None:
        assert not isinstance(command, Relist)
        if not self.is_killed:
            self.publication.failed(command, "timeout", self.world.timeline.now)
            self.step()


class Reader:
    """A process that reads the stream into a store."""

    def __init__(self, world: "Simulation") -> None:
        self.world = world
        self.store = Store([kind.resource for kind in KINDS], {}, self._time(), changed=world.judge_change)
        self.reader = StreamReader(KINDS, self.store)
        self.is_cut = True
        self.connected_at = 0.0
        self._session = 0
        self._next = 0
        self._is_scheduled = False

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self.world.timeline.now, UTC)

    def connect(self) -> None:
        if self.world.is_down or not self.is_cut:
            return
        self.is_cut = False
        self._session += 1
        stream = self.world.stream
        lineage = f"{stream.created} {self.world.server}"
        self.connected_at = self.world.timeline.now
        self._next = self.reader.attach(lineage, stream.last_sequence, self.world.timeline.now)
        if self.world.last_beat is not None:
            at, heartbeat = self.world.last_beat
            self.reader.heard(at, self.world.timeline.now, heartbeat)
        self._is_scheduled = False
        self._heartbeat(self._session)

    def _heartbeat(self, session: int) -> None:
        if session == self._session and not self.is_cut:
            self.notify()
            self.world.timeline.after(HEARTBEAT_S, partial(self._heartbeat, session))

    def hear(self, heartbeat: Heartbeat) -> None:
        if not self.is_cut:
            self.reader.heard(self.world.timeline.now, self.world.timeline.now, heartbeat)

    def disconnect(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            self.reader.detach("connection lost")

    def notify(self) -> None:
        if not self.is_cut and not self._is_scheduled:
            self._is_scheduled = True
            delay = self.world.random.uniform(0.0001, 0.01)
            self.world.timeline.after(delay, partial(self._read, self._session))

    def _read(self, session: int) -> None:
        if session != self._session or self.is_cut:
            return
        self._is_scheduled = False
        stored = self.world.stream.after(self._next - 1, self.world.timeline.now)
        if stored is None:
            self.reader.caught_up(self.world.timeline.now)
            return
        self._next = stored.sequence + 1
        try:
            self.reader.receive(stored, self.world.timeline.now)
        except ReadAgain:
            self.disconnect()
            self.connect()
        self.notify()
