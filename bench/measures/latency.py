"""Latency from a write to the subscriber's callback, and to the event of a raw watch; the daemon adds the difference.

client-go's informer and the kubernetes package's watch are measured in alternating rounds.
"""

import asyncio
import re
import time
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from statistics import median

from bench import peers
from bench.access import PROJECTS
from bench.milo import Milo
from bench.process import Process
from bench.projects import MARK
from bench.setting import Samples, Setting
from bench.writes import Writes, read_by, subscriber
from milo_discovery import DiscoveryClient

_MARKED = re.compile(rb'"%s":"([0-9]+)"' % MARK.encode())
_LOOK_EVERY_S = 0.05
_OURS = ""
_CUTS = (("p50", 50), ("p99", 99))


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

        for _ in range(scale.latency_rounds):
            raw.append(await read_by(partial(_raw_watch, milo), make()))
            for name, start in readers.items():
                async with start(milo.access.kubeconfig, setting.directory) as peer:
                    if peer is None:
                        continue
                    await peer.synced()
                    spent = peer.cpu_s
                    beside[name].append(await read_by(partial(peer_marks, peer), make()))
                    cpu_s[name].append(peer.cpu_s - spent)
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(DiscoveryClient(daemon.address))
                watch = await stack.enter_async_context(client.watch())
                await watch.synced()
                spent = daemon.cpu_s
                ours.append(await read_by(partial(subscriber, watch), make()))
                cpu_s[_OURS].append(daemon.cpu_s - spent)
    samples: Samples = {}
    for name, read in {_OURS: ours, "raw_watch_": raw, **beside}.items():
        samples |= {f"latency.{name}{percentile}_ms": [writes.at(cut) for writes in read] for percentile, cut in _CUTS}
    samples["latency.write_p50_ms"] = [median(writes.round_trips_ms) for writes in ours]
    for key, cut in (("latency.over_raw_watch_ms", 50), ("latency.p99_over_raw_watch_ms", 99)):
        samples[key] = [one.at(cut) - other.at(cut) for one, other in zip(ours, raw, strict=True)]
    for name, seconds in cpu_s.items():
        samples[f"latency.{name}cpu_s_per_1000"] = [spent / scale.latency_writes * 1000 for spent in seconds]
    if scale.with_go:
        both = zip(cpu_s[_OURS], cpu_s["client_go_"], strict=False)
        samples["latency.cpu_ratio_to_client_go"] = [one / other for one, other in both]
    return samples


async def peer_marks(peer: Process, writes: Writes, ready: asyncio.Event) -> None:
    """Read the output of a process that prints the label value and the wall-clock time of each change."""
    ahead_s = time.time() - time.perf_counter()
    line_count = len(peer.output.splitlines())
    ready.set()
    while True:
        lines = peer.output.splitlines(keepends=True)[line_count:]
        for line in lines:
            if line.endswith("\n"):
                line_count += 1
                if line[0].isdigit():  # other lines are log lines
                    mark, moment = line.split()
                    writes.seen(int(mark), int(moment) / 1e9 - ahead_s)
        await asyncio.sleep(_LOOK_EVERY_S)


async def _raw_watch(milo: Milo, writes: Writes, ready: asyncio.Event) -> None:
    """Read raw lines, and search them for the label value instead of decoding them."""
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
