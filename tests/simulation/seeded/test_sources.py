"""Two sources in one daemon, on virtual time: one fails in every way, and the other is not affected."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

import pytest

from milo_discovery import EventType
from milo_discovery._session import Session
from milo_discovery.events import Event
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourceDescription, SourcePolicy
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.kubeconfigs import CredentialLimits, Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import Issuance
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.contributions import Contribution, ObjectContribution
from milo_discoveryd.model.observation import NotReady, Observation, Ready
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.model.resource import ObjectKeys
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.rights.rights import Rights
from milo_discoveryd.server.calls.access import AccessControl
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.server.calls.revision import TokenSigner
from milo_discoveryd.server.calls.server_info import DaemonInfo
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import ContributionWatch, OneResource, SeveralResources, SourceOptions
from milo_discoveryd.sources.project import ProjectObjects
from milo_discoveryd.sources.reading import KubeObject
from milo_discoveryd.wiring.source import Discovery
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.view_status import ViewState
from tests.simulation.properties.api_server import ApiObject, Server
from tests.simulation.seeded.api import RESOURCE, Api
from tests.simulation.seeded.daemon import PLENTY, Ledger
from tests.simulation.seeded.loop import WALL_AT_ZERO, VirtualLoop, run_on
from tests.simulation.seeded.request_faults import REQUEST_FAULTS
from tests.simulation.seeded.watch_faults import WATCH_FAULTS, WatchFaultInjector
from tests.simulation.seeded.world import NAMES, World

EPOCH = "0" * 16


PROJECTS = ProjectObjects(SourceOptions(project_server="https://api.test"))
SELECTOR = "in=yes"
CALM = KeyedSource(OneResource(RESOURCE, PROJECTS.observe, PROJECTS.restored_place), "calm", SELECTOR)
ALWAYS_ENGAGED = "e"
"""The one object of each server that is never changed."""
STORM_S = 600.0
PROMPT_S = 5.0
RECOVERY_S = 400.0
CHUNK = 15
EVERY_FAULT = {f"{fault.row} {fault.name}" for fault in REQUEST_FAULTS} | {
    f"{row} {name}" for row, name, _ in WATCH_FAULTS
}


class Pairs:
    """Two objects make one cluster: a and b make a, c and d make c, e and f make e."""

    def follows(self) -> SeveralResources:
        return SeveralResources(
            (ContributionWatch(RESOURCE, KubeObject, self.contributions),), self.reduce, self.restored_place
        )

    def contributions(self, obj: KubeObject) -> Iterable[Contribution]:
        observation = PROJECTS.observe(obj)
        yield Contribution(pair_of(obj.metadata.name), isinstance(observation, Ready))

    def reduce(self, cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
        if not contributions:
            return None
        identity = uid or contributions[0].uid
        if not any(contribution.content for contribution in contributions):
            return NotReady(cluster, identity, "", "no object is ready")
        return Ready(identity, "", Target(name=cluster, uid=identity, place=("https://", ".test")))

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        return stored.place


def pair_of(name: str) -> str:
    return NAMES[NAMES.index(name) // 2 * 2]


class Changes(World):
    """Random changes of all objects but one."""

    def __init__(self, server: Server, random: Random) -> None:
        super().__init__(server, random)
        self._choice = random

    def change(self, *, may_garble: bool = False) -> None:
        name = self._choice.choice(NAMES.replace(ALWAYS_ENGAGED, ""))
        before = self.server.objects.get(name)
        if before is not None and self._choice.random() < 0.4:
            self.delete(name)
            return
        is_new = before is None or self._choice.random() < 0.2
        uid = f"uid-{name}-{self._choice.random()}" if is_new or before is None else before.uid
        self.put(name, ApiObject(uid, 0, self._choice.random() < 0.7, inside=True, readable=True, content=0))


class Upstream:
    """An API server with random changes."""

    def __init__(self, random: Random) -> None:
        server = Server()
        self.world = Changes(server, random)
        self.is_failing = False
        self.api = Api(server, random, lambda *_: None, lambda: self.is_failing)
        self.faults = WatchFaultInjector(self.api, self.world, random)
        for name in NAMES:
            self.world.put(name, ApiObject(f"uid-{name}", 0, ready=True, inside=True, readable=True, content=0))

    def change(self) -> None:
        self.world.change()
        self.api.ring()

    def ready(self) -> set[str]:
        return {name for name, obj in self.world.server.objects.items() if obj.engages}


class Simulation:
    def __init__(self, seed: int) -> None:
        self._random = random = Random(seed)
        self._loop = asyncio.get_running_loop()
        self.calm, self.failing = Upstream(random), Upstream(random)
        self.fleet = Fleet(ChangeLog(encoder(EPOCH), Retention()))
        ledger = Ledger(lambda *_: None, EPOCH)
        calm = ClusterSource(
            self.fleet.changes,
            ledger,
            SourcePolicy(pending_deletions=lambda: PendingDeletions(random.random), removals=RemovalLimits()),
            SourceDescription(name="calm"),
            keys=[ObjectKeys(prefix="calm#")],
        )
        pairs = KeyedSource(Pairs().follows(), "failing", SELECTOR)
        assert pairs.reduce is not None
        failing = ClusterSource(
            self.fleet.changes,
            ledger,
            SourcePolicy(pending_deletions=lambda: PendingDeletions(random.random), removals=RemovalLimits()),
            SourceDescription(name="failing"),
            reduce=pairs.reduce,
            keys=pairs.keys,
        )
        for source in (calm, failing):
            self.fleet.add(source)
        self.session = Session()
        self.events: list[Event] = []
        self._tasks = [
            asyncio.create_task(self._discover(calm, self.calm, CALM)),
            asyncio.create_task(self._discover(failing, self.failing, pairs)),
        ]
        about = DaemonInfo(
            version="0", mode="sources", epoch=EPOCH, started_at=WALL_AT_ZERO, heartbeat_s=30.0, stalled_s=60.0
        )
        kubeconfigs = Kubeconfigs(
            [],
            Issuance(trust=lambda *_: ClusterTrust(None), audit=ledger, metrics=ledger),
            CredentialLimits(600.0, 600.0),
        )
        access = AccessControl(Rights(), PLENTY, ledger, self._loop.time)
        self._service = Service(self.fleet, about, ledger, kubeconfigs, access=access, signer=TokenSigner(b"key"))

    async def _discover(self, source: ClusterSource, upstream: Upstream, followed: KeyedSource) -> None:
        policy = ReflectorPolicy(streaming_lists=self._random.random() < 0.5)
        discovery = Discovery(
            source,
            None,
            epoch="run",
            policy=policy,
            jitter=self._random.random,
            connect_timeout_s=10.0,
            request_timeout_s=30.0,
        )
        await discovery.run(lambda _: upstream.api, followed.collections, followed.restored_place)

    def subscribe(self, **options: Any) -> None:
        async def send(message: bytes) -> None:
            batch = pb.WatchClustersResponse.FromString(message)
            self.events += [event for event in self.session.receive(batch) if isinstance(event, Event)]

        self.session.open()
        request = pb.WatchClustersRequest(accepts_pending_sources=True, **options)
        call = self._service.watch_clusters(request, Caller(listener="here"), send)
        self._tasks.append(asyncio.create_task(call))

    def view(self, source: str) -> set[str]:
        return {name.partition("#")[2] for name in self.session.view if name.startswith(f"{source}#")}

    @property
    def failing_truth(self) -> set[str]:
        return {pair_of(name) for name in self.failing.ready()}

    async def until(self, holds: Callable[[], bool], seconds: float) -> None:
        ends_at = self._loop.time() + seconds
        while not holds():
            assert self._loop.time() < ends_at, "the condition did not become true in time"
            await asyncio.sleep(0.25)

    async def calm_source_is_prompt(self) -> None:
        self.calm.change()
        await self.until(lambda: self.view("calm") == self.calm.ready(), PROMPT_S)
        assert self.session.sources["calm"].state.name == ViewState.STREAMING.name

    async def storm(self) -> None:
        """Inject every kind of fault into one source for a while, during changes."""
        self.failing.is_failing = True
        self.failing.api.fault_rate = 0.5
        ends_at = self._loop.time() + STORM_S
        while self._loop.time() < ends_at:
            self.failing.faults.strike()
            self.failing.change()
            await self.calm_source_is_prompt()
            await asyncio.sleep(self._random.random() * 10.0)
        self.failing.is_failing = False
        self.failing.api.fault_rate = 0.0
        self.failing.api.cut()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


def run(seed: int, steps: Callable[[Simulation], Any]) -> None:
    loop = VirtualLoop(Random(seed))

    async def main() -> None:
        simulation = Simulation(seed)
        try:
            await steps(simulation)
        finally:
            simulation.stop()

    run_on(loop, main())


@pytest.mark.parametrize("first", range(0, 30, CHUNK))
def test_failing_source_does_not_affect_the_other_source(first: int) -> None:
    struck = set[str]()

    async def steps(simulation: Simulation) -> None:
        simulation.subscribe()
        await simulation.until(lambda: simulation.view("failing") == {"a", "c", "e"}, 60.0)
        await simulation.until(lambda: simulation.view("calm") == set(NAMES), 60.0)
        await simulation.storm()
        await simulation.until(lambda: simulation.view("failing") == simulation.failing_truth, RECOVERY_S)
        ended = {event.cluster.name for event in simulation.events if event.type is EventType.DISENGAGED}
        assert f"failing#{ALWAYS_ENGAGED}" not in ended
        struck.update(simulation.failing.api.injected)

    for seed in range(first, first + CHUNK):
        run(seed, steps)
    assert struck >= EVERY_FAULT


@pytest.mark.parametrize("seed", range(5))
def test_source_that_never_answered_delays_only_its_own_clusters(seed: int) -> None:
    async def steps(simulation: Simulation) -> None:
        simulation.failing.api.only = REQUEST_FAULTS[0]
        simulation.subscribe()
        await simulation.until(lambda: simulation.view("calm") == set(NAMES), 60.0)
        assert simulation.session.pending_sources == ("failing",)
        for _ in range(10):
            await simulation.calm_source_is_prompt()
        assert simulation.view("failing") == set()
        simulation.failing.api.only = None
        await simulation.until(lambda: simulation.view("failing") == {"a", "c", "e"}, RECOVERY_S)
        assert simulation.session.pending_sources == ()
        assert simulation.view("calm") == simulation.calm.ready()

    run(seed, steps)


def test_stream_filtered_by_source_does_not_wait_for_other_sources() -> None:
    async def steps(simulation: Simulation) -> None:
        simulation.failing.api.only = REQUEST_FAULTS[0]
        simulation.subscribe(filter=pb.ClusterFilter(sources=["calm"]))
        await simulation.until(lambda: simulation.view("calm") == set(NAMES), 60.0)
        assert simulation.session.pending_sources == ()
        assert set(simulation.session.sources) == {"calm"}
        assert simulation.session.source is not None
        assert simulation.session.source.state.name == ViewState.STREAMING.name

    run(1, steps)
