"""A source of changes that lists and watches each kind in each engaged cluster."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Unpack

from milo_discovery.cluster_api import IDLE_S, USER_AGENT, ClusterApi
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.fleet import DiscoveryState, Fleet, FleetClient
from milo_discovery.model import Cluster, DisengageReason, SourceState
from milo_discovery.options import WatchOptions
from milo_kube.api_server import Pools
from milo_kube.cache_budget import CacheBudget, CacheLimits
from milo_kube.collection_follower import CollectionFollower, FollowerState
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.task_groups import unwrap_single_error
from milo_kube.tenants import Tenant, tenant_of
from milo_objects.first_lists import FirstLists
from milo_objects.followed_scope import FollowedScope
from milo_objects.kinds import Kind
from milo_objects.projection import SeenObject
from milo_objects.scope import (
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    FleetState,
    Forbidden,
    NotServed,
    ObjectChanged,
    ObjectGone,
    ObjectStore,
    OverBudget,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    ScopeState,
    Stale,
    Synced,
)

log = logging.getLogger("milo_objects")

_REFLECTION: Final = ReflectorPolicy(page_size=500)
_PROBLEMS: Final[dict[FollowerState, type[Stale | Forbidden | NotServed | OverBudget]]] = {
    "stale": Stale,
    "forbidden": Forbidden,
    "not_served": NotServed,
    "over_budget": OverBudget,
}


class FollowedFleet:
    """A source that follows the engaged clusters of a DiscoveryClient. `options` select the clusters.

    It begins the lists of many clusters at a limited rate. What of one cluster fails is listed again, and ends nothing.
    """

    def __init__(
        self,
        client: FleetClient,
        *,
        limits: CacheLimits = CacheLimits(),  # noqa: B008  (immutable)
        **options: Unpack[WatchOptions],
    ) -> None:
        self._client = client
        self._limits = limits
        self._options = options
        self._following: _FollowedClusters | None = None
        self.problems: Mapping[str, str] = {}
        """Why not all engaged clusters of a source are known, by the name of the source; empty if they are."""

    async def run(self, kinds: Sequence[Kind], store: ObjectStore) -> None:
        """Follow the kinds until canceled. Raises errors of the daemon that a retry cannot fix."""
        options = self._options.copy()
        options["include_kubeconfigs"] = True
        options["confirm_releases"] = False  # a reader has no work to finish: it is told of the end at once
        fleet = Fleet(self._client, **options)
        # Imported here because the daemon's image, which publishes objects, can be without h2.
        from milo_kube.http.http2 import Http2Connection  # noqa: PLC0415

        pools = Pools(user_agent=USER_AGENT, idle_s=IDLE_S, http2=Http2Connection)
        following = self._following = _FollowedClusters(kinds, store, pools, CacheBudget(self._limits))
        fleet.on_engage(following.follow)
        fleet.on_disengage(following.ended)
        try:
            with unwrap_single_error():
                async with asyncio.TaskGroup() as tasks:
                    states = tasks.create_task(self._report_fleet(fleet, following, store), name="state of discovery")
                    await fleet.run()
                    states.cancel()
        finally:
            await pools.aclose()

    async def _report_fleet(self, fleet: Fleet, following: _FollowedClusters, store: ObjectStore) -> None:
        while True:
            seen = fleet.discovery
            for cluster in fleet.clusters.values():  # all are known to the store before it is told that these are all
                following.engage(cluster)
            self.problems = source_problems(seen)
            store.apply(FleetChanged(fleet_state(seen)))
            await fleet.discovery_changed(since=seen)

    async def relist(self, scope: Scope) -> None:
        """List a scope again, and return when the list is complete; at once if the scope is not followed."""
        if self._following is not None and (followed := self._following.scopes.get(scope)) is not None:
            await followed.relist()


def fleet_state(found: DiscoveryState) -> FleetState:
    """Return whether all engaged clusters are known."""
    pending = found.freshness.pending_sources
    if not found.synced or pending:
        return Pending(found.since)
    if not found.connected:
        return Stale(found.since, found.problem)
    stale = [source for source in found.freshness.sources if source.state is SourceState.STALE]
    if not stale:
        return Synced(found.since)
    problem = "; ".join(f"{source.name or 'the source'} is stale: {source.message}" for source in stale)
    return Stale(min(source.last_contact or source.since or found.since for source in stale), problem)


def source_problems(found: DiscoveryState) -> dict[str, str]:
    """Return why not all engaged clusters of a source are known, by the name of the source; empty if they are.

    The daemon's messages, which may name clusters and servers, are not part of it: every reader of NATS receives it.
    """
    if not found.synced:
        return {}
    problems = {
        source.name: "the source is stale" if source.state is SourceState.STALE else ""
        for source in found.freshness.sources
    }
    problems.update(dict.fromkeys(found.freshness.pending_sources, "its first list is not complete"))
    problems = problems or {"": ""}
    return problems if found.connected else dict.fromkeys(problems, "the daemon cannot be reached")


class _FollowedClusters:
    """The followed clusters."""

    def __init__(self, kinds: Sequence[Kind], store: ObjectStore, pools: Pools, budget: CacheBudget) -> None:
        self._kinds = kinds
        self._store = store
        self._pools = pools
        self._budget = budget
        self._first_lists = FirstLists()
        self.scopes: dict[Scope, _RepeatedFollower] = {}
        self._engagements: dict[str, tuple[EngagedCluster, FleetCluster]] = {}
        """The clusters, and as they were when they were engaged: the daemon may assign another incarnation later."""

    def engage(self, cluster: EngagedCluster) -> FleetCluster:
        """Make a cluster known to the store, before it is followed."""
        known, engaged = self._engagements.get(cluster.name, (cluster, None))
        if engaged is None:
            engaged = _fleet_cluster(cluster.current, cluster.current.incarnation)
            self._engagements[cluster.name] = cluster, engaged
        if known is cluster:  # otherwise the end of the former engagement comes first
            self._store.apply(ClusterChanged(_fleet_cluster(cluster.current, engaged.incarnation)))
        return engaged

    async def follow(self, cluster: EngagedCluster) -> None:
        """Follow a cluster until it is disengaged. Called again after an error."""
        incarnation = self.engage(cluster).incarnation
        scopes = [(kind, Scope(cluster.name, incarnation, kind.resource)) for kind in self._kinds]

        def tenant() -> Tenant:
            return tenant_of(cluster.current)

        try:
            async with cluster.credentials() as credentials:
                api = ClusterApi(cluster.name, credentials, self._pools, proxy=cluster.proxy)
                try:
                    with unwrap_single_error():
                        async with asyncio.TaskGroup() as tasks:
                            for kind, scope in scopes:
                                make = functools.partial(
                                    ScopeFollower,
                                    *(api, kind, scope, self._store),
                                    budget=self._budget,
                                    tenant=tenant,
                                )
                                followed = self.scopes[scope] = _RepeatedFollower(make)
                                tasks.create_task(
                                    self._follow_scope(followed, tenant()), name=f"{kind} of {cluster.name}"
                                )
                            await self._update(cluster, incarnation, [self.scopes[scope] for _, scope in scopes])
                finally:
                    for _, scope in scopes:
                        self.scopes.pop(scope, None)
                    await api.aclose()
        except Exception as error:
            for _, scope in scopes:
                self._store.apply(ScopeChanged(scope, Stale(datetime.now(UTC), f"InternalError: {error!r}")))
            raise

    async def _follow_scope(self, followed: _RepeatedFollower, tenant: Tenant) -> None:
        await self._first_lists.turn(tenant)
        await followed.run()

    async def _update(self, cluster: EngagedCluster, incarnation: str, followed: Sequence[_RepeatedFollower]) -> None:
        seen = cluster.current
        while True:
            before, seen = seen, await cluster.updated(since=seen)
            if before.endpoint != seen.endpoint:  # watches are open at the former one, which may be another's by now
                for follower in followed:
                    follower.list_again()
            self._store.apply(ClusterChanged(_fleet_cluster(seen, incarnation)))

    async def ended(self, cluster: EngagedCluster) -> None:
        """Called when a cluster was disengaged, and `follow` has ended."""
        known, engaged = self._engagements.get(cluster.name, (None, None))
        if engaged is not None and known is cluster:
            del self._engagements[cluster.name]
            reason = (cluster.is_end_reported and cluster.disengage_reason) or DisengageReason.UNSPECIFIED
            self._store.apply(ClusterEnded(_fleet_cluster(cluster.current, engaged.incarnation), reason.name))


def _fleet_cluster(cluster: Cluster, incarnation: str) -> FleetCluster:
    return FleetCluster(
        name=cluster.name,
        incarnation=incarnation,
        uid=cluster.uid,
        source=cluster.source,
        organization=cluster.organization,
        endpoint=cluster.endpoint,
        labels=dict(cluster.labels),
    )


class _RepeatedFollower:
    """A follower that another one can replace, which lists the scope again. The objects stay in the store."""

    __slots__ = ("_follower", "_limit", "_make")

    def __init__(self, make: Callable[[], ScopeFollower]) -> None:
        self._make = make
        self._follower = make()
        self._follower.reported()
        self._limit: asyncio.Timeout | None = None

    async def run(self) -> None:
        while True:
            limit = self._limit = asyncio.timeout(None)
            try:
                async with limit:
                    await self._follower.run()
            except TimeoutError:
                if not limit.expired():
                    raise

    def list_again(self) -> None:
        self._follower.list_again()

    async def relist(self) -> None:
        """Wait for a list that begins now. Earlier calls that still wait, wait for that too."""
        listed = self._follower.listed
        if listed is None or listed.is_set():
            listed = asyncio.Event()
        self._follower.listed = None
        self._follower = self._make()
        self._follower.listed = listed
        if self._limit is not None and self._limit.when() is None:
            self._limit.reschedule(0.0)
        await listed.wait()


class ScopeFollower(CollectionFollower[SeenObject, ObjectChanged | ObjectGone]):
    """Lists and watches one kind in one cluster, and applies the changes to the store."""

    __slots__ = ("_store", "_tenant", "listed", "scope")

    def __init__(
        self,
        api: ClusterApi,
        kind: Kind,
        scope: Scope,
        store: ObjectStore,
        *,
        budget: CacheBudget,
        tenant: Callable[[], Tenant],
    ) -> None:
        self.scope = scope
        self.listed: asyncio.Event | None = None
        """Set by its first complete list; None, which saves memory, if nobody waits for it."""
        self._store = store
        self._tenant = tenant
        super().__init__(api, kind, FollowedScope(scope, store), _REFLECTION, budget=budget, cluster=api.name, log=log)

    @property
    def tenant(self) -> Tenant:
        return self._tenant()

    def changed(self, change: ObjectChanged | ObjectGone) -> None:
        self._store.apply(change)

    def synced(self) -> None:
        if self.listed is not None:
            self.listed.set()
        self.reported()

    def failed(self) -> None:
        self.reported()

    def reported(self) -> None:
        self._store.apply(ScopeChanged(self.scope, scope_state(self)))

    def exceed(self, problem: str) -> None:
        self._store.apply(ScopeEnded(self.scope, ScopeEnd.OVER_BUDGET))
        super().exceed(problem)


def scope_state(follower: CollectionFollower[Any, Any]) -> ScopeState:
    """Return the state of what a follower follows."""
    state, since = follower.state, datetime.fromtimestamp(follower.since, UTC)
    if state == "synced":
        return Synced(since)
    return Pending(since) if state == "starting" else _PROBLEMS[state](since, follower.problem)
