"""One seeded simulation: the replicas of a shard group, or one publisher without a group, on virtual time, random
faults, and validators of objects."""

import base64
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

from milo_discovery import DisengageReason
from milo_discovery.removals import is_mass
from milo_publishing.errors import TargetUnavailable
from milo_publishing.objects import CLUSTER, CLUSTER_UID, FIELDS, INCARNATION, ObservedObject
from milo_publishing.publication import Task
from milo_publishing.records import Create, DeleteObject, Request
from tests.simulation.publishing.api_server import ApiServer, Document, incarnation
from tests.simulation.publishing.replica import GROUP, LATE_S, RENDERERS, SOURCES, Daemon, Replica
from tests.simulation.sharding.host import Timeline

REPLICAS = (2, 2, 2, 3, 4, 5, 6)
PROJECTS = (8, 8, 8, 8, 24, 48)
FAULTS_UNTIL_S = 240.0
SETTLED_WITHIN_S = 150.0
"""The time within which the objects are those of the clusters after the last fault: a backoff of 30 s, a list, and two
looks at each missing cluster."""
MAX_LAG_S = 8.0
"""How late a daemon learns of a change, which is sooner than the second look at a missing cluster."""
GRACE_S = 40.0
"""How long a cluster stays engaged that is not ready: longer than two looks at it after a list."""
EVIDENCE_S = 10.0
OBSERVED_S = 45.0
"""How long a replica may not know what others have created or deleted: until the next list, and evidence of then."""
TIMEOUT_S = 20.0


class Known(NamedTuple):
    uid: str
    is_ready: bool


@dataclass
class Lack:
    """Projects that no publisher sees for some time, although they exist."""

    names: set[str]
    since: float = -math.inf
    until: float = math.inf
    deleted: set[str] = field(default_factory=set)
    """Their objects that publishers have deleted."""
    permitted_at: float = -math.inf
    """When the objects were last so few of all that the guard of removals permits their deletion."""


@dataclass
class Outcome:
    seed: int
    breaches: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    deletions: int = 0
    writes: int = 0
    conflicts: int = 0
    settled_s: float = 0.0
    virtual_s: float = 0.0


