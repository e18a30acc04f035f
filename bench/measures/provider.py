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
    ours: dict[int, dict[str, float]] = {}
    for count in sizes:
        async with setting.milo(count) as milo:
            ours[count] = await _ours(milo, setting)
            with_go = setting.scale.with_go
            theirs[count] = await _theirs(milo, setting.directory, count) if with_go else dict.fromkeys(_KEYS)
    async with setting.milo(setting.scale.clusters) as milo:
        large = await _ours(milo, setting)
    at_first, ours_kib = (
        _each(ours[few][key], large[key], (setting.scale.clusters - few) / 1024) for key in ("synced_mib", "rss_mib")
    )
    theirs_kib = _each(theirs[few]["rss_mib"], theirs[many]["rss_mib"], (many - few) / 1024)
    found: dict[str, float | None] = {f"provider.{count}.{key}": theirs[count][key] for count in sizes for key in _KEYS}
    for count in sizes:
        found[f"provider.{count}.ours_seconds"] = ours[count]["seconds"]
        found[f"provider.{count}.ratio"] = _ratio(ours[count]["seconds"], theirs[count]["seconds"])
    found["provider.kib_per_project"] = theirs_kib
    found["provider.ours_kib_per_project"] = ours_kib
    found["provider.ours_kib_per_project_at_first"] = at_first
    found["provider.memory_ratio"] = _ratio(ours_kib, theirs_kib)
    found["provider.goroutines_per_project"] = _each(theirs[few]["goroutines"], theirs[many]["goroutines"], many - few)
    return {key: [] if value is None else [value] for key, value in found.items()}


async def _ours(milo: Milo, setting: Setting) -> dict[str, float]:
    """`rss_mib` is what it takes once it has let go of what it kept for subscribers who might come at once."""
    began = time.perf_counter()
    async with daemons.daemon(milo.access.kubeconfig, setting.directory) as daemon:
        subscriber = Subscriber(daemon.address)
        await subscriber.until_synced()
        took_s, synced_mib = time.perf_counter() - began, daemon.rss_mib
        await asyncio.sleep(setting.scale.settles_s)
        found = {"seconds": took_s, "synced_mib": synced_mib, "rss_mib": daemon.rss_mib}
        await subscriber.close()
        return found


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
