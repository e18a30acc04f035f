"""One seeded simulation: publishers of a shard group or of one daemon, a stream, readers, and random faults."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

import msgspec

from milo_objects.messages import ClusterMessage, Heartbeat, ObjectMessage, ScopeIsOver, ScopeMessage, decode
from milo_objects.projection import ProjectedObject
from milo_objects.scope import Change, FleetCluster, Gone, ObjectGone, Scope, Stale, Synced
from milo_objects.stream_commands import WriteMessage
from milo_objects.stream_reader import SILENT_S
from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject
from tests.simulation.published_objects.participants import KINDS, Publisher, Reader
from tests.simulation.published_objects.stream import Stream
from tests.simulation.sharding.host import Timeline

PROJECTS = [f"project-{number}" for number in range(4)]
NAMES = [f"name.{number}" for number in range(5)]
FAULTS_UNTIL_S = 300.0
SETTLED_WITHIN_S = 400.0
MAX_LAG_S = 5.0


class Known(NamedTuple):
    uid: str
    is_ready: bool


@dataclass
class Outcome:
    seed: int
    breaches: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    writes: int = 0
    conflicts: int = 0
    settled_s: float = 0.0
    virtual_s: float = 0.0


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.timeline = Timeline()
        self.outcome = Outcome(seed)
        self.stream = Stream(self._stream_changed, self.judge_write)
        self.server = 1
        self.is_down = False
        self.loss = 0.0
        self.lost_at = -1000.0
        self.limit = 1 << 20
        """Maximum bytes of a message."""
        self.phases = ["a", "b", "c"]
        self.is_slow = False
        self.kinds = KINDS
        """The kinds that a publisher which starts declares."""
        self.gone_bytes = self.random.choice((1 << 29, 1 << 29, 4096))
        self.quiet_s = 0.0
        """The length of a pause of the faults, in which what the stream keeps for a while expires."""
        self.stale_until = [0.0, 0.0]
        """Until when the daemon of each publisher has no contact with its source."""
        self.unsure: set[str] = set()
        """Subjects with writes whose outcome was unknown, which are written again."""
        self.projects: dict[str, Known] = {}
        self.objects: dict[tuple[str, str], dict[str, ProjectedObject]] = {}
        """What exists, by the UID of the project and the kind."""
        self.is_group = self.random.random() < 0.6
        """Whether each cluster has one publisher, or both have all clusters of one daemon."""
        self.owners: dict[str, int] = {}
        self.incarnations: dict[str, str] = {}
        self.last_beat: tuple[float, Heartbeat] | None = None
        self._numbers = 0
        self._orphans: dict[str, float] = {}
        """Since when the owner of a cluster does not run, and the other publisher does and has left it."""
        self._learned: dict[tuple[int, str], float] = {}
        self.publishers = [self._start(index) for index in range(2)]
        self.readers = [Reader(self) for _ in range(2)]
        for name in PROJECTS:
            self.owners[name] = self.random.randrange(2)
            if self.random.random() < 0.8:
                self.change(name, Known(self.number(), is_ready=True))
        for reader in self.readers:
            self.timeline.after(self.random.uniform(0, 20), reader.connect)
        self.timeline.after(5.0, self._judge_silence)

    def number(self) -> str:
        self._numbers += 1
        return str(self._numbers)

    def lag(self) -> float:
        return self.random.uniform(0.001, MAX_LAG_S if self.is_slow else 0.2)

    def breach(self, text: str) -> None:
        self.outcome.breaches.append(f"{self.timeline.now:.2f}: {text}")

    # --- projects ---

    def change(self, name: str, project: Known | None) -> None:
        before = self.projects.pop(name, None)
        if project is not None:
            self.projects[name] = project
            for kind in KINDS:
                if (project.uid, kind.resource) not in self.objects:
                    self.objects[project.uid, kind.resource] = {}
                    for object_name in self.random.sample(NAMES, self.random.randrange(5)):
                        self.put(name, kind.resource, object_name)
        if before is not None and before.is_ready and project is not None and project.is_ready:
            reason = "REPLACED"
        else:
            reason = "DELETED" if project is None else "NOT_READY"
        if project is not None and project.is_ready:
            self.incarnations[name] = f"i{self.number()}"
        for index in range(2):
            if not self.is_group or self.owners[name] == index:
                self._tell(index, name, project, reason)

    def _tell(self, index: int, name: str, project: Known | None, reason: str) -> None:
        """Have a publisher learn of a cluster later, in order."""
        at = self.timeline.now + self.lag()
        if reason not in {"MOVED", "OWNERSHIP_LOST"}:
            at = max(at, self._learned.get((index, name), 0.0), self.stale_until[index])
            self._learned[index, name] = at
        incarnation = self.incarnations.get(name, "")

        def learn() -> None:
            publisher = self.publishers[index]
            if project is not None and project.is_ready:
                if not self.is_group or self.owners[name] == index:
                    publisher.engage(name, project, incarnation)
            elif name in publisher.engaged and publisher.engaged[name].incarnation == incarnation:
                publisher.disengage(name, reason)

        self.timeline.at(at, learn)

    def move(self, name: str) -> None:
        """Give a cluster to the other publisher, which may engage it before the former one knows."""
        if not self.is_group:
            return
        former, self.owners[name] = self.owners[name], 1 - self.owners[name]
        self._tell(former, name, None, "MOVED" if self.random.random() < 0.7 else "OWNERSHIP_LOST")
        project = self.projects.get(name)
        if project is not None and project.is_ready:
            self.incarnations[name] = f"i{self.number()}"
            self._tell(1 - former, name, project, "")

    # --- objects ---

    def listing(self, cluster: FleetCluster, resource: str) -> dict[str, ProjectedObject]:
        return dict(self.objects.get((cluster.uid, resource), {}))

    def put(self, name: str, resource: str, object_name: str) -> None:
        """Create or change an object."""
        project = self.projects.get(name)
        if project is None:
            return
        objects = self.objects[project.uid, resource]
        before = objects.get(object_name)
        uid = f"u{self.number()}" if before is None else before.uid
        content = msgspec.json.encode({"status": {"phase": self.random.choice(self.phases)}})
        objects[object_name] = ProjectedObject("", object_name, uid, content, version=self.number())
        self._watch(name, project, resource, objects[object_name], is_deleted=False)

    def delete(self, name: str, resource: str, object_name: str) -> None:
        project = self.projects.get(name)
        if project is not None and (found := self.objects[project.uid, resource].pop(object_name, None)):
            self._watch(name, project, resource, found, is_deleted=True)

    def _watch(self, name: str, project: Known, resource: str, found: ProjectedObject, *, is_deleted: bool) -> None:
        for publisher in getattr(self, "publishers", ()):
            cluster = publisher.engaged.get(name)
            if cluster is not None and cluster.uid == project.uid:
                publisher.watched(Scope(name, cluster.incarnation, resource), found, is_deleted=is_deleted)

    # --- publishers ---

    def _start(self, index: int) -> Publisher:
        publisher = Publisher(self, index)

        def begin() -> None:
            if publisher.is_killed:
                return
            publisher.connect() if not self.is_down else None
            for name, project in self.projects.items():
                if project.is_ready and (not self.is_group or self.owners[name] == index):
                    publisher.engage(name, project, self.incarnations[name])
            publisher.complete()

        self.timeline.after(self.random.uniform(0.01, 2.0), begin)
        return publisher

    def restart_publisher(self, index: int, after_s: float) -> None:
        self.publishers[index].kill()
        dead = self.publishers[index]

        def start() -> None:
            if self.publishers[index] is dead:
                self.publishers[index] = self._start(index)

        self.timeline.after(after_s, start)

    def beat(self, heartbeat: Heartbeat) -> None:
        self.last_beat = self.timeline.now, heartbeat
        for reader in self.readers:
            self.timeline.after(self.random.uniform(0.001, 0.01), partial(reader.hear, heartbeat))

    # --- the server ---

    def stop_server(self, back_s: float, *, lost: int = 0, recreated: bool = False) -> None:
        if self.is_down:
            return
        self.is_down = True
        for participant in [*self.publishers, *self.readers]:
            participant.disconnect()
        if lost:
            self.stream.lose_power(lost)
            self.lost_at = self.timeline.now
        self.timeline.after(back_s, partial(self._start_server, recreated=recreated))

    def _start_server(self, *, recreated: bool) -> None:
        if recreated:
            self.stream.recreate()
            self.last_beat = None
        self.is_down = False
        self.server += 1
        for participant in [*self.publishers, *self.readers]:
            self.timeline.after(self.random.uniform(0.001, 2.0), participant.connect)

    def _stream_changed(self) -> None:
        for reader in self.readers:
            reader.notify()

    # --- validators ---

    def judge_write(self, write: WriteMessage) -> None:
        """A message says nothing that is not so, and not twice."""
        self.outcome.writes += 1
        message, subject = write.message, write.subject
        if isinstance(message, ObjectMessage):
            assert isinstance(subject, ObjectSubject)
            last = self.stream.messages.get(str(subject))
            before = None if last is None else decode(last.stored)[1]
            if message.gone:
                self._judge_gone(subject, message)
            elif isinstance(before, ObjectMessage) and not message.differs(before) and str(subject) not in self.unsure:
                self.breach(f"{subject} is written twice with the same content")
        if isinstance(message, ClusterMessage) and not message.ended:
            last = self.stream.messages.get(str(subject))
            before = None if last is None else decode(last.stored)[1]
            is_engaged = isinstance(before, ClusterMessage) and not before.ended
            if isinstance(before, ClusterMessage) and is_engaged and before.cluster.uid != message.cluster.uid:
                self.breach(f"{subject} is written over another cluster, which has not ended")
        if isinstance(message, ClusterMessage) and message.ended:
            project = self.projects.get(message.cluster.name)
            is_engaged = project is not None and project == Known(message.cluster.uid, is_ready=True)
            if is_engaged and self.incarnations[message.cluster.name] == message.cluster.incarnation:
                self.breach(f"{subject} is ended, and is engaged")

    def _judge_gone(self, subject: ObjectSubject, message: ObjectMessage) -> None:
        project = self.projects.get(subject.scope.cluster)
        if project is None:
            return
        resource = next(kind.resource for kind in KINDS if kind.paths.plural == subject.scope.resource)
        found = self.objects[project.uid, resource].get(subject.name)
        if found is not None and found.uid == message.object.uid:
            self.breach(f"{subject} is gone ({message.gone}), and exists")

    def judge_change(self, change: Change) -> None:
        """A reader is told of no end of what exists."""
        is_after_loss = self.timeline.now < self.lost_at + 120.0  # until the publishers have written it again
        if isinstance(change, ObjectGone) and change.reason is Gone.OBJECT_DELETED and not is_after_loss:
            project = self.projects.get(change.scope.cluster)
            if project is not None:
                found = self.objects.get((project.uid, change.scope.resource), {}).get(change.object.name)
                if found is not None and found.uid == change.object.uid:
                    self.breach(f"a reader is told that {change.object.name} is deleted, which exists")

    def _judge_silence(self) -> None:
        """A reader says of no scope of a dead publisher that it is followed, nor of one that a living one has left."""
        now = self.timeline.now
        dead = {
            found.name for found in self.publishers if found.is_killed and now > found.died_at + SILENT_S + MAX_LAG_S
        }
        for name, index in self.owners.items():
            owner, other = self.publishers[index], self.publishers[1 - index]
            is_orphan = owner.is_killed and not (other.is_killed or name in other.engaged)
            since = max(owner.died_at, other.connected_at, min(now, self._orphans.get(name, now)))
            self._orphans[name] = since if is_orphan else math.inf
        orphans = {name for name, since in self._orphans.items() if now > since + SILENT_S + MAX_LAG_S}
        if self.is_group and (dead or orphans) and not self.is_down:
            stored = self.stream.scopes_and_clusters(now)
            followers = {
                subject: message.publisher
                for subject, message in map(decode, stored)
                if isinstance(subject, ScopeSubject) and isinstance(message, ScopeMessage)
            }
            resources = {kind.paths.plural: kind.resource for kind in KINDS}
            for reader in self.readers:
                if reader.is_cut or now < reader.connected_at + SILENT_S + MAX_LAG_S:
                    continue
                for subject, publisher in followers.items():
                    view = reader.store.view(resources[subject.resource])
                    is_followed = not {**view.missing, **view.outdated}.keys() & {subject.cluster}
                    is_dead = publisher in dead or subject.cluster in orphans
                    if is_dead and subject.cluster in reader.store.clusters and is_followed:
                        self.breach(f"{subject} is said to be followed, and {publisher} is dead, or does not")
        self.timeline.after(5.0, self._judge_silence)

    def lacking(self) -> list[str]:
        """Return how the stream, and what its readers have, differ from what exists."""
        wanted = {
            (name, kind.resource, found.name): (found.uid, found.content)
            for name, project in self.projects.items()
            if project.is_ready
            for kind in KINDS
            for found in self.objects[project.uid, kind.resource].values()
        }
        scopes = {
            (name, kind.resource) for name, project in self.projects.items() if project.is_ready for kind in KINDS
        }
        texts = [f"the stream has the leftover {subject}" for subject in self._leftovers()]
        if (stored := self._stored()) != (wanted, scopes):
            texts.append(f"the stream has {_difference(stored[0], wanted)} {stored[1] ^ scopes}")
        for number, reader in enumerate(self.readers):
            if not scopes and isinstance(reader.store.fleet, Stale):
                continue  # the stream was lost, and nobody has written it again: what was known stays, and it says so
            known = {
                (found.cluster.name, kind.resource, found.object.name): (found.object.uid, found.object.content)
                for kind in KINDS
                for found in reader.store.list(kind.resource)
            }
            if known != wanted:
                texts.append(f"reader {number} has {_difference(known, wanted)}")
            if set(reader.store.clusters) != {name for name, _ in scopes}:
                texts.append(f"reader {number} has the clusters {set(reader.store.clusters)}")
            for kind in KINDS:
                view = reader.store.view(kind.resource)
                if scopes and (not view.synced or view.outdated or not isinstance(view.fleet, Synced)):
                    texts.append(f"reader {number}: {view}")
        return texts

    def _leftovers(self) -> list[str]:
        """Return what the stream has, and would for ever, of clusters that are not engaged and of former scopes."""
        self.stream.expire(self.timeline.now)
        stored = [decode(entry.stored) for entry in self.stream.messages.values()]
        epochs = {
            subject: message.epoch
            for subject, message in stored
            if isinstance(message, ScopeMessage) and not isinstance(message.state, ScopeIsOver)
        }
        engaged = {name for name, project in self.projects.items() if project.is_ready}
        leftovers = []
        for subject, message in stored:
            match subject, message:
                case ObjectSubject(scope), ObjectMessage(_, epoch, ""):
                    is_left = epochs.get(scope) != epoch
                case ScopeSubject(cluster), ScopeMessage() if subject in epochs:
                    is_left = cluster not in engaged
                case ClusterSubject(cluster), ClusterMessage(_, ""):
                    is_left = cluster not in engaged
                case _:
                    continue
            if is_left:
                leftovers.append(str(subject))
        return leftovers

    def _stored(self) -> tuple[dict[tuple[str, str, str], tuple[str, bytes]], set[tuple[str, str]]]:
        self.stream.expire(self.timeline.now)
        resources = {kind.paths.plural: kind.resource for kind in KINDS}
        decoded = [decode(entry.stored) for entry in self.stream.messages.values()]
        scopes = {
            subject: message
            for subject, message in decoded
            if isinstance(subject, ScopeSubject) and isinstance(message, ScopeMessage)
        }
        objects = {}
        for subject, message in decoded:
            if isinstance(subject, ObjectSubject) and isinstance(message, ObjectMessage) and not message.gone:
                scope = scopes.get(subject.scope)
                if scope is not None and not isinstance(scope.state, ScopeIsOver) and scope.epoch == message.epoch:
                    key = (subject.scope.cluster, resources[subject.scope.resource], subject.name)
                    objects[key] = (message.object.uid, message.object.content)
        synced = {
            (subject.cluster, resources[subject.resource])
            for subject, message in scopes.items()
            if isinstance(message.state, Synced)
        }
        return objects, synced


def _difference(found: dict, wanted: dict) -> str:  # type: ignore[type-arg]
    lacks = {key: value for key, value in wanted.items() if found.get(key) != value}
    surplus = {key: value for key, value in found.items() if key not in wanted}
    return f"not {lacks}, and {surplus}"


def simulate(seed: int, *, prepare: Callable[[Simulation], None] = lambda _: None) -> Outcome:
    from tests.simulation.published_objects.faults import schedule  # noqa: PLC0415 - it schedules on this module's simulation

    world = Simulation(seed)
    prepare(world)
    last = schedule(world)
    world.timeline.run(last)
    while world.timeline.now < last + SETTLED_WITHIN_S and not world.outcome.breaches:
        world.timeline.run(world.timeline.now + 5.0)
        if not world.lacking():
            world.outcome.settled_s = world.timeline.now - last
            break
    for text in [] if world.outcome.breaches else world.lacking():
        world.breach(text)
    if not world.outcome.breaches:
        world.timeline.run(world.timeline.now + 90.0)  # and it stays so
        for text in world.lacking():
            world.breach(f"later: {text}")
    world.outcome.virtual_s = world.timeline.now
    return world.outcome
