"""Milo's own provider in Go, beside the daemon on the same server: until all is engaged, and what each project takes.

The provider makes a client and a cache for each project, which the daemon doesn't: its subscribers make their own.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench import daemon as daemons
from bench import peers
from bench.milo import Milo
from bench.process import Process
from bench.setting import Samples, Setting
from bench.subscribers import Subscriber

_LOOK_EVERY_S = 0.05
_WITHIN_S = 900.0
_KEYS = ("seconds", "rss_mib", "goroutines")


async def measure(setting: Setting) -> Samples:
    few, many = sizes = setting.scale.provider
    theirs: dict[int, dict[str, float | None]] = {}
    ours: dict[int, float] = {}
    for count in sizes:
        async with setting.milo(count) as milo:
            ours[count] = await _ours_s(milo, setting.directory)
            with_go = setting.scale.with_go
            theirs[count] = await _theirs(milo, setting.directory, count) if with_go else dict.fromkeys(_KEYS)
    at_first, ours_kib = await _ours_kib(setting)
    theirs_kib = _each(theirs[few]["rss_mib"], theirs[many]["rss_mib"], (many - few) / 1024)
    found: dict[str, float | None] = {f"provider.{count}.{key}": theirs[count][key] for count in sizes for key in _KEYS}
    for count in sizes:
        found[f"provider.{count}.ours_seconds"] = ours[count]
        found[f"provider.{count}.ratio"] = _ratio(ours[count], theirs[count]["seconds"])
    found["provider.kib_per_project"] = theirs_kib
    found["provider.ours_kib_per_project"] = ours_kib
    found["provider.ours_kib_per_project_at_first"] = at_first
    found["provider.memory_ratio"] = _ratio(ours_kib, theirs_kib)
    found["provider.goroutines_per_project"] = _each(theirs[few]["goroutines"], theirs[many]["goroutines"], many - few)
    return {key: [] if value is None else [value] for key, value in found.items()}


async def _ours_s(milo: Milo, directory: Path) -> float:
    began = time.perf_counter()
    async with _subscribed(milo, directory):
        return time.perf_counter() - began


async def _ours_kib(setting: Setting) -> tuple[float, float]:
    """What each project takes: as soon as a subscriber has all, and once the daemon has let go of what it kept for
    others who might come. Between sizes that the provider takes hours for: of ours a few hundred are noise."""
    mib: list[tuple[float, float]] = []
    for count in (setting.scale.clusters, setting.scale.large):
        async with setting.milo(count) as milo, _subscribed(milo, setting.directory) as daemon:
            at_first = daemon.rss_mib
            await asyncio.sleep(setting.scale.settles_s)
            mib.append((at_first, daemon.rss_mib))
    projects = setting.scale.large - setting.scale.clusters
    at_first, settled = ((large - small) * 1024 / projects for small, large in zip(*mib, strict=True))
    return at_first, settled


@asynccontextmanager
async def _subscribed(milo: Milo, directory: Path) -> AsyncIterator[daemons.Daemon]:
    """To a new daemon, with all that there is."""
    async with daemons.daemon(milo.access.kubeconfig, directory) as daemon:
        subscriber = Subscriber(daemon.address)
        await subscriber.until_synced()
        yield daemon
        await subscriber.close()


async def _theirs(milo: Milo, directory: Path, count: int) -> dict[str, float | None]:
    binary = peers.provider()
    if binary is None:
        return dict.fromkeys(_KEYS)
    began = time.perf_counter()
    async with _running(
        Process([str(binary), f"--kubeconfig={milo.access.kubeconfig}"], directory / "peer.log")
    ) as peer:
        async with asyncio.timeout(_WITHIN_S):
            while peer.said.count(" ENGAGED ") < count:
                peer.check()
                await asyncio.sleep(_LOOK_EVERY_S)
        took_s = time.perf_counter() - began
        return {"seconds": took_s, "rss_mib": peer.rss_mib, "goroutines": await _goroutines(peer)}


async def _goroutines(peer: Process) -> float:
    peer.signal(signal.SIGUSR1)
    while True:
        for line in peer.said.splitlines(keepends=True):
            if " GOROUTINES " in line and line.endswith("\n"):
                return float(line.split()[-1])
        peer.check()
        await asyncio.sleep(_LOOK_EVERY_S)


@asynccontextmanager
async def _running(process: Process) -> AsyncIterator[Process]:
    try:
        yield process
    finally:
        await process.end()


def _each(one: float | None, other: float | None, between: float) -> float | None:
    return None if one is None or other is None else (other - one) / between


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs
