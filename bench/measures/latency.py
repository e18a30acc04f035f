"""From a write to the subscriber's callback, and beside it to the reader of a raw watch: what lies between is ours.

Other readers of the API server, client-go's informer and the kubernetes package's watch, take their turn.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from statistics import median, quantiles

from bench import peers
from bench.access import PROJECTS
from bench.milo import Milo, label
from bench.peers import Peer
from bench.projects import MARK
from bench.setting import Samples, Setting
from milo_discovery import DiscoveryClient

_MARKED = re.compile(rb'"%s":"([0-9]+)"' % MARK.encode())
_LAST_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.05
_OURS = ""
_CUTS = (("p50", 50), ("p99", 99))


class Writes:
    """Writes at an even pace, each with a mark of its own, and when each was begun and seen."""

    def __init__(self, milo: Milo, count: int, per_s: float, clusters: int, first_mark: int) -> None:
        self._milo = milo
        self._count = count
        self._interval_s = 1 / per_s
        self._clusters = clusters
        self._first_mark = first_mark
        self._begun: dict[int, float] = {}
        self.latencies_ms: list[float] = []
        self.round_trips_ms: list[float] = []
        self._all_seen = asyncio.Event()

    def seen(self, mark: int, at: float | None = None) -> None:
        """`at`: now, if not given."""
        begun = self._begun.pop(mark, None)
        if begun is not None:
            self.latencies_ms.append(((time.perf_counter() if at is None else at) - begun) * 1000)
            if len(self.latencies_ms) == self._count:
                self._all_seen.set()

    def at(self, percent: int) -> float:
        """So many of the latencies are below."""
        return quantiles(self.latencies_ms, n=100)[percent - 1]

    async def run(self) -> None:
        """Until all of them were seen."""
        loop = asyncio.get_running_loop()
        async with self._milo.access.session() as session:
            start = loop.time() + 0.2
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._count):
                    await asyncio.sleep(start + number * self._interval_s - loop.time())
                    tasks.create_task(self._write(session, number))
            async with asyncio.timeout(_LAST_WITHIN_S):
                await self._all_seen.wait()

    async def _write(self, session: object, number: int) -> None:
        mark = self._first_mark + number
        self._begun[mark] = begun = time.perf_counter()
        await label(session, number % self._clusters, str(mark))  # type: ignore[arg-type]
        self.round_trips_ms.append((time.perf_counter() - begun) * 1000)


Reader = Callable[[Writes, asyncio.Event], Awaitable[None]]
"""Tells the writes what it sees, until it is cancelled; the event is for when it is ready."""


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    raw: list[Writes] = []
    ours: list[Writes] = []
    readers = {f"{name}_": start for name, start in peers.readers(scale).items()}
    beside: dict[str, list[Writes]] = {name: [] for name in readers}
    cpu_s: dict[str, list[float]] = {name: [] for name in (_OURS, *readers)}
    async with setting.daemon(scale.clusters) as (milo, daemon):
        marks = count(step=scale.latency_writes)

        def make() -> Writes:
            return Writes(milo, scale.latency_writes, scale.writes_per_s, scale.clusters, next(marks))

        for _ in range(scale.rounds):
            raw.append(await _read_by(partial(_raw_watch, milo), make()))
            for name, start in readers.items():
                async with start(milo.access.kubeconfig, setting.directory) as peer:
                    if peer is None:
                        continue
                    await peer.synced()
                    spent = peer.cpu_s
                    beside[name].append(await _read_by(partial(_peer, peer), make()))
                    cpu_s[name].append(peer.cpu_s - spent)
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(DiscoveryClient(daemon.address))
                watch = await stack.enter_async_context(client.watch())
                await watch.synced()
                spent = daemon.cpu_s
                ours.append(await _read_by(partial(_subscriber, watch), make()))
                cpu_s[_OURS].append(daemon.cpu_s - spent)
    samples: Samples = {}
    for name, read in {_OURS: ours, "raw_watch_": raw, **beside}.items():
        samples |= {f"latency.{name}{percentile}_ms": [each.at(cut) for each in read] for percentile, cut in _CUTS}
    samples["latency.write_p50_ms"] = [median(each.round_trips_ms) for each in ours]
    for key, cut in (("latency.over_raw_watch_ms", 50), ("latency.p99_over_raw_watch_ms", 99)):
        samples[key] = [one.at(cut) - other.at(cut) for one, other in zip(ours, raw, strict=True)]
    for name, each in cpu_s.items():
        samples[f"latency.{name}cpu_s_per_1000"] = [spent / scale.latency_writes * 1000 for spent in each]
    if scale.with_go:
        both = zip(cpu_s[_OURS], cpu_s["client_go_"], strict=False)
        samples["latency.cpu_ratio_to_client_go"] = [one / other for one, other in both]
    return samples


async def _read_by(reader: Reader, writes: Writes) -> Writes:
    ready = asyncio.Event()
    reading = asyncio.create_task(reader(writes, ready))
    try:
        await ready.wait()
        await writes.run()
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    return writes


async def _subscriber(watch: object, writes: Writes, ready: asyncio.Event) -> None:
    ready.set()
    async for event in watch:  # type: ignore[attr-defined]
        mark = event.cluster.labels.get(MARK, "")
        if mark:
            writes.seen(int(mark))


async def _peer(peer: Peer, writes: Writes, ready: asyncio.Event) -> None:
    """It says the mark of each change, and the moment by the wall clock."""
    ahead_s = time.time() - time.perf_counter()
    said = len(peer.said.splitlines())
    ready.set()
    while True:
        lines = peer.said.splitlines(keepends=True)[said:]
        for line in lines:
            if line.endswith("\n"):
                mark, moment = line.split()
                writes.seen(int(mark), int(moment) / 1e9 - ahead_s)
                said += 1
        await asyncio.sleep(_LOOK_EVERY_S)


async def _raw_watch(milo: Milo, writes: Writes, ready: asyncio.Event) -> None:
    """The lines as they come off the wire; looking for the mark stands for decoding them."""
    query = {"watch": "1", "resourceVersion": "0", "allowWatchBookmarks": "true", "timeoutSeconds": "600"}
    async with milo.access.session() as session:
        async with session.get(PROJECTS, params={"limit": "1"}) as answer:
            query["resourceVersion"] = (await answer.json())["metadata"]["resourceVersion"]
        async with session.get(PROJECTS, params=query) as answer:
            ready.set()
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if found := _MARKED.search(line):
                        writes.seen(int(found[1]))
