"""The daemon from an API server's bytes to a client's session, in one process and on virtual time.

Everything between the transport and the client's connection is production code: watches, lists, confirmation reads, the
fleet, its log, the state file's encoding, a stream and the client library. The API server is scripted.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from random import Random
from typing import Any

import msgspec

from milo_discovery import BackoffPolicy, _convert
from milo_discovery._subscription import StreamSubscription
from milo_discovery.events import Event as ClientEvent
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, SourcePolicy
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.kubeconfigs import CredentialLimits, Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import Issuance
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.rights.quota import QuotaLimits
from milo_discoveryd.rights.rights import Rights
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
from milo_discoveryd.state_file.encoding import StateOrigin, StoredCluster, StoredFleet, decode
from milo_discoveryd.wiring.source import Discovery
from milo_kube.api_request import Answer
from milo_kube.reflect.reflector import ReflectorPolicy
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.support.logs import capture_logs
from tests.support.stored_fleets import encode

SERVICE = "dns.example.com"
_DECLARED: dict[str, Any] = {
    "resource": {"group": "example.com", "version": "v1", "plural": "clusters", "namespaced": False},
    "name": "{metadata.name}",
    "ready": {"condition": "Ready"},
    "endpoint": {"template": "https://{spec.host}:{spec.port}/{metadata.name}"},
    "organization": "{spec.ownerRef.name}",
}
_OPTIONS = SourceOptions(project_server="https://milo.test", annotation_prefixes=("example.com/",))
KINDS: tuple[SourceKind, ...] = (
    ProjectKind(),
    ProjectControlPlaneKind(),
    parse_group(DeclarativeKind, _DECLARED),
    ServiceConsumerKind(services=(SERVICE,), drain=timedelta()),
)
ORIGIN = StateOrigin("https://milo.test", "project")
EPOCH = "0" * 16
CALLER = Caller(listener="here")
QUOTAS = QuotaLimits(streams=10, streams_each=10, per_minute_each=10)
LIMITS = RemovalLimits(verify_after_s=5.0)
MESSAGE_LIMIT = 4 << 20
"""gRPC's default limit on the size of a message."""
LIVES_S = 120.0
_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._~:@-]+")
_EXPIRED = b'{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}'


def _end(lists: int) -> bytes:
    metadata = {"resourceVersion": str(500 + lists), "annotations": {"k8s.io/initial-events-end": "true"}}
    return msgspec.json.encode({"type": "BOOKMARK", "object": {"metadata": metadata}})


class Script(msgspec.Struct):
    """The data that the API server sends."""

    listed: bytes
    """Lines of the first list. A valid end of the list follows, and then the lines `watched`."""
    watched: bytes = b""
    found: bytes = b""
    """The response to the first read of each object; to later reads, the object does not exist."""
    page: bytes | None = None
    """The page of the first list, for a daemon that lists in pages instead of streaming."""


class ScriptedServer:
    """An API server that lists the script's objects once and nothing later, so that all clusters are removed at the
    end.

    A resumed watch that has nothing to send expires, which leads to the next list.
    """

    def __init__(self, script: Script, path: str) -> None:
        self._script = script
        self._path = path
        self._lists = self._watches = 0
        self.read: set[str] = set()

    async def get(self, path: str, query: Any = (), *, timeout_s: float, **_: object) -> Answer:
        if path == "/livez":
            return Answer(200, {}, b"ok")
        if path == self._path:
            self._lists += 1
            empty = msgspec.json.encode({"metadata": {"resourceVersion": str(500 + self._lists)}, "items": []})
            body = self._script.page if self._lists == 1 and self._script.page is not None else empty
            return Answer(200, {}, body)
        name = path.removeprefix(f"{self._path}/")
        assert _NAME.fullmatch(name), f"{path!r} is not a path of the collection"
        if name not in self.read:
            self.read.add(name)
            return Answer(200, {}, self._script.found)
        status = {"kind": "Status", "code": 404, "reason": "NotFound", "message": "", "details": {"name": name}}
        return Answer(404, {}, msgspec.json.encode(status))

    @asynccontextmanager
    async def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AsyncIterator["ScriptedStream"]:
        assert path == self._path
        if "resourceVersion" not in dict(query):
            self._lists += 1
            yield ScriptedStream(self._script.listed if self._lists == 1 else b"", _end(self._lists), self._watched())
        else:
            yield ScriptedStream(self._watched() or _EXPIRED)

    def _watched(self) -> bytes:
        self._watches += 1
        return self._script.watched if self._watches == 1 else b""

    async def get_at_once(self, path: str, *, timeout_s: float) -> Answer:
        return await self.get(path, timeout_s=timeout_s)

    async def drop(self) -> None:
        pass


class ScriptedStream:
    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for piece in self._pieces:
            yield piece + b"\n"
        await asyncio.sleep(10.0)

    async def read_error(self, limit: int) -> bytes:
        return b""


