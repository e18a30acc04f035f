"""A small fleet, as in most installations: the daemon's cost beside a bare grpc.aio server."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from bench import daemon as daemons
from bench.bare import bare
from bench.milo import Milo
from bench.process import Process
from bench.setting import Samples, Setting
from bench.subscribers import Subscriber

_PROJECTS = 100


class Started(NamedTuple):
    seconds: float
    """Time from the start of the process until a subscriber has everything."""
    rss_mib: float


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    rounds = 2 * scale.rounds + 1
    ours, bares = [], []
    async with setting.milo(_PROJECTS) as milo:
        batches = await _batches(setting, milo)
        for _ in range(rounds):  # alternating, so that other load affects both
            ours.append(await _daemon(setting, milo))
            bares.append(await _bare(setting, batches))
    async with setting.milo(scale.small) as milo:
        larger = [await _daemon(setting, milo) for _ in range(scale.rounds)]
    return {
        "small.rss_mib": [run.rss_mib for run in ours],
        "small.bare_rss_mib": [run.rss_mib for run in bares],
        "small.start_s": [run.seconds for run in ours],
        "small.bare_start_s": [run.seconds for run in bares],
        "small.start_ratio": [mine.seconds / theirs.seconds for mine, theirs in zip(ours, bares, strict=True)],
        "small.rss_1k_mib": [run.rss_mib for run in larger],
    }


async def _batches(setting: Setting, milo: Milo) -> list[bytes]:
    """Return the batches that a subscriber receives."""
    batches: list[bytes] = []
    async with (
        daemons.daemon(milo.access.kubeconfig, setting.directory) as daemon,
        _subscribed(daemon.address) as first,
    ):
        first.on_batch = batches.append
        await first.until_synced()
    return batches


async def _daemon(setting: Setting, milo: Milo) -> Started:
    began = time.perf_counter()
    async with daemons.daemon(milo.access.kubeconfig, setting.directory, http_listen="127.0.0.1:0") as daemon:
        return await _synced(daemon, daemon.address, began)


async def _bare(setting: Setting, batches: list[bytes]) -> Started:
    began = time.perf_counter()
    async with bare(batches, setting.directory) as server:
        return await _synced(server, server.address, began)


async def _synced(process: Process, address: str, began: float) -> Started:
    async with _subscribed(address) as subscriber:
        await subscriber.until_synced()
        return Started(time.perf_counter() - began, process.rss_mib)


@asynccontextmanager
async def _subscribed(address: str) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(address)
    try:
        yield subscriber
    finally:
        await subscriber.close()
