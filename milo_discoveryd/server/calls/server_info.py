"""The response of GetServerInfo: the daemon, its sources, its shard group and its limits."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from heapq import nsmallest
from itertools import islice
from typing import Protocol

import msgspec

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.kubeconfigs.kubeconfigs import Kubeconfigs
from milo_discoveryd.rights.rights import Recipient
from milo_discoveryd.rights.scope import ClusterScope
from milo_discoveryd.server.calls import convert, requests, visibility
from milo_discoveryd.server.calls.source_statuses import source_statuses, visible_sources
from milo_discoveryd.sharding import rendezvous
from milo_discoveryd.sharding.status import GroupStatus
from milo_kube.moment import Moment

CLUSTERS_PER_STEP = 250
"""Maximum number of clusters converted or counted per event-loop iteration, which takes about two
milliseconds."""
STEP_S = 0.002
"""How long owners of clusters are computed, or clusters listed, in one iteration of the event loop."""
SHARES_PART = 0.1
"""The part of the time that computing them may take, however often callers ask."""
DRAINING_NAMED = 100
CREDENTIALS_FAILING = "CREDENTIALS_UNAVAILABLE"
"""The message about a failing credential issuer for callers with a limited scope: the issuer's own error may contain
names of other clusters."""


class DaemonInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of the daemon that its responses contain."""

    version: str
    mode: str
    epoch: str
    started_at: float
    heartbeat_s: float
    stalled_s: float


class ShardMembership(Protocol):
    """The membership of this daemon in a shard group."""

    def valid_s(self) -> float | None:
        """Return the seconds for which the present ownership is valid; None while the daemon may engage nothing."""

    def status(self) -> GroupStatus: ...


class DaemonDescription:
    """Describes the daemon to a caller, within the caller's scope."""

    def __init__(self, fleet: Fleet, kubeconfigs: Kubeconfigs, info: DaemonInfo) -> None:
        self._fleet = fleet
        self._kubeconfigs = kubeconfigs
        self._info = info
        self._shares = _Shares(fleet)

    async def describe(
        self,
        scope: ClusterScope,
        to: Recipient | None,
        *,
        streams: int,
        shard: ShardMembership | None,
        now: Moment,
        turn: Callable[[], Awaitable[None]],
    ) -> pb.GetServerInfoResponse:
        """`turn` waits until the caller may read more clusters."""
        sources = visible_sources(self._fleet.sources, scope)
        counts = [await _counts(followed.engagements, scope, turn) for followed in sources]
        source, *statuses = source_statuses(self._fleet.sources, scope, now)
        issuers = [
            followed
            for followed in self._kubeconfigs.health()
            if to is not None
            and to.terms.allow(followed.name)
            # The name of an issuer may reveal the names of its sources.
            and (not followed.sources or any(map(scope.covers_source, followed.sources)))
        ]
        problem = None if scope.is_everything else CREDENTIALS_FAILING
        max_ttl_s = self._kubeconfigs.max_ttl_s
        return pb.GetServerInfoResponse(
            version=self._info.version,
            mode=self._info.mode,
            incarnation=self._info.epoch,
            started_at=convert.timestamp(self._info.started_at),
            source=source,
            sources=[
                pb.Source(
                    name=followed.name,
                    kind=followed.description.kind,
                    status=status,
                    synced=followed.synced,
                    counts=pb.FleetCounts(**visible),
                    context=followed.description.context if scope.is_everything else "",
                )
                for followed, status, visible in zip(sources, statuses, counts, strict=False)
            ],
            context=self._fleet.sources[0].description.context if scope.is_everything and not statuses else "",
            synced=all(followed.synced for followed in sources),
            counts=pb.FleetCounts(**sum(counts, visibility.VisibleCounts()), subscribers=streams),
            sharding=await self._sharding(scope, shard),
            credential_issuers=[convert.credential_issuer(followed, problem) for followed in issuers],
            limits=pb.Limits(
                max_kubeconfig_ttl=convert.duration(max_ttl_s if to is None else to.terms.ttl_s(max_ttl_s)),
                default_heartbeat_interval=convert.duration(self._info.heartbeat_s),
                stalled_timeout=convert.duration(self._info.stalled_s),
                max_page_size=requests.MAX_PAGE_SIZE,
                max_filter_bytes=requests.MAX_FILTER_BYTES,
            ),
        )

    async def _sharding(self, scope: ClusterScope, shard: ShardMembership | None) -> pb.Sharding | None:
        if shard is None:
            return None
        status, valid_s = shard.status(), shard.valid_s()
        message = convert.sharding(status)
        if valid_s is not None:
            message.valid_for.CopyFrom(convert.duration(valid_s))
        if not scope.is_everything:
            del message.members[:]
            message.problem = ""
            return message
        clusters = await self._shares.by(status.weights)
        for member in message.members:
            member.clusters = clusters[member.name]
        message.draining.extend(nsmallest(DRAINING_NAMED, self._fleet.releases))
        return message


class _Shares:
    """The number of clusters that each member of the shard group owns, for all callers.

    Each takes a hash for each member, and there can be hundreds of members. So one call at a time counts them, and the
    others use its result."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._counting = asyncio.Lock()
        self._weights: Mapping[str, float] = {}
        self._counts: Counter[str | None] = Counter()
        self._until = 0.0

    async def by(self, weights: Mapping[str, float]) -> Counter[str | None]:
        """Return the clusters by member; a recent result if the members have not changed since."""
        async with self._counting:
            if weights != self._weights or time.monotonic() >= self._until:
                worked = await self._count(weights)
                self._until = time.monotonic() + worked / SHARES_PART
            return self._counts

    async def _count(self, weights: Mapping[str, float]) -> float:
        """Count the clusters, and return how long this worked."""
        counts: Counter[str | None] = Counter()
        worked, began = 0.0, time.monotonic()
        for name in [name for name, record in self._fleet.items() if record.target is not None]:
            counts[rendezvous.owner(name, weights)] += 1
            if (step := time.monotonic() - began) >= STEP_S:
                worked += step
                await asyncio.sleep(0)
                began = time.monotonic()
        self._weights, self._counts = weights, counts
        return worked + time.monotonic() - began


async def _counts(
    engagements: Engagements, scope: ClusterScope, turn: Callable[[], Awaitable[None]]
) -> visibility.VisibleCounts:
    if scope.is_everything:
        return visibility.total_counts(engagements)
    await turn()
    total, records = visibility.VisibleCounts(), iter([*engagements.items()])
    while batch := [*islice(records, CLUSTERS_PER_STEP)]:
        total += visibility.visible_counts(batch, scope)
        await turn()
    return total
