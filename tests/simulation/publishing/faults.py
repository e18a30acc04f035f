"""The changes and faults of a simulation, at random times."""

from random import Random

from milo_publishing.objects import CLUSTER, CLUSTER_UID, FIELDS, INCARNATION, Identity
from tests.simulation.publishing.replica import SOURCES, Daemon, Replica
from tests.simulation.publishing.simulation_run import FAULTS_UNTIL_S, Known, Simulation

CHANGES = (
    "flap",
    "flap",
    "recreate",
    "delete",
    "move",
    "move",
    "flap_and_move",
    "flap_and_move_while_unreachable",
    "change_endpoint",
)


class Faults:
    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._random = world.random
        self._identities = Random(f"identities {world.outcome.seed}")

    # --- changes of projects ---

    def delete(self) -> None:
        self._world.change(self._name(), None)

    def recreate(self) -> None:
        name = self._name()
        self._world.change(name, None)
        self._later(0.01, 30, lambda: self._world.change(name, Known(self._world.number(), is_ready=True)))

    def flap(self) -> None:
        """Make a project not ready for some time, or ready if it is not."""
        name = self._name()
        project = self._world.projects.get(name) or Known(self._world.number(), is_ready=False)
        self._world.change(name, Known(project.uid, not project.is_ready))
        if project.is_ready:
            self._later(0.01, 30, lambda: self._ready(name, project.uid))

    def flap_and_move(self) -> None:
        """Make a project not ready, and ready again when another replica owns it."""
        name = self._name()
        project = self._world.projects.get(name)
        if project is not None and project.is_ready:
            self._world.change(name, Known(project.uid, is_ready=False))
            self._later(0.01, 10, lambda: self._world.move(name))
            self._later(0.01, 20, lambda: self._ready(name, project.uid))

    def flap_and_move_while_unreachable(self) -> None:
        """The same while the API server cannot be reached, so that the deletion is late."""
        self.flap_and_move()
        self.stop_api()

    def move(self) -> None:
        self._world.move(self._name())

    def change_endpoint(self) -> None:
        self._world.change_endpoint(self._name())

    def _ready(self, name: str, uid: str) -> None:
        found = self._world.projects.get(name)
        if found is not None and found.uid == uid:
            self._world.change(name, Known(uid, is_ready=True))

    # --- replicas and their daemons ---

    def kill_publisher(self) -> None:
        self._world.kill_publisher(self._random.randrange(len(self._world.replicas)))

    def kill_daemon(self) -> None:
        self._world.kill_daemon(self._random.randrange(len(self._world.daemons)))

    def break_stream(self) -> None:
        replica = self._replica()
        replica.disconnect()
        self._later(0.01, 20, replica.connect)

    def make_stale(self) -> None:
        self._make_stale(self._random.choice(self._world.daemons))

    def _make_stale(self, daemon: Daemon) -> None:
        source = self._random.choice(SOURCES)
        daemon.lose_contact(source)
        self._later(1, 60, lambda: daemon.regain_contact(source))

    def fail_daemon_calls(self) -> None:
        self._world.daemon_errors = self._random.uniform(0.2, 0.9)
        self._later(1, 40, lambda: setattr(self._world, "daemon_errors", 0.0))

    def delay_daemon_answers(self) -> None:
        self._world.late_answers = self._random.uniform(0.2, 0.9)
        self._later(1, 60, lambda: setattr(self._world, "late_answers", 0.0))

    def lack_clusters(self) -> None:
        """Have all daemons lack all or many clusters for some time, with other faults meanwhile."""
        world, random = self._world, self._random
        if world.lacked or world.twins:
            return
        share = random.choice((1.0, random.random()))
        world.lack({name for name in world.names if random.random() < share}, is_restarted=random.random() < 0.6)
        ends_s = random.uniform(15, 68)
        self._later(ends_s, ends_s, world.end_lack)
        if random.random() < 0.4:
            for daemon in world.daemons:
                self._make_stale(daemon)
        also = (self.kill_publisher, self.move, self.move, self.fail_daemon_calls, self.delay_daemon_answers)
        for happens in random.choices(also, k=random.randrange(8)):
            self._later(0, ends_s, happens)

    # --- the API server ---

    def stop_api(self) -> None:
        self._world.is_down = True
        self._later(1, 60, lambda: setattr(self._world, "is_down", False))

    def fail_requests(self) -> None:
        self._world.errors = self._random.uniform(0.1, 0.9)
        self._later(1, 60, lambda: setattr(self._world, "errors", 0.0))

    def fail_one_object(self) -> None:
        self._world.failing = self._object()
        self._later(1, 60, lambda: setattr(self._world, "failing", ""))

    def delay_requests(self) -> None:
        self._world.slow = self._random.uniform(0.1, 0.9)
        self._later(1, 60, lambda: setattr(self._world, "slow", 0.0))

    def add_finalizers(self) -> None:
        for name in self._world.api.own():
            if self._random.random() < 0.5:
                self._world.api.add_finalizer(name)
        self._later(5, 60, self._world.api.remove_finalizers)

    # --- other clients of the API server ---

    def touch(self) -> None:
        if (name := self._object()) in self._world.api.objects:
            self._world.api.touch(name, {"other": self._world.number()})

    def delete_object(self) -> None:
        if (name := self._object()) in self._world.api.objects:
            self._world.api.delete(name)
            self._world.deleted_at[name] = self._world.timeline.now

    def take_name(self) -> None:
        """Create an object of a publisher's name as another program, and delete it later."""
        name, api = self._object(), self._world.api
        if name not in api.objects:
            api.put(name, {"metadata": {"name": name}, "spec": {}})
            self._later(1, 60, lambda: api.objects.pop(name, None) if name not in api.own() else None)

    def change_identity(self) -> None:
        """Change or remove a label or annotation by which publishers recognize an object. If none has written it back,
        what they report as not theirs is deleted."""
        name, api, random = self._changed_object(), self._world.api, self._identities
        found = api.own().get(name)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return
        field, key = random.choice(IDENTITY)
        other = api.own()[random.choice([*api.own()])]["metadata"].get(field, {}).get(key)
        value = random.choice((None, "other", other))
        api.change(name, field, key, value)

        def delete() -> None:
            now = api.objects.get(name)
            is_same = now is not None and now["metadata"]["uid"] == found["metadata"]["uid"]
            if now is not None and is_same and now["metadata"].get(field, {}).get(key) == value:
                api.delete(name)
                self._world.deleted_at[name] = self._world.timeline.now

        self._world.timeline.after(random.uniform(30, 70), delete)

    def _changed_object(self) -> str:
        return self._world.object_name(self._identities.choice(self._world.names))

    def _name(self) -> str:
        return self._random.choice(self._world.names)

    def _object(self) -> str:
        return self._world.object_name(self._name())

    def _replica(self) -> Replica:
        return self._random.choice(self._world.replicas)

    def _later(self, least: float, most: float, happens) -> None:  # type: ignore[no-untyped-def]
        self._world.timeline.after(self._random.uniform(least, most), happens)


KINDS = [name for name in vars(Faults) if not name.startswith("_")]
DRAWN = [name for name in KINDS if name != "change_identity"]
IDENTITY = [("labels", key) for key in Identity(publication="", publisher="").labels()] + [
    ("annotations", key) for key in (CLUSTER, CLUSTER_UID, INCARNATION, FIELDS)
]


def schedule(world: Simulation) -> float:
    """Plan random changes and faults; return the time when all of them have ended."""
    faults, random = Faults(world), world.random
    planned = random.choices(DRAWN, k=random.randint(4, 14)) + random.choices(CHANGES, k=random.randint(4, 14))
    times = [random.uniform(5, FAULTS_UNTIL_S) for _ in planned]
    identities = Random(f"changes of identities {world.outcome.seed}")
    changes = identities.choice((0, 0, 4, 12))
    times += [identities.uniform(5, FAULTS_UNTIL_S) for _ in range(changes)]
    for at, kind in zip(times, planned + ["change_identity"] * changes, strict=True):
        world.outcome.faults.append(f"{at:.0f} {kind}")
        world.timeline.at(at, getattr(faults, kind))
    return FAULTS_UNTIL_S + 70.0
