"""One simulation of a seed: a hostile tenant, drawn from the generators, beside an honest one with a few clusters."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest.mock import patch

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement import engagement
from milo_discoveryd.objects import store
from tests.simulation.hostile.daemon import CALM, HONEST, KINDS, RETENTION_S, Daemon, StateOfSource
from tests.simulation.hostile.generators import GENERATORS, Caller, Generator, Writer
from tests.simulation.hostile.loop import BusyLoop
from tests.simulation.hostile.upstream import Upstream
from tests.simulation.seeded.loop import run_on
from tests.support.logs import capture_logs

KEPT = "FORGETTABLE_RECORDS_KEPT"
SIZES = (2000, 2000, 5000, 20_000)
STEPS, STEP_S = 60, 0.1
LATER_STEPS, LATER_STEP_S = 10, 7.0
"""The steps of each of the times in which the hostile objects stay and change, all longer than `RETENTION_S`."""
HONEST_EACH = 5
"""The honest clusters of each source."""
LONGEST_STEP_S = 0.25
PROMPT_S = 2.0
WRITE_S, CALM_S = 0.0006, 2.0
"""The processor time that each write of the hostile tenant may take, and what all else may take."""
ARRIVAL_S = 0.001
"""How long each hostile object may delay what arrives after it."""
MOST_MEMORY = 256 << 20
RECORDS_KEPT = 100
"""How many objects that are gone are known for a while: far fewer than there were hostile ones."""
LEFT_OVER = 5 * RECORDS_KEPT
"""How much the containers of an attribute may grow in all."""
OF_THE_PAST = (
    *("ChangeNotifier._published", "RecentDeletions._reported", "LogSlots."),
    *("Audit._of_objects", "KeyedBuckets._buckets", "TokenBucket"),
    *("RecordedTransition", "DeliverySchedule._due"),
)
"""Containers that keep some of the past until there were as many changes again, or up to a fixed number."""


@dataclass
class Outcome:
    seed: int
    breaches: list[str]
    injected: Counter[str]
    changes: int
    mints: int
    virtual_s: float
    slowest_s: float
    longest_s: float
    memory: int
    busy_s: float
    writes: int


def simulate(seed: int, objects: int | None = None, generators: Sequence[type[Generator]] = ()) -> Outcome:
    """Run a seed. `objects` and `generators` replace what the seed draws."""
    random = Random(seed)
    drawn = random.sample(GENERATORS, random.randint(1, 4))
    size = random.choice(SIZES)
    loop = BusyLoop()
    gc.collect()
    # What other tests left would make the collector's steps longer. To unfreeze it would also unfreeze what
    # `tests.support.garbage` froze, and slow all later tests of this process.
    gc.freeze()
    with capture_logs() as lines, few_records():
        outcome = run_on(loop, SimulationRun(seed, random, loop, generators or drawn, objects or size).run())
        outcome.breaches += dict.fromkeys(lines.errors)
        return outcome


@contextmanager
def few_records() -> Iterator[None]:
    with patch.object(store, KEPT, RECORDS_KEPT), patch.object(engagement, KEPT, RECORDS_KEPT):
        yield


class HonestTenant:
    """A tenant with a few clusters of each source, and with one caller, which notes when it sees its changes."""

    def __init__(self, shared: Upstream, calm: Upstream, daemon: Daemon, loop: BusyLoop) -> None:
        self._writers = {name: Writer(calm if name == CALM else shared, "honest") for name in KINDS}
        self._daemon = daemon
        self._clock = loop.time
        self._made: dict[tuple[str, str], float] = {}
        """When each change was made that was not seen yet, by cluster and content."""
        self._latencies: list[tuple[float, str]] = []
        self.changes = self.mints = 0
        self.slowest_s = 0.0
        """The longest latency of those of which `late` was last asked."""
        self.refused: list[str] = []

    def write(self, source: str, number: int) -> None:
        self.changes += 1
        write, name, content = self._writers[source], f"honest-{number}", f"{self.changes}"
        match source:
            case "consumers":
                write.consumer(f"consumer-{number}", name, content=content)
            case "declared":
                write.declared(name, name, content=content)
                write.secret(name, f"https://{name}.example.com")
                name = f"honest.{name}"
            case "planes":
                write.plane(name, content=content)
            case _:
                write.project(name, content=content)
        self._made[f"{source}#{name}", content] = self._clock()

    def continue_at(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.subscribe()

    def subscribe(self) -> None:
        self._daemon.watch(HONEST, self._read)

    async def _read(self, data: bytes) -> None:
        for event in pb.WatchClustersResponse.FromString(data).events:
            if event.type == pb.ClusterEvent.TYPE_DISENGAGED:
                reason = pb.DisengageReason.Name(event.reason)
                self.refused.append(f"disturbed: {event.cluster.name} was disengaged as {reason}: {event.message}")
            key = event.cluster.name, event.cluster.labels.get("content", "")
            if (made := self._made.pop(key, None)) is not None:
                self._latencies.append((self._clock() - made, f"change of {key[0]}"))

    def mint(self, source: str, number: int, ttl_s: int) -> None:
        name = {"declared": "honest.honest"}.get(source, "honest")
        request = pb.IssueKubeconfigRequest(cluster=f"{source}#{name}-{number}")
        request.ttl.FromSeconds(ttl_s)
        key = f"{source}#{name}-{number}", f"a kubeconfig for {ttl_s} s"
        self._made[key] = began = self._clock()

        def minted(call: "asyncio.Task[object]") -> None:
            self.mints += 1
            if not call.cancelled() and (error := call.exception()) is not None:
                self.refused.append(f"refused: {key[1]} of {key[0]}: {error!r}")
            elif self._made.pop(key, None) is not None:
                self._latencies.append((self._clock() - began, f"{key[1]} of {key[0]}"))

        call = self._daemon.call(self._daemon.service.issue_kubeconfig(request, HONEST))
        call.add_done_callback(minted)

    async def list_all(self) -> None:
        """List in pages: a list is kept until another one begins after it has expired."""
        request = pb.ListClustersRequest(page_size=1)
        await self._daemon.service.list_clusters(request, HONEST)

    async def settled(self, within_s: float) -> None:
        ends_at = self._clock() + within_s
        while self._made and self._clock() < ends_at:  # noqa: ASYNC110 - the daemon has the processor meanwhile
            await asyncio.sleep(0.1)

    def late(self, sources: Collection[str] = (*KINDS,), within_s: float = PROMPT_S) -> list[str]:
        """Return what was late of what was asked for, by the sources whose API servers answer; forget all of it."""
        now = self._clock()
        self._latencies += [
            (now - made, f"{content} of {name}, not yet") for (name, content), made in self._made.items()
        ]
        found = [late for late in self._latencies if any(f"{source}#" in late[1] for source in sources)]
        self.slowest_s = max(seconds for seconds, _ in found)
        self._latencies.clear()
        self._made.clear()
        return [f"latency: {what} took {seconds:.2f} s" for seconds, what in found if seconds > within_s]


class SimulationRun:
    def __init__(
        self, seed: int, random: Random, loop: BusyLoop, generators: Sequence[type[Generator]], objects: int
    ) -> None:
        self._seed = seed
        self._random = random
        self._loop = loop
        self._shared, self._calm = Upstream(), Upstream()
        self._hostile = Writer(self._shared, "hostile")
        self._kinds = generators
        self._sources = [CALM] if any(kind.is_outage for kind in generators) else [*KINDS]
        self._calls = any(issubclass(kind, Caller) for kind in generators)
        self._objects = objects
        self._lists_first = random.random() < 0.5
        self._drain_s = random.choice((0.0, 30.0))
        self._restarts = random.random() < 0.5
        self._peak = 0
        self._breaches: list[str] = []

    async def run(self) -> Outcome:
        states = {source: StateOfSource(self._loop, source) for source in KINDS}
        daemon = Daemon(self._loop, self._shared, self._calm, states, drain_s=self._drain_s)
        honest = HonestTenant(self._shared, self._calm, daemon, self._loop)
        self._write_all(honest)
        await asyncio.sleep(10.0)
        honest.late()  # nobody reads yet
        honest.subscribe()
        await self._rest(honest)
        began, sizes, busy_s = _resident(), self._sizes(), self._loop.busy_s
        each = self._objects // len(self._kinds)
        generators = [kind(self._hostile, daemon, self._random, each) for kind in self._kinds]
        await self._arrive(generators, honest)
        for step in range(STEPS):
            with self._loop.paused():
                for generator in generators:
                    generator.step()
                self._peak = max(self._peak, _resident())
            for source in KINDS if step % 10 == 0 else ():
                honest.write(source, step // 10 % HONEST_EACH)
                honest.mint(source, step // 10 % HONEST_EACH, (60, 120, 300)[step // 10 % 3])
            await asyncio.sleep(STEP_S)
        await honest.settled(PROMPT_S)
        self._breaches += honest.late(self._sources)
        slowest_s = honest.slowest_s
        await self._stay(generators)
        if self._restarts:
            self._breaches += daemon.failed
            for generator in generators:
                generator.end()
            daemon.check()
            await daemon.end()
            daemon = Daemon(self._loop, self._shared, self._calm, states, drain_s=self._drain_s)
            for generator in generators:
                generator.daemon = daemon
            await asyncio.sleep(10.0)
            honest.continue_at(daemon)
            await self._arrive([], honest)
            await self._stay(generators)
        with self._loop.paused():
            for generator in generators:
                generator.end()
            generators.clear()
            self._hostile.delete_all()
            daemon.probe_s = 0.0
        await self._rest(honest)
        self._breaches += [*daemon.failed, *honest.refused, *self._leaks(self._sizes() - sizes, "in the end")]
        writes, busy_s = self._shared.version, self._loop.busy_s - busy_s
        if busy_s > CALM_S + WRITE_S * writes and not self._calls:
            self._breaches.append(f"cost: {writes} writes took {busy_s:.1f} s")
        if self._loop.longest_s > LONGEST_STEP_S:
            self._breaches.append(f"step: {self._loop.longest_s:.3f} s in {self._loop.longest}")
        if self._peak - began > MOST_MEMORY:
            self._breaches.append(f"memory: {(self._peak - began) >> 20} MiB")
        daemon.check()
        await daemon.end()
        return Outcome(
            self._seed,
            self._breaches,
            Counter(kind.__name__ for kind in self._kinds),
            honest.changes,
            honest.mints,
            self._loop.time(),
            slowest_s,
            self._loop.longest_s,
            self._peak - began,
            busy_s,
            writes,
        )

    def _write_all(self, honest: HonestTenant) -> None:
        for source in KINDS:
            for number in range(HONEST_EACH):
                honest.write(source, number)

    async def _arrive(self, generators: Sequence[Generator], honest: HonestTenant) -> None:
        """Let the hostile objects arrive, in a list or in the watches; what follows them may be late."""
        with self._loop.paused():
            for generator in generators:
                generator.begin()
            if self._lists_first:
                self._shared.expire()
        self._write_all(honest)
        await honest.settled(ARRIVAL_S * self._objects + PROMPT_S)
        self._breaches += honest.late(self._sources, ARRIVAL_S * self._objects + PROMPT_S)
        await asyncio.sleep(5.0)

    async def _stay(self, generators: Sequence[Generator]) -> None:
        """Let the hostile tenant go on for long, and compare what is kept of its objects."""
        grown: list[Counter[str]] = []
        for _ in range(3):
            before = self._sizes()
            for _ in range(LATER_STEPS):
                with self._loop.paused():
                    for generator in generators:
                        generator.step()
                await asyncio.sleep(LATER_STEP_S)
            grown.append(self._sizes() - before)
        # Before the first, what expires has not; the size of a queue may differ once. What callers ask for grows up to
        # their limits, which takes longer.
        if not self._calls:
            self._breaches += self._leaks(grown[1] & grown[2], "each time while the objects stay")

    async def _rest(self, honest: HonestTenant) -> None:
        """Let all times pass for which something is kept, and use what is used again."""
        for _ in range(3):
            for source in KINDS:
                for number in range(HONEST_EACH):
                    honest.write(source, number)
                    for ttl_s in (60, 120, 300):
                        honest.mint(source, number, ttl_s)
            await asyncio.sleep(5 * RETENTION_S)
            await honest.list_all()
            self._breaches += honest.late(self._sources, ARRIVAL_S * self._objects + PROMPT_S)

    def _sizes(self) -> Counter[str]:
        """Count the instances of the product's classes, and what is in their containers."""
        sizes: Counter[str] = Counter()
        with self._loop.paused():
            gc.collect()
            for obj in gc.get_objects():
                kind = type(obj)
                if not kind.__module__.startswith("milo_"):
                    continue
                sizes[kind.__name__] += 1
                for name, value in getattr(obj, "__dict__", {}).items():
                    if hasattr(value, "__len__") and not isinstance(value, str | bytes):
                        sizes[f"{kind.__name__}.{name}"] += len(value)
                    if isinstance(value, dict):
                        inner = (len(each) for each in value.values() if isinstance(each, tuple | list | dict | set))
                        sizes[f"{kind.__name__}.{name}: values"] += sum(inner)
        return sizes

    def _leaks(self, grown: Counter[str], when: str) -> list[str]:
        return [
            f"leak: {name} has {more} more {when}"
            for name, more in grown.items()
            if more > LEFT_OVER and not name.startswith(OF_THE_PAST)
        ]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
