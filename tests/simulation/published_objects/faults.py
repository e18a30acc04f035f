"""The changes and faults of a simulation, at random times."""

from milo_objects.kinds import Kind
from milo_objects.publication_records import GONE_TTL_S
from milo_objects.scope import Scope
from tests.simulation.published_objects.participants import KINDS
from tests.simulation.published_objects.simulation_run import FAULTS_UNTIL_S, NAMES, PROJECTS, Known, Simulation

CHANGES = 120


class Faults:
    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._random = world.random

    # --- projects ---

    def delete(self) -> None:
        self._world.change(self._name(), None)

    def replace(self) -> None:
        name = self._name()
        if self._random.random() < 0.5:
            self._world.change(name, None)
        self._world.change(name, Known(self._world.number(), is_ready=True))

    def flap(self) -> None:
        name = self._name()
        project = self._world.projects.get(name)
        if project is None:
            self._world.change(name, Known(self._world.number(), is_ready=True))
        else:
            self._world.change(name, Known(project.uid, is_ready=not project.is_ready))
            if project.is_ready:
                self._later(0.01, 40, lambda: self._ready(name, project.uid))

    def move(self) -> None:
        self._world.move(self._name())

    def lose_after_move(self) -> None:
        """A cluster moves while it is written, and is deleted while its next owner does not run."""
        name = self._name()
        self.lose_messages()
        self._world.put(name, self._random.choice(KINDS).resource, self._random.choice(NAMES))
        self._later(0, 1, lambda: self._world.move(name))

        def lose() -> None:
            self._world.restart_publisher(self._world.owners[name], 60)
            self._world.change(name, None)
            self._world.move(name)

        self._later(2, 10, lose)

    def move_to_dead(self) -> None:
        name = self._name()
        self._world.restart_publisher(1 - self._world.owners[name], self._random.uniform(60, 100))
        self._later(0, 5, lambda: self._world.move(name))

    def _ready(self, name: str, uid: str) -> None:
        found = self._world.projects.get(name)
        if found is not None and found.uid == uid and not found.is_ready:
            self._world.change(name, Known(uid, is_ready=True))

    # --- publishers and their watches ---

    def restart_publisher(self) -> None:
        self._world.restart_publisher(self._random.randrange(2), self._random.uniform(0.1, 60))

    def restart_both(self) -> None:
        after_s = self._random.uniform(0.1, 60)
        for index in range(2):
            self._world.restart_publisher(index, after_s)
        self._later(0, 10, self.delete)

    def cut_publisher(self) -> None:
        publisher = self._random.choice(self._world.publishers)
        publisher.is_cut = True
        publisher.disconnect()

        def back() -> None:
            publisher.is_cut = False
            if not self._world.is_down:
                publisher.connect()

        self._later(0.1, 60, back)

    def lose_watch(self) -> None:
        for publisher in self._world.publishers:
            for name, cluster in [*publisher.engaged.items()]:
                if self._random.random() < 0.5:
                    kind = self._random.choice(KINDS)
                    publisher.lose_watch(Scope(name, cluster.incarnation, kind.resource), self._random.uniform(1, 60))

    def exceed_budget(self) -> None:
        for publisher in self._world.publishers:
            for name, cluster in [*publisher.engaged.items()]:
                if self._random.random() < 0.5:
                    kind = self._random.choice(KINDS)
                    publisher.exceed(Scope(name, cluster.incarnation, kind.resource), self._random.uniform(1, 60))

    def lose_source(self) -> None:
        """The daemons of a group, or the one of both publishers, lose contact with their source."""
        indexes = [self._random.randrange(2)] if self._world.is_group else range(2)
        until = self._world.timeline.now + self._random.uniform(1, 60)
        for index in indexes:
            self._world.stale_until[index] = max(until, self._world.stale_until[index])

    def withdraw_kind(self) -> None:
        """Roll out a declaration that lacks a kind, and later the former one."""
        self._roll_out(KINDS[:1])
        self._later(30, 60, lambda: self._roll_out(KINDS))

    def _roll_out(self, kinds: tuple[Kind, ...]) -> None:
        self._world.kinds = kinds
        for index in range(2):
            self._later(0, 20, lambda index=index: self._world.restart_publisher(index, self._random.uniform(0.1, 5)))

    def slow_watches(self) -> None:
        self._world.is_slow = True
        self._later(1, 60, lambda: setattr(self._world, "is_slow", False))

    # --- readers ---

    def cut_reader(self) -> None:
        reader = self._random.choice(self._world.readers)
        reader.disconnect()
        is_long = self._world.timeline.now < FAULTS_UNTIL_S / 2 and self._random.random() < 0.7
        away_s = self._world.quiet_s if is_long else 0.0
        self._later(away_s + 0.1, away_s + 100, reader.connect)

    # --- the server ---

    def kill_server(self) -> None:
        self._world.stop_server(self._random.uniform(0.1, 40))

    def lose_power(self) -> None:
        self._world.stop_server(self._random.uniform(0.1, 40), lost=self._random.randint(1, 7))

    def recreate_stream(self) -> None:
        self._world.stop_server(self._random.uniform(0.1, 10), recreated=True)

    def lose_messages(self) -> None:
        self._world.loss = self._random.uniform(0.05, 0.5)
        self._later(1, 40, lambda: setattr(self._world, "loss", 0.0))

    def fill(self) -> None:
        self._world.stream.most = self._world.stream.size + self._random.randrange(2000)
        self._later(1, 60, lambda: setattr(self._world.stream, "most", None))

    def _name(self) -> str:
        return self._random.choice(PROJECTS)

    def _later(self, least: float, most: float, happens) -> None:  # type: ignore[no-untyped-def]
        self._world.timeline.after(self._random.uniform(least, most), happens)


KINDS_OF_FAULTS = [name for name in vars(Faults) if not name.startswith("_")]


def schedule(world: Simulation) -> float:
    """Plan random changes and faults; return the time when all of them have ended. Some have a pause in which what the
    stream keeps for a while expires."""
    faults, random = Faults(world), world.random
    quiet_s = world.quiet_s = random.uniform(0.9, 1.1) * GONE_TTL_S if random.random() < 0.1 else 0.0

    def moment() -> float:
        at = random.uniform(2, FAULTS_UNTIL_S)
        return at if at < FAULTS_UNTIL_S / 2 else at + quiet_s

    def change() -> None:
        name, kind, object_name = random.choice(PROJECTS), random.choice(KINDS), random.choice(NAMES)
        (world.delete if random.random() < 0.3 else world.put)(name, kind.resource, object_name)

    for _ in range(random.randint(10, CHANGES)):
        world.timeline.at(moment(), change)
    for kind in random.choices(KINDS_OF_FAULTS, k=random.randint(3, 14)):
        at = moment()
        world.outcome.faults.append(f"{at:.0f} {kind}")
        world.timeline.at(at, getattr(faults, kind))
    return quiet_s + FAULTS_UNTIL_S + 110.0
