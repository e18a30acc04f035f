"""Controllers on virtual time: informers, work queue and Fleet under faults of API servers, seed by seed.

After the last fault, the newest version of every object has been reconciled, successfully or with a permanent failure.
No object was reconciled twice at the same time.
"""

import asyncio
import random
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from milo_controllers import (
    Controllers,
    Kind,
    Permanent,
    QueuePolicy,
    ReconcileTarget,
    Request,
    Result,
    Watched,
    engaged_clusters,
    watches,
)
from milo_discovery import DiscoveryClient, Fleet
from tests.simulation.properties.api_server import ApiObject, Server
from tests.simulation.seeded.api import Api
from tests.simulation.seeded.loop import VirtualLoop, clocks_of
from tests.simulation.seeded.simulated_fleet import SimulatedCluster, SimulatedClusterApi, SimulatedDiscovery
from tests.simulation.seeded.world import NAMES, World

KIND = Kind("v1/projects", selector="in=yes")
CLUSTERS = ("one", "two", "three")
SEEDS = range(100)


@dataclass
class Reconcile:
    """One call of the reconciler, as recorded for the validator."""

    cluster: str
    engagement: int
    name: str
    began: float
    version: str | None
    """The version of the object in the cache; None if it was missing."""
    ended: float | None = None
    succeeded: bool = False


@dataclass
class Simulation:
    seed: int
    history: list[Reconcile] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.fails = True

    def run(self) -> list[str]:
        """Run the simulation; return the violations."""
        loop = VirtualLoop(Random(self.seed))
        with clocks_of(loop):
            try:
                return loop.run_until_complete(self._simulated())
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

    async def _simulated(self) -> list[str]:
        servers = SimulatedClusterApi.servers = {name: self._server() for name in CLUSTERS}
        discovery = SimulatedDiscovery()
        running = Controllers(Fleet(cast(DiscoveryClient, discovery)), registry=CollectorRegistry(), resync=None)
        policy = QueuePolicy(max_delay_s=20.0)
        running.reconcile(
            KIND, workers=self.random.randint(1, 4), queue=policy, per_cluster=self.random.randint(1, 3),
            watches=[watches(KIND, map=neighbours)],
        )(self._reconcile)  # fmt: skip
        async with running:
            for name in CLUSTERS:
                discovery.engage(name)
            discovery.synced()
            for _ in range(60):
                await asyncio.sleep(self.random.choice((0.0, 0.1, 1.0, 20.0)))
                self._strike(servers[self.random.choice(CLUSTERS)], discovery)
            self.fails = False
            for name, server in servers.items():
                server.heal()
                if name not in discovery.engaged:
                    discovery.engage(name)
            await asyncio.sleep(600.0)
            assert running.health().synced
            return [*self.overlaps(), *self.outdated(servers, discovery.engaged)]

    def _server(self) -> SimulatedCluster:
        server = Server()
        world = World(server, self.random)
        api = Api(server, self.random, lambda *_: None, lambda: True)
        for _ in range(self.random.randint(0, 8)):
            world.change()
        api.fault_rate = 0.2
        return SimulatedCluster(api, world)

    def _strike(self, server: SimulatedCluster, discovery: SimulatedDiscovery) -> None:
        now = asyncio.get_running_loop().time()
        match self.random.choice(("change", "change", "change", "fault", "down", "compact", "engagement")):
            case "change":
                server.world.change()
                server.api.ring()
            case "fault":
                server.strike(self.random)
            case "down":
                server.api.down_until = now + self.random.choice((1.0, 60.0))
                server.api.cut()
            case "compact":
                server.world.server.compact()
            case _:
                name = self.random.choice(CLUSTERS)
                if name in discovery.engaged:
                    discovery.disengage(name)
                else:
                    discovery.engage(name)

    async def _reconcile(self, request: Request) -> Result | None:
        loop = asyncio.get_running_loop()
        found = await request.get()
        version = None if found is None else found["metadata"]["resourceVersion"]
        engagement = int(request.cluster.uid)
        made = Reconcile(request.cluster.name, engagement, request.name, loop.time(), version)
        self.history.append(made)
        try:
            await asyncio.sleep(self.random.choice((0.0, 0.0, 0.5, 30.0 if self.fails else 0.0)))
            if self.fails and self.random.random() < 0.3:
                made.succeeded = self.random.random() < 0.2  # an object that failed with Permanent is not retried
                raise Permanent("no") if made.succeeded else OSError("the reconciler failed")
            made.succeeded = True
        finally:
            made.ended = loop.time()
        return None

    def overlaps(self) -> list[str]:
        open_until: dict[tuple[str, str], float] = {}
        found = []
        for reconcile in self.history:
            key = reconcile.cluster, reconcile.name
            if open_until.get(key, 0.0) > reconcile.began:
                found.append(f"{key} was reconciled twice at the same time")
            open_until[key] = float("inf") if reconcile.ended is None else reconcile.ended
        return found

    def outdated(self, servers: dict[str, SimulatedCluster], engaged: dict[str, int]) -> list[str]:
        found = []
        for cluster, server in servers.items():
            for name in NAMES:
                obj = server.world.server.objects.get(name)
                newest = str(obj.version) if obj is not None and obj.inside else None
                of_object = [
                    reconcile for reconcile in self.history if (reconcile.cluster, reconcile.name) == (cluster, name)
                ]
                here = [reconcile for reconcile in of_object if reconcile.engagement == engaged[cluster]]
                last = here[-1] if here else None
                if last is None and newest is None:
                    continue  # the object did not exist in this engagement
                if last is None or (last.version, last.succeeded) != (newest, True):
                    found.append(f"{cluster}/{name}: the newest version is {newest}, and the last reconcile is {last}")
        return found


