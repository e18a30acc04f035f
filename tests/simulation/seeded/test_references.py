"""Objects that need Secrets, on virtual time: faults of either watch, and restarts from the state file."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourcePolicy
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.contributions import Contribution, ObjectContribution, earliest
from milo_discoveryd.model.observation import NotReady, Observation, Ready
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import ContributionWatch, ReferencedWatch, SeveralResources
from milo_discoveryd.sources.reading import KubeObject
from milo_discoveryd.wiring.source import Discovery
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.view_status import ViewState
from tests.simulation.seeded.api import RESOURCE, Api
from tests.simulation.seeded.daemon import Disk, Ledger
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.simulation.seeded.test_sources import (
    ALWAYS_ENGAGED,
    EPOCH,
    EVERY_FAULT,
    PROJECTS,
    RECOVERY_S,
    SELECTOR,
    Upstream,
    pair_of,
)
from tests.simulation.seeded.world import NAMES

STORM_S = 600.0
SECRETS = replace(RESOURCE, plural="secrets")


class Joined:
    """A kind of source whose objects each need a Secret. The UID of the Secret represents the server in it."""

    def follows(self) -> SeveralResources:
        watches = (
            ContributionWatch(RESOURCE, KubeObject, self.contributions),
            ReferencedWatch(SECRETS, KubeObject, self.content),
        )
        return SeveralResources(watches, self.reduce, self.restored_place)

    def contributions(self, obj: KubeObject) -> Iterable[Contribution]:
        observation = PROJECTS.observe(obj)
        needs = ((1, pair_of(obj.metadata.name)),) if isinstance(observation, Ready) else ()
        yield Contribution(obj.metadata.name, observation, needs)

    def content(self, secret: KubeObject) -> str | None:
        condition = secret.condition("Ready")
        return secret.metadata.uid if condition is not None and condition.status == "True" else None

    def reduce(self, cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
        seen = earliest(cluster, [contribution for contribution in contributions if contribution.watch == 0])
        if not isinstance(seen, Ready):
            return seen
        server = next((contribution.content for contribution in contributions if contribution.watch == 1), None)
        if server is None:
            return NotReady(cluster, seen.uid, seen.version, "the Secret has no server")
        return replace(seen, target=replace(seen.target, place=(f"https://{server}",)))

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        return stored.place


class Apis:
    """The API server of both resources, each with faults of its own."""

    def __init__(self, objects: Api, secrets: Api) -> None:
        self._objects, self._secrets = objects, secrets

    async def get(self, path: str, query: Any = (), *, timeout_s: float, **_: object) -> Any:
        return await self._of(path).get(_common(path), query, timeout_s=timeout_s)

    async def get_at_once(self, path: str, *, timeout_s: float) -> Any:
        return await self.get(path, timeout_s=timeout_s)

    def stream(self, path: str, query: Any = (), **limits: Any) -> Any:
        return self._of(path).stream(_common(path), query, **limits)

    async def drop(self) -> None:
        await self._objects.drop()
        await self._secrets.drop()

    def _of(self, path: str) -> Api:
        return self._secrets if path.startswith(SECRETS.path) else self._objects


def _common(path: str) -> str:
    return path.replace(SECRETS.path, RESOURCE.path)


class EndsLedger(Ledger):
    """A journal with the names of the clusters that were disengaged."""

    def __init__(self) -> None:
        super().__init__(lambda *_: None, EPOCH)
        self.ended: set[str] = set()

    def changed(self, done: Event, *, is_live: bool) -> None:
        if done.type is EventType.DISENGAGED:
            self.ended.add(done.cluster.target.name)


class Simulation:
    def __init__(self, seed: int) -> None:
        self._random = random = Random(seed)
        self._loop = asyncio.get_running_loop()
        self.objects, self.secrets = self.upstreams = Upstream(random), Upstream(random)
        self._api = Apis(self.objects.api, self.secrets.api)
        self._disk = Disk(lambda *_: None)
        self.ledger = EndsLedger()
        self.start()

    def start(self) -> None:
        """Start the daemon, from its state file if there is one."""
        joined = KeyedSource(Joined().follows(), label_selector=SELECTOR)
        assert joined.reduce is not None
        fleet = Fleet(ChangeLog(encoder(EPOCH), Retention()))
        made = ClusterSource(
            fleet.changes,
            self.ledger,
            SourcePolicy(
                pending_deletions=lambda: PendingDeletions(self._random.random),
                removals=RemovalLimits(),
            ),
            reduce=joined.reduce,
            keys=joined.keys,
        )
        self.source = fleet.add(made)
        discovery = Discovery(
            self.source,
            self._disk,
            policy=ReflectorPolicy(streaming_lists=self._random.random() < 0.5),
            jitter=self._random.random,
            connect_timeout_s=10.0,
            epoch="run",
            request_timeout_s=30.0,
        )
        following = discovery.run(lambda _: self._api, joined.collections, joined.restored_place)
        self._task = asyncio.create_task(following)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def view(self) -> dict[str, str]:
        return {cluster.target.name: cluster.target.place[0] for cluster in self.source.engagements.clusters()}

    @property
    def truth(self) -> dict[str, str]:
        secrets = {name: obj.uid for name, obj in self.secrets.world.server.objects.items() if obj.engages}
        return {name: f"https://{secrets[pair_of(name)]}" for name in self.objects.ready() if pair_of(name) in secrets}

    @property
    def has_recovered(self) -> bool:
        return self.view == self.truth and self.source.status.state is ViewState.STREAMING

    async def until(self, holds: Callable[[], bool], seconds: float) -> None:
        ends_at = self._loop.time() + seconds
        while not holds():
            assert self._loop.time() < ends_at, f"{self.view} is not {self.truth}, {self.source.status}"
            await asyncio.sleep(0.25)

    async def storm(self, failing: Sequence[Upstream], *, restarts: bool) -> None:
        """Inject every kind of fault for a while, during changes of both resources."""
        for upstream in failing:
            upstream.is_failing, upstream.api.fault_rate = True, 0.5
        ends_at = self._loop.time() + STORM_S
        while self._loop.time() < ends_at:
            for upstream in failing:
                upstream.faults.strike()
            self._random.choice(self.upstreams).change()
            if restarts and self._random.random() < 0.05:
                await self.stop()
                self.start()
            await asyncio.sleep(self._random.random() * 10.0)
        for upstream in failing:
            upstream.is_failing, upstream.api.fault_rate = False, 0.0
            if upstream.api.needs_relist:  # nothing else corrects what the watch sent
                upstream.world.server.version += 1  # represents an unrelated write
                upstream.world.server.compact()
            upstream.api.cut()


def run(seed: int, steps: Callable[[Simulation], Any]) -> None:
    loop = VirtualLoop(Random(seed))

    async def main() -> None:
        simulation = Simulation(seed)
        try:
            await steps(simulation)
        finally:
            await simulation.stop()

    run_on(loop, main())


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("failing", ["objects", "secrets", "both"])
def test_faults_of_object_or_secret_watch_disengage_no_existing_cluster(failing: str, restarts: bool) -> None:
    struck = set[str]()

    async def steps(simulation: Simulation) -> None:
        await simulation.until(lambda: simulation.view == simulation.truth and len(simulation.view) == len(NAMES), 60.0)
        upstreams = {"objects": [simulation.objects], "secrets": [simulation.secrets]}
        await simulation.storm(upstreams.get(failing, simulation.upstreams), restarts=restarts)
        await simulation.until(lambda: simulation.has_recovered, RECOVERY_S)
        assert ALWAYS_ENGAGED in simulation.view
        assert ALWAYS_ENGAGED not in simulation.ledger.ended
        for upstream in simulation.upstreams:
            struck.update(upstream.api.injected)

    for seed in range(20):
        run(seed, steps)
    assert struck >= EVERY_FAULT


@pytest.mark.parametrize("seed", range(20))
def test_clusters_are_engaged_only_after_the_first_lists_of_objects_and_secrets_are_complete(seed: int) -> None:
    async def steps(simulation: Simulation) -> None:
        late = Random(seed).choice(simulation.upstreams)
        late.api.down_until = asyncio.get_running_loop().time() + 20.0
        await asyncio.sleep(10.0)
        assert simulation.view == {}
        assert not simulation.source.synced
        await simulation.until(lambda: simulation.view == simulation.truth != {}, 60.0)
        assert simulation.ledger.ended == set()

    run(seed, steps)
