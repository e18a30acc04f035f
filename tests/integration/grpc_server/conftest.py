"""Fixtures: a real gRPC server with a fleet that the test feeds instead of an API server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.kubeconfigs.kubeconfigs import CredentialLimits, IssuerAssignment, Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import Issuance
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.events import EventType
from milo_discoveryd.model.cluster import Target, key_of
from milo_discoveryd.model.observation import NotReady, ObjectFields, Outside, Ready
from milo_discoveryd.rights.quota import QuotaLimits
from milo_discoveryd.rights.rights import Rights
from milo_discoveryd.server.calls.access import AccessControl
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.server.calls.revision import TokenSigner
from milo_discoveryd.server.calls.server_info import DaemonInfo
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.server.connections.bearer_authentication import Reviewer
from milo_discoveryd.server.connections.listener import Listener, UnixSocket
from milo_discoveryd.server.server import Server
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import MeasuredDaemon, Metrics
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.eventually import LIMIT_S
from tests.support.sources import new_source

EPOCH = "0123456789abcdef"
NO_RULES = Rights()
PLENTY = QuotaLimits(streams=1000, streams_each=1000, per_minute_each=100_000)


def ready(name: str, *, uid: str = "", version: str = "1", **labels: str) -> Ready:
    target = Target(
        name=name, uid=uid or f"uid-{name}", place=(f"https://{name}.test",), labels=tuple(sorted(labels.items()))
    )
    return Ready(target.uid, version, target)


def not_ready(name: str, *, uid: str = "", version: str = "2", **labels: str) -> NotReady:
    fields = ObjectFields(name, "", tuple(sorted(labels.items()))) if labels else None
    return NotReady(name, uid or f"uid-{name}", version, "condition Ready is False", fields=fields)


class AuditedLines:
    """An audit file that keeps its lines in memory."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self._lines = lines

    def write(self, line: bytes) -> None:
        self._lines.append(json.loads(line))