class Simulation:
    def __init__(self, seed: int, group: str) -> None:
        """`group`: the shard group of the daemons; empty for one daemon without a group."""
        self.group = group
        self.random = Random(seed)
        self.timeline = Timeline()
        self.outcome = Outcome(seed)
        self.api = ApiServer(self._deleted, self._written, self.breach)
        self.projects: dict[str, Known] = {}
        self.ready_since: dict[str, float] = {}
        """Since when a project with this UID is ready."""
        self.is_down = False
        self.errors = 0.0
        self.failing: str = ""
        self.daemon_errors = 0.0
        self.late_answers = 0.0
        self.slow = 0.0
        self._numbers = 0
        self._learned_at: dict[tuple[str, str], float] = {}
        self._endpoints: dict[str, int] = {}
        self.renderer = self.random.choice(RENDERERS)
        self.only_owners_judge = True
        """Whether a daemon says that it cannot know whether a cluster of another member is engaged."""
        self.grace_s = self.random.choice((0.0, 0.0, 0.0, GRACE_S))
        self.lacked: set[str] = set()
        """Projects that all daemons lack, or that no publisher may see."""
        self._last_lack = Lack(set())
        self._created_at: dict[str, float] = {}
        self.deleted_at: dict[str, float] = {}
        prefixes = [source and f"{source}#" for source in SOURCES[: self.random.choice((1, 1, 2))]]
        self.names = [
            f"{self.random.choice(prefixes)}project-{number}" for number in range(self.random.choice(PROJECTS))
        ]
        twins = Random(f"twins {seed}")
        share = twins.choice((0.0, 0.0, 0.5))
        self.twins = [name.replace("#", ".") for name in self.names if "#" in name and twins.random() < share]
        """Clusters whose objects have the name of another cluster's object."""
        self.names += self.twins
        self.daemons = [
            Daemon(self, f"daemon-{number}") for number in range(self.random.choice(REPLICAS) if group else 1)
        ]
        self.replicas = [self._start(daemon) for daemon in self.daemons]
        for name in self.names:
            self.random.choice(self.daemons).assigned.add(name)
            if self.random.random() < 0.8:
                self.change(name, Known(self.number(), is_ready=True))

    def number(self) -> str:
        self._numbers += 1
        return f"n{self._numbers}"

    def endpoint(self, name: str) -> str:
        return f"https://{name.replace('#', '.')}-{self._endpoints.get(name, 0)}.test"

    def object_name(self, name: str) -> str:
        return name.replace("#", ".") + self.renderer.suffix

    def breach(self, text: str) -> None:
        self.outcome.breaches.append(f"{self.timeline.now:.2f}: {text}")

    # --- projects and their owners ---

    def change(self, name: str, project: Known | None) -> None:
        """Change a project; each daemon learns of it later, in order."""
        before = self.projects.pop(name, None)
        if project is not None:
            self.projects[name] = project
        if before is not None and (project is None or project.uid != before.uid or not project.is_ready):
            self.ready_since.pop(before.uid, None)
        if project is not None and project.is_ready:
            self.ready_since.setdefault(project.uid, self.timeline.now)
        for daemon in self.daemons:
            at = self.timeline.now + self.random.uniform(0.01, MAX_LAG_S if self.random.random() < 0.1 else 0.5)
            at = max(at, self._learned_at.get((daemon.name, name), 0.0))
            self._learned_at[daemon.name, name] = at
            self.timeline.at(at, partial(daemon.learn, name, project))

    def move(self, name: str) -> None:
        """Move a cluster to another replica, which may engage it once the former owner has disengaged it."""
        former = next((daemon for daemon in self.daemons if name in daemon.assigned), None)
        if former is None or former.is_dead or not self.group:
            return
        new = self.random.choice([daemon for daemon in self.daemons if daemon is not former])
        former.assigned.discard(name)
        former.disengage(name, DisengageReason.MOVED)
        self.timeline.after(self.random.uniform(0.01, 2.0), partial(self.assign, new, name))

    def assign(self, daemon: Daemon, name: str) -> None:
        if daemon.is_dead:
            daemon = self._alive()
        daemon.assigned.add(name)
        daemon.engage(name)

    def _alive(self) -> Daemon:
        return self.random.choice([daemon for daemon in self.daemons if not daemon.is_dead])

    def change_endpoint(self, name: str) -> None:
        self._endpoints[name] = self._endpoints.get(name, 0) + 1
        for daemon in self.daemons:
            if (cluster := daemon.engaged.get(name)) is not None:
                daemon.updated(cluster, self.endpoint(name))

    def lack(self, names: set[str], *, is_restarted: bool) -> None:
        """Have all daemons lack these projects, with or without a restart of each."""
        self.lacked, self._last_lack = names, Lack(names, self.timeline.now)
        if not is_mass(*self._lacked_objects()):
            self._last_lack.permitted_at = self.timeline.now
        for index, daemon in enumerate(self.daemons):
            if is_restarted:
                self.replicas[index].disconnect()
                self.timeline.after(self.random.uniform(0.1, 5.0), partial(self._reconnect, index))
            daemon.lack(is_restarted=is_restarted)

    def _reconnect(self, index: int) -> None:
        self.replicas[index].connect()

    def end_lack(self) -> None:
        self.lacked, self._last_lack.until = set(), self.timeline.now
        for daemon in self.daemons:
            daemon.relist()

    def _lacked_objects(self) -> tuple[int, int]:
        """Return how many objects there are of projects that are lacked, and of all."""
        observed = self.timeline.now - OBSERVED_S
        former = {name for name, at in self.deleted_at.items() if at > observed}
        present = self.api.own().keys() | self._last_lack.deleted
        # What was deleted before the lack is none of those that are lacked.
        lacked = present | {name for name in former if self.deleted_at[name] >= self._last_lack.since}
        listed = {name for name in lacked if self._created_at.get(name, 0.0) < observed}
        names = {self.object_name(name) for name in self._last_lack.names}
        return len(listed & names), len(present | former)

    # --- replicas ---

    def _start(self, daemon: Daemon) -> Replica:
        replica = Replica(self, daemon, self.renderer)
        self.timeline.after(self.random.uniform(0.01, 0.5), replica.connect)
        return replica

    def kill_publisher(self, index: int) -> None:
        self.replicas[index].is_killed = True
        self.daemons[index].replica = None
        self.timeline.after(self.random.uniform(0.5, 40), partial(self._restart_publisher, index))

    def _restart_publisher(self, index: int) -> None:
        if self.replicas[index].is_killed:
            self.replicas[index] = self._start(self.daemons[index])

    def kill_daemon(self, index: int) -> None:
        """Kill a daemon. Its subscriber loses the ownership before the other member takes over."""
        daemon, replica = self.daemons[index], self.replicas[index]
        if any(other.is_dead for other in self.daemons):
            return
        daemon.is_dead = True
        daemon.engaged.clear()
        replica.disconnect()
        self.timeline.after(self.random.uniform(1, 60), partial(self._restart_daemon, index))
        if self.group:
            takeover_s = 30.0
            self.timeline.after(takeover_s - 5, lambda: replica.connected or replica.lose_ownership())
            self.timeline.after(takeover_s, partial(self._take_over, index))

    def _take_over(self, index: int) -> None:
        if self.daemons[index].is_dead:
            lost, self.daemons[index].assigned = self.daemons[index].assigned, set()
            for name in sorted(lost):
                self.assign(self._alive(), name)

    def _restart_daemon(self, index: int) -> None:
        self.daemons[index].restart()
        self.replicas[index].connect()

    # --- network ---

    def send(self, replica: Replica, task: Task, request: Request) -> None:
        """Send a request to the API server. It may fail before, or take effect after, its sender has timed out."""
        finish, random = partial(replica.finish, task, request), self.random
        if self.is_down:
            self.timeline.after(0.01, partial(finish, TargetUnavailable("refused", is_unsent=True)))
        elif random.random() < self.errors or (task.name == self.failing and random.random() < 0.9):
            is_applied = random.random() < 0.3
            self.timeline.after(0.05, lambda: finish((is_applied and self._apply(request) and None) or _error()))
        elif random.random() < self.slow:
            arrives_s = random.uniform(0.1, 60)
            if arrives_s > TIMEOUT_S:
                self.timeline.after(TIMEOUT_S, partial(finish, TargetUnavailable("timeout")))
                self.timeline.after(arrives_s, lambda: self._apply(request) and None)
            else:
                self.timeline.after(arrives_s, lambda: self._answer(finish, request, random.uniform(0.001, 3)))
        else:
            self.timeline.after(
                random.uniform(0.001, 0.05), lambda: self._answer(finish, request, random.uniform(0.001, 0.05))
            )

    def send_list(self, replica: Replica, task: Task) -> None:
        sent_at = self.timeline.now

        def answered(objects: list[ObservedObject]) -> None:
            if not replica.is_killed:
                replica.publication.listed(sent_at, objects, self.timeline.now)
                replica.step()

        def failed() -> None:
            if not replica.is_killed:
                error = TargetUnavailable("refused", is_unsent=self.is_down)
                replica.publication.failed(task, error, self.timeline.now)
                replica.step()

        if self.is_down or self.random.random() < self.errors:
            self.timeline.after(0.01, failed)
        else:
            objects = self.api.list(replica.publication.identity)
            slow_s = self.random.uniform(0, 15) if self.random.random() < self.slow else 0.01
            self.timeline.after(slow_s, lambda: answered(objects))

    def _answer(self, finish: Callable[[object], None], request: Request, delay: float) -> None:
        self.timeline.after(delay, partial(finish, self._apply(request)))

    def _apply(self, request: Request) -> object:
        try:
            self.outcome.writes += 1
            if isinstance(request, Create):
                self._created_at[request.body["metadata"]["name"]] = self.timeline.now
            return self.api.apply(request)
        except Exception as error:  # noqa: BLE001  (the answer)
            self.outcome.conflicts += 1
            return error

    # --- validators ---

    def judge_decision(self, request: DeleteObject, cluster_uid: str) -> None:
        """A deletion is decided only for a cluster that was not ready until shortly before. `cluster_uid`: what the
        object had when the publisher saw it."""
        document = self.api.objects.get(request.name)
        if document is None or document["metadata"]["uid"] != request.uid:
            return
        written = self.api.written[request.uid]
        if cluster_uid != written[CLUSTER_UID]:
            return  # another client has changed it, perhaps meanwhile back: then the deletion is refused
        since = self.ready_since.get(written[CLUSTER_UID])
        recent = self.timeline.now - EVIDENCE_S - MAX_LAG_S - LATE_S - 1
        if since is None or since >= recent:
            return
        is_lacked = written[CLUSTER] in self._last_lack.names
        if is_lacked and self._last_lack.until >= recent:
            self._judge_guard(request)
        else:
            self.breach(f"the deletion of {request.name} is sent, whose cluster is ready since {since:.2f}")

    def _has_other_uid(self, document: Document) -> bool:
        """Whether another client has changed the UID in an object: a publisher that has not seen the former one takes
        it for that of a cluster that was replaced."""
        written = self.api.written[document["metadata"]["uid"]]
        return bool(document["metadata"]["annotations"].get(CLUSTER_UID) != written[CLUSTER_UID])

    def _judge_guard(self, request: DeleteObject) -> None:
        """Objects of clusters that exist, and that all daemons lack, are deleted if they are few of all."""
        self._last_lack.deleted.add(request.name)
        lacked, published = self._lacked_objects()
        if not is_mass(lacked, published):
            self._last_lack.permitted_at = self.timeline.now
        elif self.timeline.now - self._last_lack.permitted_at > OBSERVED_S:
            self.breach(f"the deletion of {request.name} is sent, while all daemons lack {lacked} of {published}")

    def _deleted(self, document: Document) -> None:
        """An object that the owner of an engaged cluster has written since it engaged it is not deleted, whatever
        another replica has decided or sent before, also if the project is not ready."""
        self.outcome.deletions += 1
        self.deleted_at[document["metadata"]["name"]] = self.timeline.now
        written = self.api.written[document["metadata"]["uid"]]
        name = written[CLUSTER]
        project = self.projects.get(name)
        for daemon in self.daemons:
            cluster = daemon.engaged.get(name)
            is_present = cluster is not None and project is not None and project.uid == cluster.uid
            is_written = cluster is not None and cluster.incarnation == written.get(INCARNATION)
            if cluster is not None and is_present and is_written and not self._has_other_uid(document):
                self.breach(f"{name} is deleted, which its owner has written for incarnation {cluster.incarnation}")

    def _written(self, before: Document, after: Document) -> None:
        """The address of a cluster never goes back to a former one."""
        was, now = (_endpoint(document) for document in (before, after))
        is_same = before["metadata"]["annotations"].get(CLUSTER) == after["metadata"]["annotations"].get(CLUSTER)
        if is_same and was is not None and now is not None and now < was:
            self.breach(f"{after['metadata']['name']} has its former address {now} again, after {was}")

    def judge_report(self, message: str) -> None:
        if message.startswith("deleted "):
            found = self.api.objects.get(message.rsplit(" ", 1)[1])
            if found is not None and "deletionTimestamp" in found["metadata"]:
                self.breach(f"{message}, but it waits for its finalizers")

    def lacking(self) -> list[str]:
        """Return how the objects differ from the ready projects."""
        own = self.api.own()
        wanted: dict[str, str] = {}
        for cluster in (cluster for cluster, found in self.projects.items() if found.is_ready):
            name = self.object_name(cluster)
            annotations = own.get(name, {"metadata": {}})["metadata"].get("annotations", {})
            if name not in wanted or annotations.get(CLUSTER) == cluster:  # one of two clusters has the object
                wanted[name] = cluster
        texts = [f"{name} is not deleted" for name in own.keys() - wanted.keys()]
        for name, cluster in wanted.items():
            project = self.projects[cluster]
            annotations = own.get(name, {"metadata": {}})["metadata"].get("annotations", {})
            engaged = next((one.engaged[cluster] for one in self.daemons if cluster in one.engaged), None)
            if annotations.get(CLUSTER_UID) != project.uid or FIELDS not in annotations:
                texts.append(f"{name} has no object of {project.uid}")
            elif engaged is None or incarnation(own[name]) != (engaged.incarnation if self.group else ""):
                texts.append(
                    f"{name} is of incarnation {incarnation(own[name])}, not {engaged and engaged.incarnation}"
                )
            elif _endpoint(own[name]) != self._endpoints.get(cluster, 0):
                texts.append(f"{name} has a former address")
        return texts