class _Silent:
    """An observer, metrics and an audit log that do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Store:
    """A state file in memory, which must always be readable again."""

    origin = ORIGIN

    async def loaded(self) -> StoredFleet | None:
        return None

    async def save_changes(self, fleet: Callable[[], StoredFleet], changed: Callable[[], Awaitable[None]]) -> None:
        while True:
            await changed()
            stored = fleet()
            found = decode(encode(stored), ORIGIN)
            # Of a declared cluster, the file has the fields that all modes share.
            assert decode(encode(found), ORIGIN) == found
            assert [_identity(cluster) for cluster in found.clusters] == [
                _identity(cluster) for cluster in stored.clusters
            ]
            assert found.objects == stored.objects
            await asyncio.sleep(0.1)


def _identity(stored: StoredCluster) -> tuple[str, ...]:
    target = stored.target
    return stored.uid, target.uid, target.name, target.endpoint


class Outcome(msgspec.Struct):
    events: list[ClientEvent]
    """The events that the client's session reported."""
    engaged: list[str]
    """Names of the clusters that are engaged at the end."""


def run(script: Script, kind: SourceKind, *, streaming: bool = True) -> Outcome:
    """Run a daemon with the scripted API server for two minutes.

    Raises any error that would end the daemon or a client.
    """
    with capture_logs():
        return run_on(VirtualLoop(Random(1)), _run(script, kind, streaming=streaming))


def _fleet(followed: KeyedSource, observer: Any) -> Fleet:
    fleet = Fleet(ChangeLog(encoder(EPOCH), Retention()))
    made = ClusterSource(
        fleet.changes,
        observer,
        SourcePolicy(
            pending_deletions=lambda: PendingDeletions(lambda: 0.5),
            removals=LIMITS,
            not_ready=NotReadyClusters(0.0, LIMITS),
        ),
        reduce=followed.reduce,
        keys=followed.keys,
    )
    fleet.add(made)
    return fleet


async def _run(script: Script, kind: SourceKind, *, streaming: bool) -> Outcome:
    observer: Any = _Silent()
    followed = KeyedSource(kind.follow(_OPTIONS))
    fleet = _fleet(followed, observer)
    (source,) = fleet.sources
    info = DaemonInfo(version="0", mode="m", epoch=EPOCH, started_at=1.0, heartbeat_s=30.0, stalled_s=60.0)
    kubeconfigs = Kubeconfigs(
        [],
        Issuance(trust=lambda *_: ClusterTrust(None), metrics=observer, audit=observer),
        CredentialLimits(600.0, 600.0),
    )
    access = AccessControl(Rights(), QUOTAS, observer, asyncio.get_running_loop().time)
    service = Service(fleet, info, observer, kubeconfigs, access=access, signer=TokenSigner(b"key"))
    discovery = Discovery(
        source,
        _Store(),
        policy=ReflectorPolicy(streaming_lists=streaming),
        jitter=lambda: 0.5,
        connect_timeout_s=10.0,
        epoch="run",
        request_timeout_s=30.0,
    )
    server = ScriptedServer(script, followed.collections[0].watched.path)
    following = asyncio.create_task(discovery.run(lambda _: server, followed.collections, followed.restored_place))
    client = _Client()
    watching = asyncio.create_task(service.watch_clusters(client.subscription.next_request(), CALLER, client.receive))
    await asyncio.wait((following, watching), timeout=LIVES_S, return_when=asyncio.FIRST_COMPLETED)
    await _ask_about_everything(service, fleet)
    for task in (following, watching):
        assert not task.done(), task.exception()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return Outcome(client.events, [cluster.target.name for cluster in fleet.clusters()])


class _Client:
    def __init__(self) -> None:
        self.subscription = StreamSubscription({}, BackoffPolicy())

    async def receive(self, message: bytes) -> None:
        assert len(message) <= MESSAGE_LIMIT, "the batch exceeds a client's default limit"
        self.subscription.received(pb.WatchClustersResponse.FromString(message), 0.0)

    @property
    def events(self) -> list[ClientEvent]:
        return [item for item in self.subscription.pending if isinstance(item, ClientEvent)]


async def _ask_about_everything(service: Service, fleet: Fleet) -> None:
    _convert.server_info(await service.get_server_info(pb.GetServerInfoRequest(), CALLER))
    with suppress(CallError):  # before the first list is complete
        _convert.listing([await service.list_clusters(pb.ListClustersRequest(), CALLER)])
    for name, _ in [*fleet.items()]:
        with suppress(CallError):  # names that are invalid in requests
            report = await service.get_cluster(pb.GetClusterRequest(name=name), CALLER)
            assert report.ByteSize() <= MESSAGE_LIMIT
            _convert.cluster_report(report)
