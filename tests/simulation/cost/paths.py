"""The paths whose cost is counted. Each prepares a daemon and some subscribers, and measures one block."""

import asyncio
import gc
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import msgspec

from milo_discoveryd.connectivity.prober import Prober
from milo_discoveryd.connectivity.reachability import ProbeOutcome, ProbePolicy, ProbeReached, ProbeSchedule
from milo_discoveryd.log.change_log import FRAME_EVICTION_INTERVAL_S
from milo_discoveryd.log.events import EventType
from milo_discoveryd.model.cluster import Cluster
from tests.simulation.cost.bed import TOKEN_LIFE_S, Bed, run
from tests.simulation.cost.elements import count_reads
from tests.simulation.cost.kinds import KINDS, measure_kind
from tests.simulation.cost.meter import Meter, MeteredLoop
from tests.simulation.seeded.daemon import HEARTBEAT_S

BURST = 500
SHORT_BURST = 100
"""Short enough that other work in the same callback is visible."""
PAGES = 10
IDLE_S = 4 * HEARTBEAT_S + 1.0
OTHER_SOURCES = 50
_WARM_UP = 10
_CACHED = type(cache(len))
"""The type of functions whose results are cached."""
Path = Callable[[Bed, int], Awaitable[Meter]]


async def _change(bed: Bed, subscribers: int) -> Meter:
    await _follow(bed, subscribers)
    return await _measured(bed, lambda: bed.api.change(100, 1))


async def _burst(bed: Bed, subscribers: int) -> Meter:
    await _follow(bed, subscribers)
    return await _measured(bed, lambda: bed.api.change(100, BURST))


async def _resume(bed: Bed, subscribers: int) -> Meter:
    """Resume after two bursts, which another subscriber received in two batches: a single batch would be cached."""
    await _follow(bed, 1)
    revision = bed.subscribers[0].revision
    bed.api.change(0, BURST)
    await bed.settle()
    bed.api.change(BURST, BURST)
    await bed.settle()
    return await _measured(bed, lambda: bed.subscribe(subscribers, resume_revision=revision))


async def _first_list(bed: Bed, subscribers: int) -> Meter:
    bed.api.answers_lists.clear()
    bed.subscribe(subscribers)
    await bed.settle()
    return await _measured(bed, bed.api.answers_lists.set)


async def _relist(bed: Bed, subscribers: int) -> Meter:
    """Relist without a difference to the state that the list and the watch had."""
    await _follow(bed, subscribers)
    bed.api.prepare_pages()
    return await _measured(bed, bed.api.expire_watch, 5.0)


async def _first_list_end(bed: Bed, subscribers: int) -> Meter:
    """Read the second half of the pages, so that work on the objects of the first half is counted."""
    _wait_at_half(bed)
    bed.subscribe(subscribers)
    await bed.settle()
    return await _measured(bed, bed.api.answers_lists.set)


async def _relist_end(bed: Bed, subscribers: int) -> Meter:
    await _follow(bed, subscribers)
    _wait_at_half(bed)
    bed.api.expire_watch()
    await bed.settle(5.0)
    return await _measured(bed, bed.api.answers_lists.set)