def _endpoint(document: Document) -> int | None:
    """Return the number of the address in an object."""
    encoded = (document.get("data") or {}).get("value", "")
    found = re.search(
        r"https://[a-z.]*project-\d+-(\d+)\.test", f"{document.get('status')}{base64.b64decode(encoded).decode()}"
    )
    return None if found is None else int(found[1])


def _error() -> TargetUnavailable:
    return TargetUnavailable("500: the webhook fails")


def simulate(seed: int, group: str = GROUP, *, prepare: Callable[[Simulation], None] = lambda _: None) -> Outcome:
    from tests.simulation.publishing.faults import schedule  # noqa: PLC0415 - it schedules on this module's simulation

    world = Simulation(seed, group)
    prepare(world)
    last = schedule(world)
    world.timeline.run(last)
    for replica in world.replicas:
        replica.removals.accepts = True  # what is held waits for an administrator
    while world.timeline.now < last + SETTLED_WITHIN_S and not world.outcome.breaches:
        world.timeline.run(world.timeline.now + 5.0)
        if not world.lacking():
            world.outcome.settled_s = world.timeline.now - last
            break
    if not world.outcome.breaches:
        for text in world.lacking():
            world.breach(text)
    if not world.outcome.breaches:
        world.timeline.run(world.timeline.now + 60.0)  # and they stay
        for text in world.lacking():
            world.breach(f"later: {text}")
    world.outcome.virtual_s = world.timeline.now
    return world.outcome
