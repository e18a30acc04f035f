"""Objects on virtual time: list, watch, store and readers under faults of API servers and of discovery, seed by seed.

After the last fault, the store has exactly the objects that exist and are selected, with their named fields. Each
change that a reader takes, however slow it is, changes its copy, and the copy then equals the store.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, cast
from unittest import mock

import msgspec

from milo_discovery import DisengageReason
from milo_discovery.fleet import FleetClient
from milo_objects import (
    CacheLimits,
    Change,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FollowedFleet,
    Gone,
    Kind,
    ObjectChanged,
    ObjectGone,
    Objects,
    OverBudget,
    Pending,
    ProjectedObject,
    Store,
    Synced,
    follow,
)
from tests.simulation.properties.api_server import ApiObject, Server
from tests.simulation.seeded.api import Api
from tests.simulation.seeded.loop import VirtualLoop, clocks_of
from tests.simulation.seeded.simulated_fleet import SimulatedCluster, SimulatedClusterApi, SimulatedDiscovery
from tests.simulation.seeded.world import World

KIND = Kind("v1/projects", ["status.conditions[*].status"], label_selector="team=red")
CLUSTERS = ("one", "two", "three")
LIMITS = CacheLimits(objects=3, retry_s=30.0)
FAULTS = ("change", "change", "change", "watch", "down", "compact", "engagement", "restart", "backup", "restore")
UNNOTICED = 2
"""Writes after a restored backup that could hide it from a watch: one that compacts, and one of `heal`."""
REPEATS = "F24 repeated events"
"""After these, a watch begins at an earlier version than the server has sent, which could hide a restored backup."""
LIES = {"F25 a false deletion", "F68 a list of a lagging replica"}
"""Faults of a server that a follower cannot tell from the truth, until the watch corrects them."""
REASONS = ("DELETED", "REVOKED")
STRIKES = 60
QUIET_S = 900.0
CATCH_UP_S = 31.0
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def is_selected(obj: ApiObject) -> bool:
    return obj.inside and obj.team == "red"


def content(obj: ApiObject) -> bytes:
    return msgspec.json.encode({"status": {"conditions": [{"status": "True" if obj.ready else "False"}]}})


class Reader:
    """A reader that copies the store from the changes that it takes."""

    def __init__(self, delays_s: tuple[float, ...], random: Random, servers: dict[str, SimulatedCluster]) -> None:
        self.breaches: list[str] = []
        self.taken: list[Change] = []
        self.states: list[int] = []
        """For each change, the number of states in which the API server of its cluster had been."""
        self._effective: list[Change] = []
        self._known: set[str] = set()
        """Every cluster that was known at some time."""
        self.copy = Store([KIND.resource], {}, STARTED, changed=self._effective.append)
        self.delays_s = delays_s
        self.is_slow = any(delays_s)
        self._random = random
        self._servers = servers

    async def read(self, objects: Objects) -> None:
        async for change in objects.changes():
            self.take(change)
            await asyncio.sleep(self._random.choice(self.delays_s))

    def take(self, change: Change) -> None:
        self.taken.append(change)
        is_gone = isinstance(change, ObjectGone)
        self.states.append(len(self._servers[change.scope.cluster].world.server.states) if is_gone else 0)
        match change:
            case ClusterChanged(cluster):
                self._known.add(cluster.name)
            case ClusterEnded(_, reason) if reason not in REASONS:
                self.breaches.append(f"an end with a reason that nobody gave: {change}")
            case ObjectChanged(_, found, before) if before is not None and _named(found) == _named(before):
                self.breaches.append(f"a change of nothing that is named: {change}")
            case FleetChanged(Synced()) if not (self.is_slow or self._known.issuperset(CLUSTERS)):
                self.breaches.append(f"all clusters are said to be known, which are {self._known}")
        self._effective.clear()
        self.copy.apply(change)
        if [*map(_comparable, self._effective)] != [_comparable(change)] and not isinstance(change, FleetChanged):
            self.breaches.append(f"a change that does not follow: {change} made {self._effective}")


def _comparable(change: Change) -> Change:
    """Return a change without the versions of objects: a reader that was behind knows those of equal older states."""
    match change:
        case ObjectChanged(scope, found, before):
            return ObjectChanged(scope, _unversioned(found), before and _unversioned(before))
        case ObjectGone(scope, found, reason):
            return ObjectGone(scope, _unversioned(found), reason)
    return change


def _named(found: ProjectedObject) -> object:
    return found.uid, found.content, found.created_at, found.deletion_requested_at


def _unversioned(found: ProjectedObject) -> ProjectedObject:
    return msgspec.structs.replace(found, version="")


def contents(store: Store) -> dict[Any, Any]:
    """Return what a copy has in common with its original, which may have read newer versions of equal objects."""
    scopes = [scope for name in store.clusters for scope in store.scopes(name)]
    return {
        "fleet": store.fleet,
        "clusters": dict(store.clusters),
        "view": store.view(KIND.resource),
        **{
            scope: {place: (found.uid, found.content) for place, found in store.objects(scope).items()}
            for scope in scopes
        },
    }


@dataclass
class Outcome:
    seed: int
    breaches: list[str]
    injected: Counter[str]
    gone: Counter[str]
    changes: int
    virtual_s: float


@dataclass
class Simulation:
    seed: int
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    async def run(self) -> Outcome:
        servers = SimulatedClusterApi.servers = {name: self._server() for name in CLUSTERS}
        discovery = SimulatedDiscovery()
        source = FollowedFleet(cast(FleetClient, discovery), limits=LIMITS)
        objects = Objects(source, [KIND], indexes={"uid": lambda found: [found.uid]})
        readers = [Reader(delays_s, self.random, servers) for delays_s in ((0.0,), (0.0, 1.0, 30.0))]
        async with objects, asyncio.TaskGroup() as tasks:
            reading = [tasks.create_task(reader.read(objects)) for reader in readers]
            for name in CLUSTERS:
                discovery.engage(name)
            discovery.synced()
            await asyncio.sleep(CATCH_UP_S)
            for _ in range(STRIKES):
                await asyncio.sleep(self.random.choice((0.0, 0.1, 1.0, 20.0)))
                self._strike(servers[self.random.choice(CLUSTERS)], discovery)
            for name, server in servers.items():
                server.heal()
                if name not in discovery.engaged:
                    discovery.engage(name)
            await asyncio.sleep(QUIET_S)
            readers[1].delays_s = readers[0].delays_s
            await asyncio.sleep(CATCH_UP_S)
            breaches = [*self._wrong(objects, servers, discovery), *self._unproven(readers[0], servers)]
            for reader in readers:
                breaches += reader.breaches
                copy, original = contents(reader.copy), contents(objects)
                breaches += [
                    f"a reader's copy of {key} is {copy.get(key)}, and not {original.get(key)}"
                    for key in copy.keys() | original.keys()
                    if copy.get(key) != original.get(key)
                ]
            for task in reading:
                task.cancel()
            gone = Counter(change.reason.name for change in readers[0].taken if isinstance(change, ObjectGone))
            changes = sum(len(reader.taken) for reader in readers)
            return Outcome(self.seed, breaches, self.injected, gone, changes, asyncio.get_running_loop().time())

    def _server(self) -> SimulatedCluster:
        server = Server()
        world = World(server, self.random)
        api = Api(server, self.random, lambda *_: None, lambda: True)
        for _ in range(self.random.randint(0, 8)):
            world.change()
        api.fault_rate = 0.2
        return SimulatedCluster(api, world)

    def _strike(self, server: SimulatedCluster, discovery: SimulatedDiscovery) -> None:
        fault = self.random.choice(FAULTS)
        self.injected[fault] += 1
        match fault:
            case "change":
                if not server.world.server.is_behind:  # after more writes, the restored backup would not be noticed
                    server.world.change()
                    server.api.ring()
            case "backup":
                if not server.world.server.is_behind:
                    server.world.server.back_up()
            case "restore":
                self._restore(server)
            case "watch":
                server.strike(self.random)
            case "down":
                server.api.down_until = asyncio.get_running_loop().time() + self.random.choice((1.0, 60.0))
                server.api.cut()
            case "compact":
                server.world.server.compact()
            case "restart":
                discovery.restart()
            case _:
                name = self.random.choice(CLUSTERS)
                if name in discovery.engaged:
                    discovery.disengage(name, DisengageReason[self.random.choice(REASONS)])
                else:
                    discovery.engage(name)

    def _restore(self, server: SimulatedCluster) -> None:
        """Have the API server return with older data."""
        held = server.world.server
        is_noticed = held.backups and held.sent_version > held.backups[-1][0] + UNNOTICED
        if is_noticed and REPEATS not in server.api.injected:
            server.world.restore()
            server.api.cut()

    # --- validation ---

    def _wrong(
        self, objects: Objects, servers: dict[str, SimulatedCluster], discovery: SimulatedDiscovery
    ) -> Iterator[str]:
        """Yield what differs between the store and the API servers."""
        missing = objects.view(KIND.resource).missing
        for name, server in servers.items():
            exist = {
                key: (obj.uid, content(obj)) for key, obj in server.world.server.objects.items() if is_selected(obj)
            }
            found = {
                each.object.name: (each.object.uid, each.object.content) for each in objects.list(KIND.resource, name)
            }
            if len(exist) > LIMITS.objects:
                if not isinstance(missing.get(name), OverBudget | Pending) or len(found) > LIMITS.objects:
                    yield f"{name} has {len(exist)} objects, and is {missing.get(name)} with {found}"
            elif found != exist or name in missing:
                yield f"{name} has {exist}, and the store has {found}; {missing.get(name)}"
            for uid, _ in found.values():
                if [hit.cluster.name for hit in objects.find("uid", uid) if hit.cluster.name == name] != [name]:
                    yield f"{uid} of {name} is not found by its index"
            if objects.clusters[name].uid != f"{discovery.engaged[name]}":
                yield f"{name} is {objects.clusters[name]}, and its engagement is {discovery.engaged[name]}"

    def _unproven(self, reader: Reader, servers: dict[str, SimulatedCluster]) -> Iterator[str]:
        """Yield ends of objects whose reason was never true, where no server has told a lie."""
        for change, known in zip(reader.taken, reader.states, strict=True):
            if not isinstance(change, ObjectGone):
                continue
            api, server = servers[change.scope.cluster].api, servers[change.scope.cluster].world.server
            if not api.needs_relist and LIES.isdisjoint(api.injected):
                since = server.first_seen(change.object.name, change.object.uid)
                if not any(_is_true(change, state.get(change.object.name)) for state in server.states[since:known]):
                    yield f"never true: {change}"


def _is_true(change: ObjectGone, obj: ApiObject | None) -> bool:
    is_same = obj is not None and obj.uid == change.object.uid and obj.inside
    match change.reason:
        case Gone.OBJECT_DELETED:
            return not is_same
        case Gone.OUT_OF_SELECTOR:
            return is_same and obj is not None and not is_selected(obj)
        case _:
            return not is_same or (obj is not None and not is_selected(obj))


@contextmanager
def _simulated(seed: int, loop: VirtualLoop) -> Iterator[None]:
    with (
        clocks_of(loop),
        mock.patch.object(follow, "ClusterApi", SimulatedClusterApi),
        mock.patch.object(random, "random", Random(seed).random),  # jitter
    ):
        yield


def simulate(seed: int) -> Outcome:
    """Run one simulation."""
    loop = VirtualLoop(Random(seed))
    with _simulated(seed, loop):
        try:
            return loop.run_until_complete(Simulation(seed).run())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