def _replaced(*, keeps_part: bool, renamed: bool) -> Path:
    async def path(bed: Bed, subscribers: int) -> Meter:
        await _follow(bed, subscribers)
        bed.api.replace(bed.clusters // 3 if keeps_part else 0, renamed=renamed)
        bed.api.prepare_pages()
        return await _measured(bed, bed.api.expire_watch, 5.0)

    return path


REPLACED = {
    "recreated": _replaced(keeps_part=False, renamed=False),
    "most recreated": _replaced(keeps_part=True, renamed=False),
    "most renamed": _replaced(keeps_part=True, renamed=True),
    "renamed": _replaced(keeps_part=False, renamed=True),
}
"""Relists after the fleet was replaced, or most of it."""


def _wait_at_half(bed: Bed) -> None:
    bed.api.prepare_pages(bed.clusters // PAGES)
    bed.api.waits_at = bed.clusters // 2
    bed.api.answers_lists.clear()


async def _listing(bed: Bed, subscribers: int) -> Meter:
    """Callers list all clusters in pages, and continue lists that began before."""
    await bed.sync()
    size = bed.clusters // PAGES
    tokens = [await bed.list_pages(size, most=1) for _ in range(subscribers)]
    calls: list[asyncio.Task[str]] = []

    def act() -> None:
        for token in tokens:
            calls.append(asyncio.create_task(bed.list_pages(size, token)))
            calls.append(asyncio.create_task(bed.list_pages(size)))

    meter = await _measured(bed, act)
    assert not any([await call for call in calls]), "each reads its last page"
    return meter


async def _idle(bed: Bed, subscribers: int) -> Meter:
    """Idle for some heartbeats, after the first list was verified."""
    await _follow(bed, subscribers)
    bed.api.prepare_pages()
    await bed.settle(FRAME_EVICTION_INTERVAL_S + 1.0)
    return await _measured(bed, lambda: None, IDLE_S)


def _kind(name: str) -> Path:
    async def path(bed: Bed, subscribers: int) -> Meter:
        del subscribers
        return measure_kind(name, bed.clusters)

    return path


async def _change_beside_sources(bed: Bed, subscribers: int) -> Meter:
    bed.add_sources(OTHER_SOURCES)
    await _follow(bed, subscribers)
    return await _measured(bed, lambda: bed.api.change(100, 1))


async def _snapshot(bed: Bed, subscribers: int) -> Meter:
    """Send a first snapshot: no subscriber has received the fleet before."""
    await bed.sync()
    return await _measured(bed, lambda: bed.subscribe(subscribers))


async def _late_snapshot(bed: Bed, subscribers: int) -> Meter:
    """Send a snapshot while another subscriber still reads a snapshot from before a change."""
    await bed.sync()
    bed.subscribe_slowly()
    await bed.settle()
    bed.api.change(0, 1)
    await bed.settle()
    return await _measured(bed, lambda: bed.subscribe(subscribers))


async def _renewal(bed: Bed, subscribers: int) -> Meter:
    """All credentials are renewed once."""
    await bed.sync()
    bed.subscribe(subscribers, with_kubeconfigs=True)
    await bed.settle(5.0)
    return await _measured(bed, lambda: None, TOKEN_LIFE_S)


async def _probe(bed: Bed, subscribers: int) -> Meter:
    """Clusters are found reachable for the first time."""
    answers = asyncio.Event()

    async def ask(cluster: Cluster) -> ProbeOutcome:
        await answers.wait()
        return ProbeReached()

    fleet = bed.daemon.fleet
    schedule = ProbeSchedule(ProbePolicy(at_once=20), lambda: 0.5)
    prober = Prober(schedule, ask, fleet.connectivity_changed, bed.daemon.ledger, fleet.needs_probe)
    fleet.changes.add_listener(EventType.ENGAGED, lambda event: prober.engaged(event.cluster))
    fleet.changes.add_listener(EventType.UPDATED, lambda event: prober.updated(event.cluster))
    fleet.changes.add_listener(EventType.DISENGAGED, lambda event: prober.disengaged(event.cluster))
    probing = asyncio.create_task(prober.run())
    await _follow(bed, subscribers)
    meter = await _measured(bed, answers.set)
    probing.cancel()
    return meter


PATHS: dict[str, tuple[Path, int]] = {
    "burst": (_burst, 1000),
    "change": (_change, 1000),
    "change_beside_sources": (_change_beside_sources, 1000),
    "first_list": (_first_list, 1000),
    "first_list_end": (_first_list_end, 2000),
    "idle": (_idle, 1000),
    "late_snapshot": (_late_snapshot, 3000),
    "listing": (_listing, 500),
    "probe": (_probe, 1000),
    "relist": (_relist, 1000),
    "relist_end": (_relist_end, 2000),
    "renewal": (_renewal, 10),
    "resume": (_resume, 1000),
    "snapshot": (_snapshot, 1000),
    **{f"kind_{name}": (_kind(name), 1000) for name in KINDS},
}
"""The paths, with the number of clusters."""


def measure(path: Path, clusters: int, subscribers: int) -> Meter:
    """Measure a path after a small run of it, which fills caches with the labels and times that all objects have.

    What other tests left in the caches would make it cheaper.
    """
    product = [vars(module) for name, module in sys.modules.items() if name.startswith("milo_")]
    for cached in [found for names in product for found in names.values() if isinstance(found, _CACHED)]:
        cached.cache_clear()
    _run_path(path, _WARM_UP, subscribers)
    return _run_path(path, clusters, subscribers)


def _run_path(path: Path, clusters: int, subscribers: int) -> Meter:
    async def steps(loop: MeteredLoop) -> Meter:
        bed = Bed(loop, clusters)
        meter = await path(bed, subscribers)
        await bed.end()
        return meter

    return run(steps)


_LARGE_NAMES = f".{'x' * 63}" * 3
"""A long suffix, so that fewer changes would exceed `watch.objects_limit` if the budget counted each change again."""


def long_life(clusters: int, changes: int, stack_above: int = 0) -> Meter:
    """Change each cluster several times, in short bursts. The meter has the longest of all callbacks.

    No list is read and no frames are evicted during these changes: both read the whole fleet.
    """

    async def steps(loop: MeteredLoop) -> Meter:
        bed = Bed(loop, clusters, suffix=_LARGE_NAMES)
        await bed.sync()
        assert bed.would_exceed_limit(changes), "a budget that counts each change again would stay unnoticed"
        bed.subscribe(1)
        await bed.settle(FRAME_EVICTION_INTERVAL_S + 1.0)  # the first list is verified
        meter = Meter(count_reads(clusters // 2, stack_above), counts_functions=False)
        for _ in range(changes):
            for first in range(0, clusters, SHORT_BURST):
                with bed.measured(meter):
                    bed.api.change(first, SHORT_BURST)
                    await bed.settle(0.04)  # all bursts are within one interval of evictions
        await bed.end()
        return meter

    return run(steps)


_SHARED = (type, ModuleType, FunctionType, _CACHED)
"""Types of objects that the whole process shares."""


def tracked_objects(clusters: int) -> Counter[str]:
    """Count the objects of a fleet with one subscriber that the garbage collector tracks, by type."""

    async def steps(loop: MeteredLoop) -> Counter[str]:
        bed = Bed(loop, clusters)
        await _follow(bed, 1)
        for _ in range(3):
            gc.collect()  # stops tracking tuples of strings, and then tuples of such tuples
        tracked = [type(obj) for obj in _reachable(bed.daemon.fleet) if gc.is_tracked(obj)]
        found = Counter([kind.__name__ for kind in tracked if not kind.__module__.startswith("tests.")])
        await bed.end()
        return found

    return run(steps)


def _reachable(obj: object) -> list[object]:
    found = {id(obj): obj}
    waiting = [obj]
    while waiting:
        for referent in _referents(waiting.pop()):
            if id(referent) not in found and not isinstance(referent, _SHARED):
                found[id(referent)] = referent
                waiting.append(referent)
    return [*found.values()]


def _referents(obj: object) -> list[Any]:
    if isinstance(obj, msgspec.Struct):  # the collector does not see the fields of structs with `gc=False`
        return [getattr(obj, field) for field in obj.__struct_fields__]
    return gc.get_referents(obj)


def time_ratio(small: int, large: int, changes: int) -> float:
    """Return the ratio of the shortest CPU time of a change in a large fleet to that in a small one."""

    async def steps(loop: MeteredLoop) -> float:
        beds = [Bed(loop, clusters) for clusters in (small, large)]
        for bed in beds:
            await _follow(bed, 1)
        seconds: list[list[float]] = [[], []]
        for number in range(changes):
            for bed, measured in zip(beds, seconds, strict=True):
                began = time.thread_time()
                bed.api.change(number, 1)
                await bed.settle()
                measured.append(time.thread_time() - began)
        for bed in beds:
            await bed.end()
        return min(seconds[1]) / min(seconds[0])

    return run(steps)


async def _follow(bed: Bed, subscribers: int) -> None:
    """Add subscribers, and wait until they have the whole fleet and some changes."""
    await bed.sync()
    bed.subscribe(subscribers)
    for number in range(_WARM_UP):
        await bed.settle()
        bed.api.change(number, 1)
    await bed.settle()


async def _measured(bed: Bed, act: Callable[[], None], seconds: float = 1.0) -> Meter:
    meter = Meter(count_reads(bed.clusters // 2, stack_above=64))
    with bed.measured(meter):
        act()
        await bed.settle(seconds)
    return meter
