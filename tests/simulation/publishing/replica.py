"""A replica of a shard group: a daemon that learns of changes late, and the publisher that subscribes to it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from milo_discovery import Cluster, DisengageReason, EventType, SourceState
from milo_discovery.errors import Unavailable
from milo_discovery.events import Event
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.model import SourceStatus
from milo_discovery.removals import Removals
from milo_publishing.objects import Identity
from milo_publishing.publication import Lane, Publication, Task
from milo_publishing.records import Ask, DeleteObject, Engaged, Received, Request
from milo_publishing.rendering import ClusterProfiles, FluxKubeconfigs, Renderer

if TYPE_CHECKING:
    from tests.simulation.publishing.simulation_run import Simulation

GROUP = "group"
RESYNC_S = 30.0
LATE_S = 12.0
"""How late an answer of a daemon is at most."""
SOURCES = ("", "eu")
RENDERERS: tuple[Renderer, ...] = (ClusterProfiles(cluster_manager="m", access_provider="p"), FluxKubeconfigs())


class Project(Protocol):
    """A project as a daemon knows it."""

    @property
    def uid(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...


class Daemon:
    """What one daemon knows of the projects, which of them it may engage, and which it has engaged."""

    def __init__(self, world: "Simulation", name: str) -> None:
        self.name = name
        self.known: dict[str, Project] = {}
        self.assigned: set[str] = set()
        self.engaged: dict[str, Cluster] = {}
        self.replica: Replica | None = None
        self.stale: set[str] = set()
        """The sources with which the daemon has no contact."""
        self.is_dead = False
        self._world = world
        self._unlearned: dict[str, Project | None] = {}
        self._graces: list[Cluster] = []
        """Clusters whose grace period would have ended while the daemon had no contact."""

    def learn(self, name: str, project: Project | None) -> None:
        if source_of(name) in self.stale or name in self._world.lacked:
            self._unlearned[name] = project
            return
        before = self.known.pop(name, None)
        if project is not None:
            self.known[name] = project
        engaged = self.engaged.get(name)
        if engaged is None:
            self.engage(name)
        elif project is None or project.uid != engaged.uid:
            is_replaced = before is not None and project is not None
            self.disengage(name, DisengageReason.REPLACED if is_replaced else DisengageReason.DELETED)
            self.engage(name)
        elif not project.is_ready and self._world.grace_s:
            self._world.timeline.after(self._world.grace_s, partial(self._end_grace, engaged))
        elif not project.is_ready:
            self._end_grace(engaged)

    def _end_grace(self, cluster: Cluster) -> None:
        if source_of(cluster.name) in self.stale:  # in which no grace period ends
            self._graces.append(cluster)
            return
        project = self.known.get(cluster.name)
        engaged = self.engaged.get(cluster.name, cluster)
        if engaged.incarnation == cluster.incarnation and project is not None and not project.is_ready:
            self.disengage(cluster.name, DisengageReason.NOT_READY)

    def lose_contact(self, source: str) -> None:
        """Learn nothing more of a source, and tell subscribers."""
        self.stale.add(source)

    def regain_contact(self, source: str) -> None:
        """Learn the present state, as by a list."""
        self.stale.discard(source)
        self.relist()

    def lack(self, *, is_restarted: bool) -> None:
        """Lack projects that exist, as after a restart with a short list, or after a right was withdrawn."""
        for name in self._world.lacked & self.known.keys():
            self._unlearned.setdefault(name, self.known.pop(name))
        if is_restarted:
            self.engaged.clear()
            self.restart()
        for name in sorted(self._world.lacked):
            self.disengage(name, DisengageReason.REVOKED)

    def relist(self) -> None:
        """Learn what is not lacked anymore."""
        unlearned, self._unlearned = self._unlearned, {}
        for name, project in unlearned.items():
            self.learn(name, project)
        graces, self._graces = self._graces, []
        for cluster in graces:
            self._world.timeline.after(self._world.grace_s, partial(self._end_grace, cluster))

    def engage(self, name: str) -> None:
        project = self.known.get(name)
        if not self.is_dead and name in self.assigned and name not in self.engaged and project and project.is_ready:
            cluster = Cluster(
                name=name, uid=project.uid, incarnation=self._world.number(), endpoint=self._world.endpoint(name)
            )
            self.engaged[name] = cluster
            self._tell(Event(type=EventType.ENGAGED, cluster=cluster))

    def disengage(self, name: str, reason: DisengageReason) -> None:
        cluster = self.engaged.pop(name, None)
        if cluster is not None:
            self._tell(Event(type=EventType.DISENGAGED, cluster=cluster, reason=reason))

    def updated(self, cluster: Cluster, endpoint: str) -> None:
        self.engaged[cluster.name] = updated = replace(cluster, endpoint=endpoint)
        self._tell(Event(type=EventType.UPDATED, cluster=updated))

    def is_missing(self, ask: Ask) -> bool:
        project, engaged = self.known.get(ask.cluster), self.engaged.get(ask.cluster)
        if engaged is not None:
            return engaged.uid != ask.uid
        return project is None or not project.is_ready or self.is_dead

    def restart(self) -> None:
        """Start again: what is engaged has other incarnations."""
        self.is_dead = False
        for name in sorted(self.assigned):
            self.engage(name)

    def _tell(self, event: Event) -> None:
        if self.replica is not None:
            self.replica.receive(event)


class Replica:
    """A publisher, connected to its daemon as `watch` says. Performs the requests of its publication."""

    def __init__(self, world: "Simulation", daemon: Daemon, renderer: Renderer) -> None:
        self.daemon = daemon
        # The first publishers have run for long; those that replace them have not.
        self.removals = Removals(began_at=world.timeline.now or -math.inf)
        identity = Identity(publication=renderer.publication, publisher="milo")
        self.publication = Publication(
            renderer,
            identity,
            self.removals,
            resync_s=RESYNC_S,
            report=world.judge_report,
            draw=world.random.random,
        )
        self.connected = False
        self.is_killed = False
        self._world = world
        self._view: dict[str, Cluster] = {}
        self._arrives_at = 0.0
        self._streams = 0
        self._wakes_at = math.inf
        daemon.replica = self

    @property
    def source(self) -> SourceStatus:
        return self._status(is_stale=bool(self.daemon.stale))

    @property
    def sources(self) -> dict[str, SourceStatus]:
        return {source: self._status(is_stale=source in self.daemon.stale) for source in SOURCES}

    @staticmethod
    def _status(*, is_stale: bool) -> SourceStatus:
        return SourceStatus(state=SourceState.STALE if is_stale else SourceState.STREAMING)

    # --- the stream ---

    def connect(self) -> None:
        """Open a stream that begins with a snapshot."""
        if self.connected or self.is_killed or self.daemon.is_dead:
            return
        self.connected, now = True, self._world.timeline.now
        self._streams += 1
        self.publication.snapshot_begins()
        snapshot = dict(self.daemon.engaged)
        for name, cluster in [*self._view.items()]:
            if name not in snapshot:
                self._take(Event(type=EventType.DISENGAGED, cluster=cluster))
            elif snapshot[name].uid != cluster.uid:
                self._take(Event(type=EventType.DISENGAGED, cluster=cluster, reason=DisengageReason.REPLACED))
        for cluster in snapshot.values():
            self._take(Event(type=EventType.ENGAGED, cluster=cluster))
        self.publication.snapshot_ends(now)
        self.step()

    def disconnect(self) -> None:
        self.connected = False

    def lose_ownership(self) -> None:
        for cluster in [*self._view.values()]:
            self._take(Event(type=EventType.DISENGAGED, cluster=cluster, reason=DisengageReason.OWNERSHIP_LOST))
        self.step()

    def receive(self, event: Event) -> None:
        """Receive an event of the stream, after a delay and in order."""
        if self.connected:
            self._arrives_at = max(self._arrives_at, self._world.timeline.now) + self._world.random.uniform(0.001, 0.2)
            self._world.timeline.at(self._arrives_at, partial(self._arrive, event, self._streams))

    def _arrive(self, event: Event, stream: int) -> None:
        # What a broken stream has not delivered is part of the next snapshot.
        if self.connected and not self.is_killed and stream == self._streams:
            self._take(event)
            self.step()

    def _take(self, event: Event) -> None:
        now = self._world.timeline.now
        if event.type is EventType.DISENGAGED:
            known = self._view.get(event.cluster.name)
            if known is not None and known.uid == event.cluster.uid:
                del self._view[event.cluster.name]
                self.publication.withdraw(event, now)
        else:
            self._view[event.cluster.name] = event.cluster
            embeds = self.publication.renderer.embeds_credentials
            received = Received(access(event.cluster)) if embeds else None
            self.publication.engage(event.cluster, received, now)

    # --- requests ---

    def step(self) -> None:
        """Take what is due, and plan the next step."""
        timeline, random = self._world.timeline, self._world.random
        if self.is_killed:
            return
        for task in self.publication.due(timeline.now, self):  # type: ignore[arg-type]  # of the watch it has what is used
            timeline.after(random.uniform(0, 5) if random.random() < 0.05 else 0.0, partial(self._serve, task))
        if (at := self.publication.next_at) < self._wakes_at or self._wakes_at <= timeline.now:
            self._wakes_at = at
            if at < math.inf:
                timeline.at(at, self.step)

    def _serve(self, task: Task) -> None:
        if self.is_killed:
            return
        try:
            request = self.publication.request(task, self._world.timeline.now, self)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001  (as the publisher does)
            self._world.breach(f"{task.name}: {error!r}")
            return
        match request:
            case None:
                pass
            case Lane.IDENTIFY:
                self._of_daemon(task, lambda: self.publication.identified(self._world.group, self._world.timeline.now))
            case Lane.LIST:
                self._world.send_list(self, task)
            case Ask():
                # The answer is about the time of the request, and may arrive late.
                self._of_daemon(task, self._answer(task, request), late=self._world.late_answers)
            case Engaged(cluster):
                # The answer is about the endpoint at the time of the request, and may arrive late.
                received = Received(access(replace(cluster, endpoint=self._world.endpoint(cluster.name))))
                self._of_daemon(
                    task, lambda: self.publication.received(task, received, self._world.timeline.now), late=0.1
                )
            case _:
                if isinstance(request, DeleteObject):
                    self.publication.require_permit(task, request, self._world.timeline.now, self)  # type: ignore[arg-type]
                    record = self.publication.records[task.name]
                    observed = record.observed
                    if not self.connected or source_of(record.cluster) in self.daemon.stale:
                        self._world.breach(f"the deletion of {request.name} is sent, whose source is not followed")
                    self._world.judge_decision(request, observed.cluster_uid if observed is not None else "")
                self._world.send(self, task, request)
        self.step()

    def _answer(self, task: Task, ask: Ask) -> Callable[[], None]:
        is_missing = self.daemon.is_missing(ask)
        is_elsewhere = ask.cluster not in self.daemon.assigned and self._world.only_owners_judge
        return lambda: self.publication.asked(
            task, is_missing=is_missing, is_elsewhere=is_elsewhere, now=self._world.timeline.now
        )

    def _of_daemon(self, task: Task, answer: Callable[[], None], *, late: float = 0.0) -> None:
        random = self._world.random
        delay = random.uniform(1, LATE_S) if random.random() < late else random.uniform(0.001, 0.05)

        def arrives() -> None:
            if self.is_killed:
                return
            if self.daemon.is_dead or not self.connected or random.random() < self._world.daemon_errors:
                self.publication.failed(task, Unavailable("no answer", code="UNAVAILABLE"), self._world.timeline.now)
            else:
                answer()
            self.step()

        self._world.timeline.after(delay, arrives)

    def finish(self, task: Task, request: Request, outcome: object) -> None:
        """Receive the outcome of a request to the API server."""
        if self.is_killed:
            return
        now = self._world.timeline.now
        if isinstance(outcome, Exception):
            self.publication.failed(task, outcome, now)
        else:
            self.publication.read(task, request, outcome, now)  # type: ignore[arg-type]
        self.step()


def source_of(name: str) -> str:
    return name.partition("#")[0] if "#" in name else ""


def access(cluster: Cluster) -> KubeconfigAccess:
    return KubeconfigAccess(server=cluster.endpoint, token="t")
