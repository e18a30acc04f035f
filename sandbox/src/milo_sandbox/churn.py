"""Churn: projects are created, become ready, change, are suspended, deleted and re-created.

Each project that is changing has a scenario: a generator that makes a change in most steps. Which scenario starts or
continues is drawn from a seeded random generator, so that a run is reproducible.
"""

import asyncio
from collections.abc import Callable, Generator
from random import Random

from milo_sandbox.history import CompactedError
from milo_sandbox.milo import Milo
from milo_sandbox.names import Names
from milo_sandbox.refusals import RefusalError
from milo_sandbox.resources import PROJECTS
from milo_sandbox.store import Store

Scenario = Generator[None, None, None]

_SUSPENSIONS = ("Billing", "Billing", "Compliance", "Administrative", "Abuse")
_TROUBLES = ("etcd has lost its quorum", "the API server restarts repeatedly", "its certificate has expired")
_LEFT_OVER = ("networks.networking.example.com", "workloads.compute.example.com", "zones.dns.example.com")


class Churn:
    """A source of random changes, about one per `step`.

    The number of projects stays near the initial number, or near 5 if that is higher.
    """

    def __init__(self, store: Store, names: Names, random: Random, purge: Callable[[str], None]) -> None:
        """`purge` deletes the namespaces and the namespaced objects in a project."""
        self._store = store
        self._milo = Milo(store)
        self._names = names
        self._random = random
        self._purge = purge
        self._size = max(len(self._milo.projects), 5)
        self._scenarios: dict[str, Scenario] = {}
        self._cursor = store.version

    def step(self) -> None:
        """Handle the writes of clients, and advance a running scenario or start a new one."""
        self._handle_client_writes()
        under_way = len(self._scenarios)
        if under_way and self._random.random() < under_way / (under_way + 3):
            self._advance(self._random.choice(list(self._scenarios)))
        else:
            self._begin()

    def _handle_client_writes(self) -> None:
        """Provision projects that clients created since the last step, and clean up those that they deleted."""
        try:
            events = self._store[PROJECTS].history.following(self._cursor)
        except CompactedError:
            events = ()
        self._cursor = self._store.version
        for event in events:
            name = event.record.name
            if name in self._scenarios:
                continue
            if event.deleted:
                self._milo.sweep(name)
            elif event.before is None:
                self._scenarios[name] = self._adoption(name)
            elif b'"deletionTimestamp"' in event.record.body:
                self._scenarios[name] = self._clean_up(name)

    def _begin(self) -> None:
        count = len(self._milo.projects)
        if not count or self._random.random() < 0.2 + (self._size - count) / self._size:
            name = self._names.project()
            self._start(name, self._creation(name))
            return
        name = self._milo.projects.pick(self._random)
        if name not in self._scenarios:
            kinds = (self._change, self._trouble, self._suspension, self._deletion)
            kind = self._random.choices(kinds, (4, 2, 2, 3))[0]
            self._start(name, kind(name))

    def _start(self, name: str, scenario: Scenario) -> None:
        self._scenarios[name] = scenario
        self._advance(name)

    def _advance(self, name: str) -> None:
        try:
            next(self._scenarios[name])
        except StopIteration:
            del self._scenarios[name]
        except RefusalError:
            # A client may have deleted the project in the middle of its scenario.
            del self._scenarios[name]
            self._milo.sweep(name)

    # The scenarios

    def _creation(self, name: str) -> Scenario:
        self._milo.found(name, self._names.organization(), self._names.labels())
        yield from self._some_time()
        self._milo.provision(name)

    def _adoption(self, name: str) -> Scenario:
        self._milo.begin(name)
        yield
        self._milo.provision(name)

    def _change(self, name: str) -> Scenario:
        key, value = self._names.label()
        self._milo.relabel(name, {key: value})
        yield

    def _trouble(self, name: str) -> Scenario:
        self._milo.fail(name, self._random.choice(_TROUBLES))
        yield from self._some_time()
        self._milo.provision(name)

    def _suspension(self, name: str) -> Scenario:
        self._milo.suspend(name, self._random.choice(_SUSPENSIONS))
        yield from self._some_time()
        self._milo.reinstate(name)

    def _deletion(self, name: str) -> Scenario:
        project = self._milo.projects.read(name)
        self._milo.projects.delete(name)
        yield
        if name in self._milo.projects:
            yield from self._clean_up(name)
        self._milo.sweep(name)
        if self._random.random() < 0.4:
            yield from self._some_time()
            self._milo.found(name, project["spec"]["ownerRef"]["name"], self._names.labels())
            yield
            self._milo.provision(name)

    def _clean_up(self, name: str) -> Scenario:
        self._milo.report_cleanup(name, "CleanupStarted", "Listing the remaining objects of the project")
        self._purge(name)
        yield
        left = self._random.sample(_LEFT_OVER, self._random.randint(1, len(_LEFT_OVER)))
        while left:
            message = f"Waiting for {', '.join(left)} to be deleted"
            self._milo.report_cleanup(name, "CleanupAwaitingCompletion", message)
            yield
            left.pop()
        self._purge(name)
        self._milo.report_cleanup(name, "CleanupComplete", "No objects remain in the project")
        yield
        self._milo.finish(name)

    def _some_time(self) -> Scenario:
        for _ in range(self._random.randint(1, 3)):
            yield


async def run(churn: Churn, per_second: float) -> None:
    """Make steps at a constant rate until canceled, and catch up after delays of up to a second."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + 1 / per_second, loop.time() - 1.0)
        await asyncio.sleep(max(due - loop.time(), 0))
        churn.step()
