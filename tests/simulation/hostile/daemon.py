"""The daemon's code between the transports to API servers and the RPCs, composed as in `milo_discoveryd/app.py`."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.config import Settings
from milo_discoveryd.connectivity.prober import Prober
from milo_discoveryd.connectivity.reachability import ProbeOutcome, ProbePolicy, ProbeReached, ProbeSchedule
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.kubeconfig_secret import KubeconfigSecretIssuer, SecretPlace
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourceDescription, SourcePolicy
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.kubeconfigs import CredentialLimits, IssuerAssignment, Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import Issuance
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.log.change_log import FRAME_EVICTION_INTERVAL_S, ChangeLog, Retention
from milo_discoveryd.log.events import EventType
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.quota import QuotaLimits
from milo_discoveryd.rights.rights import Grant, Rights, RightsRule
from milo_discoveryd.rights.scope import ClusterScope
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.server.calls.access import AccessControl
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.server.calls.grpc_errors import CallError
from milo_discoveryd.server.calls.revision import TokenSigner
from milo_discoveryd.server.calls.server_info import DaemonInfo
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.sources.declarative import DeclarativeKind
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceKind, SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.sources.project_control_plane import ProjectControlPlaneKind
from milo_discoveryd.sources.service_consumer import ServiceConsumerKind
from milo_discoveryd.state_file.encoding import StateOrigin, StoredFleet, decode
from milo_discoveryd.state_file.state_file import WRITE_INTERVAL_S
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.wiring.configured_source import removal_limits
from milo_discoveryd.wiring.source import Discovery
from milo_kube.credential import Credential, Secret
from milo_kube.label_selector import parse
from milo_kube.reflect.reflector import ReflectorPolicy
from tests.simulation.hostile.loop import BusyLoop
from tests.simulation.hostile.upstream import LATENCY_S, Upstream
from tests.support.stored_fleets import encode

SERVICE = "dns.example.com"
HONEST, HOSTILE = (Caller(listener="tcp", uid=uid) for uid in (1, 2))
"""The callers of the two tenants."""
DECLARED = Resource("example.com", "v1", "clusters", namespaced=True)
CALM = "calm"
"""The source whose API server has objects of the honest tenant only."""
KINDS: dict[str, Callable[[], SourceKind]] = {
    "consumers": lambda: ServiceConsumerKind(services=(SERVICE,)),
    "declared": lambda: parse_group(
        DeclarativeKind,
        {
            "resource": {"group": "example.com", "version": "v1", "plural": "clusters", "namespaced": True},
            "name": "{metadata.namespace}.{metadata.name}",
            "secret": {"name": "{spec.secret}"},
            "endpoint": {"secret_key": "kubeconfig"},
        },
    ),
    "planes": ProjectControlPlaneKind,
    CALM: ProjectKind,
}
_SETTINGS = Settings()
_SERVER = "https://api.example.com"
_EPOCH = "0" * 16
RETENTION_S = 60.0


class TenantsIssuer:
    """An issuer that takes long for the clusters whose organizations are slow."""

    name, type, scope, takes_ttl = "tenants", "fake", Scope.CLUSTER, True

    def __init__(self, loop: BusyLoop) -> None:
        self._loop = loop
        self._minted = 0

    async def mint(self, request: MintRequest) -> IssuedCredential:
        self._minted += 1
        await asyncio.sleep(2 * LATENCY_S)
        now = self._loop.wall
        credential = Credential(token=Secret(f"token-{self._minted}"))
        return IssuedCredential(credential=credential, issued_at=now, expires_at=now + request.ttl_s)


class StateOfSource:
    """The state file of one source, which outlives restarts. Another thread writes and reads it."""

    def __init__(self, loop: BusyLoop, source: str) -> None:
        self.origin = StateOrigin(source, source)
        self._loop = loop
        self._data: bytes | None = None

    async def loaded(self) -> StoredFleet | None:
        with self._loop.paused():
            return None if self._data is None else decode(self._data, self.origin)

    async def save_changes(self, fleet: Callable[[], StoredFleet], changed: Callable[[], Awaitable[None]]) -> None:
        await changed()
        try:
            while True:
                self._write(fleet())
                await asyncio.sleep(WRITE_INTERVAL_S)
                await changed()
        finally:
            self._write(fleet())

    def _write(self, fleet: StoredFleet) -> None:
        with self._loop.paused():
            self._data = encode(fleet)


class Daemon:
    def __init__(
        self, loop: BusyLoop, shared: Upstream, calm: Upstream, states: Mapping[str, StateOfSource], *, drain_s: float
    ) -> None:
        """`shared` is the API server of both tenants; `states` has the state file of each source."""
        self._loop = loop
        metrics = Metrics([*KINDS])
        audit = Audit(metrics.audit)
        journal = Journal(metrics.sources, audit)
        retention = Retention(_SETTINGS.tombstones.count, RETENTION_S)
        self.fleet = Fleet(ChangeLog(encoder(_EPOCH), retention))
        self.probe_s = LATENCY_S
        """How long endpoints of the hostile tenant take to answer probes."""
        self.failed: list[str] = []
        self._calls: set[asyncio.Task[Any]] = set()
        runs: list[Coroutine[Any, Any, None]] = []
        for name, kind in KINDS.items():
            options = SourceOptions(project_server=_SERVER, discovery_server=_SERVER)
            keyed = KeyedSource(kind().follow(options), name, failed=self._failed)
            source = self.fleet.add(self._source(name, keyed, journal, drain_s))
            discovery = Discovery(
                source,
                states[name],
                epoch=_EPOCH,
                policy=ReflectorPolicy(streaming_lists=False, page_size=_SETTINGS.watch.page_size),
                jitter=lambda: 0.5,
                connect_timeout_s=10.0,
                request_timeout_s=30.0,
            )
            api = {"": calm if name == CALM else shared}
            runs.append(discovery.run(api.__getitem__, keyed.collections, keyed.restored_place))
        kubeconfigs = self._kubeconfigs(metrics, audit, shared)
        self.service = Service(
            self.fleet,
            DaemonInfo(
                version="0", mode="sources", epoch=_EPOCH, started_at=loop.wall, heartbeat_s=30.0, stalled_s=300.0
            ),
            metrics.streams,
            kubeconfigs,
            access=AccessControl(_rights(), _quotas(), audit, loop.time),
            signer=TokenSigner(b"of this daemon alone"),
            draw=lambda: 0.5,
        )
        runs += [kubeconfigs.run(), self._evict_frames(), self._prober(metrics).run()]
        self._tasks = [asyncio.create_task(run) for run in runs]

    def _source(self, name: str, keyed: KeyedSource, journal: Journal, drain_s: float) -> ClusterSource:
        limits = removal_limits(_SETTINGS.removals)
        policy = SourcePolicy(
            pending_deletions=lambda: PendingDeletions(lambda: 0.5),
            removals=limits,
            not_ready=NotReadyClusters(_SETTINGS.not_ready_grace.total_seconds(), limits),
            objects_limit=_SETTINGS.watch.objects_limit,
            drain_timeout_s=drain_s,
        )
        description = SourceDescription(name=name, kind=name, server=name)
        return ClusterSource(
            self.fleet.changes, journal.of_source(name), policy, description, keys=keyed.keys, reduce=keyed.reduce
        )

    def _issuer_of_secrets(self, api: Upstream) -> KubeconfigSecretIssuer:
        return KubeconfigSecretIssuer(
            "secrets",
            api,
            origin="shared",
            place=SecretPlace("{secret_namespace}", "{secret}", ClusterObjects(api, "shared", DECLARED)),
            reading="kubeconfig",
            clock=lambda: self._loop.wall,
        )

    def _kubeconfigs(self, metrics: Metrics, audit: Audit, shared: Upstream) -> Kubeconfigs:
        kubeconfigs = Kubeconfigs(
            [
                IssuerAssignment(self._issuer_of_secrets(shared), sources=frozenset({"declared"})),
                IssuerAssignment(TenantsIssuer(self._loop)),
            ],
            Issuance(
                trust=lambda *_: ClusterTrust(authorities=None),
                metrics=metrics.credentials,
                audit=audit,
                draw=lambda: 0.5,
                wall=lambda: self._loop.wall,
            ),
            CredentialLimits(
                _SETTINGS.kubeconfigs.max_ttl.total_seconds(), _SETTINGS.kubeconfigs.default_ttl.total_seconds()
            ),
        )
        self.fleet.changes.add_listener(EventType.DISENGAGED, lambda event: kubeconfigs.disengaged(event.cluster))
        return kubeconfigs

    def _prober(self, metrics: Metrics) -> Prober:
        async def ask(cluster: Cluster) -> ProbeOutcome:
            is_slow = dict(cluster.target.labels).get("tenant") != "honest"
            await asyncio.sleep(self.probe_s if is_slow else LATENCY_S)
            return ProbeReached()

        schedule = ProbeSchedule(ProbePolicy(at_once=20), lambda: 0.5)
        prober = Prober(schedule, ask, self.fleet.connectivity_changed, metrics.probes, self.fleet.needs_probe)
        self.fleet.changes.add_listener(EventType.ENGAGED, lambda event: prober.engaged(event.cluster))
        self.fleet.changes.add_listener(EventType.UPDATED, lambda event: prober.updated(event.cluster))
        self.fleet.changes.add_listener(EventType.DISENGAGED, lambda event: prober.disengaged(event.cluster))
        return prober

    async def _evict_frames(self) -> None:
        while True:
            await asyncio.sleep(FRAME_EVICTION_INTERVAL_S)
            for _ in self.fleet.log.evict_frames():
                await asyncio.sleep(0)

    def watch(
        self, caller: Caller, send: Callable[[bytes], Awaitable[None]], **request: Any
    ) -> "asyncio.Task[pb.WatchClustersResponse | None]":
        return self.call(self.service.watch_clusters(pb.WatchClustersRequest(**request), caller, send))

    def call(self, call: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Serve a call; the caller may be refused."""
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._ended)
        return task

    def check(self) -> None:
        """Raise the error that ended the daemon, if any."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def end(self) -> None:
        self.fleet.releases.clear()
        tasks = [*self._tasks, *self._calls]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _ended(self, call: "asyncio.Task[Any]") -> None:
        self._calls.discard(call)
        error = None if call.cancelled() else call.exception()
        if error is not None and not isinstance(error, CallError):
            self._failed("a call", error)

    def _failed(self, what: str, error: BaseException) -> None:
        self.failed.append(f"exception: {what} failed with {error!r}")


def _rights() -> Rights:
    callers = {"honest": HONEST, "hostile": HOSTILE}
    return Rights(
        tuple(
            RightsRule(
                CallerSelector(uids=frozenset({caller.uid or 0})),
                Grant(rule=tenant, scope=ClusterScope(selector=parse(f"tenant={tenant}"))),
            )
            for tenant, caller in callers.items()
        )
    )


def _quotas() -> QuotaLimits:
    limits = _SETTINGS.limits
    return QuotaLimits(
        streams=limits.streams,
        streams_each=limits.streams_per_caller,
        per_minute_each=limits.kubeconfigs_per_minute,
    )