class Harness:
    """The fleet, the kubeconfigs and the gRPC server; the test feeds the fleet instead of an API server."""

    object_uid: Callable[[str], str] = staticmethod(str)
    """Return the UID of the watched object for the UID of its project."""
    has_rival = False
    """Whether the API server of another source copies the UIDs of all objects."""
    is_restarted = False
    """Whether the clusters are known from an earlier run before they are listed."""

    def __init__(
        self,
        socket: Path,
        *,
        heartbeat_s: float,
        stalled_s: float,
        retention: Retention,
        sources: Sequence[IssuerAssignment],
        per_second: float,
        authorities: bytes,
        rights: Rights,
        limits: QuotaLimits,
        drain_timeout_s: float = 0.0,
        listeners: Sequence[Listener] = (),
        reviewer: Reviewer | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.audited: list[dict[str, Any]] = []
        self.audit = Audit(self.metrics.audit, AuditedLines(self.audited))
        self.kubeconfigs = Kubeconfigs(
            sources,
            Issuance(
                trust=lambda *_: ClusterTrust(authorities),
                metrics=self.metrics.credentials,
                audit=self.audit,
                address=lambda: "unix:///d.sock",
            ),
            CredentialLimits(900, 600, per_second=per_second),
        )
        journal = Journal(self.metrics.sources, self.audit)
        self.fleet = Fleet(ChangeLog(encoder(EPOCH), retention))
        self.followed = new_source(journal, fleet=self.fleet, drain_timeout_s=drain_timeout_s)
        self.rival = new_source(journal, fleet=self.fleet, name="rival") if self.has_rival else None
        self.metrics.follow(
            MeasuredDaemon(
                fleet=self.fleet, cluster_cap=1000, certificates=lambda: tuple(self.server.certificate_expiries())
            )
        )
        about = DaemonInfo(
            version="0",
            mode="project",
            epoch=EPOCH,
            started_at=time.time(),
            heartbeat_s=heartbeat_s,
            stalled_s=stalled_s,
        )
        self.access = AccessControl(rights, limits, self.audit, asyncio.get_running_loop().time)
        self.service = Service(
            self.fleet, about, self.metrics.streams, self.kubeconfigs, access=self.access, signer=TokenSigner(b"key")
        )
        self.fleet.changes.add_listener(EventType.DISENGAGED, lambda event: self.kubeconfigs.disengaged(event.cluster))
        self.server = Server(
            self.service,
            listeners or [Listener(name="here", address=UnixSocket(socket))],
            self.metrics.calls,
            reviewer=reviewer,
        )
        self.address = f"unix:{socket}"

    def listed(self, *observations: Ready) -> None:
        """Report a complete list of these objects."""
        if self.is_restarted:
            stored = [(self._observed(observation), time.time()) for observation in observations]
            list(self.followed.restore(stored, (), ViewStatus(ViewState.STALE, time.monotonic(), "Restored")))
        self.found(ListStarted(), *(Listed(self._observed(observation)) for observation in observations), ListEnded())

    def seen(self, *observations: Ready | NotReady) -> None:
        """Report changes of these objects, in one read of the watch."""
        self.found(*(ObjectChanged(self._observed(observation)) for observation in observations))

    def _observed(self, seen: Ready | NotReady) -> Ready | NotReady:
        return msgspec.structs.replace(seen, uid=self.object_uid(seen.uid))

    def found(self, *findings: SourceEvent) -> None:
        now = asyncio.get_running_loop().time()
        for _ in self.followed.apply(self.followed.collections[0], findings, now):
            pass
        if self.rival is not None:
            for _ in self.rival.apply(self.rival.collections[0], [*filter(None, map(copied, findings))], now):
                pass

    def source(self, state: ViewState, reason: str = "") -> None:
        self.followed.set_followed(self.followed.collections[0], ViewStatus(state, time.monotonic(), reason))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[DiscoveryServiceStub]:
        # Each client has its own connection, as separate processes do.
        async with grpc.aio.insecure_channel(self.address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            yield DiscoveryServiceStub(channel)

    @asynccontextmanager
    async def subscriber(self, **request: object) -> AsyncIterator["Subscriber"]:
        async with self.client() as stub:
            call = stub.WatchClusters(pb.WatchClustersRequest(**request))  # type: ignore[arg-type]
            try:
                yield Subscriber(call)
            finally:
                call.cancel()


def copied(event: SourceEvent) -> SourceEvent | None:
    """Return the event as the API server of another source copies it: objects of the same UIDs, without clusters."""
    match event:
        case Listed(seen) | ObjectChanged(seen):
            return type(event)(Outside(key_of(seen.name, "rival"), seen.uid, seen.version, "copied"))
        case ListStarted() | ListEnded():
            return event
    return None


class Subscriber:
    def __init__(self, call: "grpc.aio.UnaryStreamCall[pb.WatchClustersRequest, pb.WatchClustersResponse]") -> None:
        self.call = call

    async def batch(self) -> pb.WatchClustersResponse:
        async with asyncio.timeout(LIMIT_S):
            batch = await self.call.read()
        assert isinstance(batch, pb.WatchClustersResponse), "the stream ended"
        return batch

    async def until_synced(self) -> list[pb.WatchClustersResponse]:
        batches = [await self.batch()]
        while not batches[-1].synced:
            batches.append(await self.batch())
        return batches

    async def events(self) -> list[str]:
        """Return the events of the next batch that has any."""
        while not (batch := await self.batch()).events:
            pass
        return event_texts([batch])

    async def error(self) -> grpc.aio.AioRpcError:
        """Read the stream to its end and return the error."""
        async with asyncio.timeout(LIMIT_S):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return error
        raise AssertionError("the stream ended without an error")


def event_texts(batches: Iterable[pb.WatchClustersResponse]) -> list[str]:
    """Format events as text, such as `ENGAGED alpha` or `DISENGAGED alpha DELETED`."""
    words = []
    for event in (event for batch in batches for event in batch.events):
        kind = pb.ClusterEvent.Type.Name(event.type).removeprefix("TYPE_")
        reason = pb.DisengageReason.Name(event.reason).removeprefix("DISENGAGE_REASON_") if event.reason else ""
        words.append(" ".join(filter(None, (kind, event.cluster.name, reason))))
    return words


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with a_harness(tmp_path) as made:
        yield made


@asynccontextmanager
async def a_harness(
    directory: Path,
    *,
    heartbeat_s: float = 30.0,
    stalled_s: float = 300.0,
    retention: Retention | None = None,
    sources: Sequence[IssuerAssignment] = (),
    per_second: float = 1000.0,
    authorities: bytes = b"CA",
    rights: Rights = NO_RULES,
    limits: QuotaLimits = PLENTY,
    drain_timeout_s: float = 0.0,
    listeners: Sequence[Listener] = (),
    reviewer: Reviewer | None = None,
) -> AsyncIterator[Harness]:
    made = Harness(
        directory / "d.sock",
        heartbeat_s=heartbeat_s,
        stalled_s=stalled_s,
        retention=retention or Retention(),
        sources=sources,
        per_second=per_second,
        authorities=authorities,
        rights=rights,
        limits=limits,
        drain_timeout_s=drain_timeout_s,
        listeners=listeners,
        reviewer=reviewer,
    )
    await made.server.start()
    issuing = asyncio.create_task(made.kubeconfigs.run())
    try:
        yield made
    finally:
        await made.server.stop()
        issuing.cancel()
        with suppress(asyncio.CancelledError):
            await issuing
