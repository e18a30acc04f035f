"""Changes all over the fleet, hundreds a second, for minutes: how late subscribers hear of them, and what stays behind.

One subscriber keeps the whole fleet as it is told of it. At the end that is held against a list; and each stream's
revisions must be a chain, in which no batch is missing and nothing begins anew.
"""

import asyncio
import re
import time
from statistics import median, quantiles

from bench.daemon import Daemon
from bench.milo import SandboxMilo
from bench.projects import MARK
from bench.setting import Figures, Setting
from bench.subscribers import Subscriber, meanwhile, synced
from milo_discovery import DiscoveryClient
from milo_discovery._gen import discovery_pb2 as pb

_MOMENT = re.compile(rb"%s\x12.([0-9]+\.[0-9]+)" % MARK.encode(), re.DOTALL)
_DISENGAGED = bytes([pb.ClusterEvent.TYPE_FIELD_NUMBER << 3, pb.ClusterEvent.TYPE_DISENGAGED])
_WEIGHED_EVERY_S = 1.0
_END, _END_WITHIN_S = "end", 60.0
_WARM_UP = 0.25
"""Of the time: by then the daemon remembers as much of the past as it ever will, or nearly."""


async def steady(setting: Setting) -> Figures:
    """The usual fleet, and what memory does."""
    scale = setting.scale
    return await _measure("churn", setting, scale.clusters, scale.churn_subscribers)


async def crowded(setting: Setting) -> Figures:
    """A large fleet, and hundreds of subscribers."""
    scale = setting.scale
    return await _measure("fleet_50k", setting, scale.fleet, scale.fleet_subscribers)


async def _measure(key: str, setting: Setting, clusters: int, count: int) -> Figures:
    scale = setting.scale
    async with setting.daemon(clusters) as (milo, daemon), synced(daemon.address, count) as subscribers:
        if not isinstance(milo, SandboxMilo):
            return {}  # no real server takes so many writes on a machine that has to measure as well
        keeper = _Keeper(Subscriber(daemon.address))
        await keeper.subscriber.until_synced()
        heard = [_Heard(each) for each in (*subscribers, keeper.subscriber)]
        weights: list[float] = []
        async with meanwhile([_weigh(daemon, weights), *(each.run() for each in heard)]):
            spent, began = daemon.cpu_s, time.perf_counter()
            await milo.churn(scale.changes_per_s, scale.churn_s)
            took_s, cpu_s = time.perf_counter() - began, daemon.cpu_s - spent
            await milo.burst(0, 1, 1, _END)
            async with asyncio.timeout(_END_WITHIN_S):
                await keeper.ended.wait()
            differences = await _differences(daemon.address, keeper.fleet)
        await keeper.subscriber.close()
    late_ms = [1000 * late for each in heard for late in each.late_s]
    later = weights[int(len(weights) * _WARM_UP) :]
    third = len(later) // 3 + 1
    return {
        f"{key}.p50_ms": median(late_ms),
        f"{key}.p99_ms": quantiles(late_ms, n=100)[98],
        f"{key}.resets": float(sum(each.resets for each in heard)),
        f"{key}.gaps": float(sum(each.gaps for each in heard)),
        f"{key}.differences": float(differences),
        f"{key}.changes": scale.changes_per_s * scale.churn_s,
        f"{key}.cpu_percent": 100 * cpu_s / took_s,
        f"{key}.rss_mib": weights[-1],
        f"{key}.growth_percent": 100 * (median(later[-third:]) / median(later[:third]) - 1),
    }


class _Heard:
    """What a subscriber heard, as far as it is looked into: of each batch, its oldest change."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self.late_s: list[float] = []
        self.resets = 0
        self.gaps = 0

    async def run(self) -> None:
        subscriber = self._subscriber
        while True:
            before = subscriber.revision
            await subscriber.read()
            now = time.perf_counter()
            self.gaps += subscriber.batch.previous_revision != before
            self.resets += subscriber.batch.reset
            for event in subscriber.batch.events:
                # As last known, where it was disengaged: the mark is then that of an earlier change.
                if not event.startswith(_DISENGAGED) and (moment := _MOMENT.search(event)):
                    self.late_s.append(now - float(moment[1]))
                    break


class _Keeper:
    """Has the fleet as it is told of it: of each cluster, its incarnation and its mark."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.fleet: dict[str, tuple[str, str]] = {}
        self.ended = asyncio.Event()
        subscriber.on_batch = self._apply

    def _apply(self, data: bytes) -> None:
        for event in pb.WatchClustersResponse.FromString(data).events:
            cluster = event.cluster
            if event.type == pb.ClusterEvent.TYPE_DISENGAGED:
                del self.fleet[cluster.name]
                continue
            self.fleet[cluster.name] = (cluster.incarnation, cluster.labels[MARK])
            if cluster.labels[MARK] == _END:
                self.ended.set()


async def _weigh(daemon: Daemon, weights: list[float]) -> None:
    while True:
        weights.append(daemon.rss_mib)
        await asyncio.sleep(_WEIGHED_EVERY_S)


async def _differences(address: str, kept: dict[str, tuple[str, str]]) -> int:
    async with DiscoveryClient(address) as client:
        listed = {each.name: (each.incarnation, each.labels[MARK]) for each in await client.list()}
    return len(set(listed.items()) ^ set(kept.items()))
