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
            ours[count] = await _ours(milo, setting.directory)
            with_go = setting.scale.with_go
            theirs[count] = await _theirs(milo, setting.directory, count) if with_go else dict.fromkeys(_KEYS)
    async with setting.milo(setting.scale.clusters) as milo:
        large = await _ours(milo, setting.directory)
    ours_kib = (large["rss_mib"] - ours[few]["rss_mib"]) * 1024 / (setting.scale.clusters - few)
    theirs_kib = _each(theirs[few]["rss_mib"], theirs[many]["rss_mib"], (many - few) / 1024)
    found: dict[str, float | None] = {f"provider.{count}.{key}": theirs[count][key] for count in sizes for key in _KEYS}
    for count in sizes:
        found[f"provider.{count}.ours_seconds"] = ours[count]["seconds"]
        found[f"provider.{count}.ratio"] = _ratio(ours[count]["seconds"], theirs[count]["seconds"])
    found["provider.kib_per_project"] = theirs_kib
    found["provider.ours_kib_per_project"] = ours_kib
    found["provider.memory_ratio"] = _ratio(ours_kib, theirs_kib)
    found["provider.goroutines_per_project"] = _each(theirs[few]["goroutines"], theirs[many]["goroutines"], many - few)
    return {key: [] if value is None else [value] for key, value in found.items()}


async def _ours(milo: Milo, directory: Path) -> dict[str, float]:
    began = time.perf_counter()
    async with daemons.daemon(milo.access.kubeconfig, directory) as daemon:
        subscriber = Subscriber(daemon.address)
        await subscriber.until_synced()
        took_s = time.perf_counter() - began
        await subscriber.close()
        return {"seconds": took_s, "rss_mib": daemon.rss_mib}


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


def _ratio(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else ours / theirs