def neighbours(change: Watched[Any]) -> list[ReconcileTarget]:
    """Map a change to the object of the same name in the next cluster, if it exists."""
    following = CLUSTERS[(CLUSTERS.index(change.cluster.name) + 1) % len(CLUSTERS)]
    view = change.clusters.cluster(following)
    there = view is not None and view.get(KIND, change.name) is not None
    return [ReconcileTarget(change.name, "", following)] if there else []


@pytest.mark.parametrize("seed", SEEDS)
def test_newest_version_of_every_object_is_reconciled_after_the_last_fault(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engaged_clusters, "ClusterApi", SimulatedClusterApi)
    monkeypatch.setattr(random, "random", Random(seed).random)  # jitter
    assert Simulation(seed).run() == []


def test_validator_reports_overlapping_reconciles() -> None:
    simulation = Simulation(0)
    simulation.history = [
        Reconcile("one", 1, "a", 0.0, "1", ended=2.0, succeeded=True),
        Reconcile("one", 1, "b", 1.0, "1", ended=3.0, succeeded=True),
        Reconcile("one", 1, "a", 1.0, "1", ended=None),
    ]
    assert len(simulation.overlaps()) == 1
    simulation.history.pop()
    assert simulation.overlaps() == []


async def test_validator_reports_lost_reconciles() -> None:
    simulation = Simulation(0)
    server = Server()
    server.put("a", ApiObject("uid", 0, ready=True, inside=True, readable=True, content=0))
    servers = {"one": SimulatedCluster(Api(server, Random(0), print, bool), World(server, Random(0)))}
    assert len(simulation.outdated(servers, {"one": 1})) == 1
    cases = (("1", 1, True, 1), ("2", 1, False, 1), ("2", 9, True, 1), ("2", 1, True, 0))
    for version, engagement, succeeded, lost in cases:
        simulation.history = [Reconcile("one", engagement, "a", 0.0, version, 1.0, succeeded)]
        assert len(simulation.outdated(servers, {"one": 1})) == lost
