"""A scripted daemon, behind a relay that can cut or stall its connections."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from milo_conformance.failure import CaseFailed
from milo_conformance.relay import Relay
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1 import discovery_pb2_grpc as rpc

LIMIT_S = 60.0
"""Default time limit of a wait: far more than a busy machine needs."""

MALFORMED = b"\xff\xff\xff\xff"
"""The encoding of no message."""

Trace = Callable[[str], None]
Answer = Callable[[Any], Awaitable[Any]]


class Abort(Exception):  # noqa: N818  (an answer, not an error of the kit)
    """The status with which a call ends. Without a reason, it is that of a lost connection."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str = "",
        retry_after_s: float | None = None,
        *,
        reason: str = "",
        malformed: bool = False,
    ) -> None:
        super().__init__(f"{code.name} {message}".strip())
        self.code = code
        self.message = message
        self._malformed = malformed
        self._details: list[Message] = []
        if reason:
            self._details.append(error_details_pb2.ErrorInfo(domain="discovery.miloapis.com", reason=reason))
        if retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromTimedelta(timedelta(seconds=retry_after_s))
            self._details.append(error_details_pb2.RetryInfo(retry_delay=delay))

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        if not (self._details or self._malformed):
            return ()
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for kind in ("BadRequest", "ErrorInfo", "RetryInfo") if self._malformed else ():
            status.details.add(type_url=f"type.googleapis.com/google.rpc.{kind}", value=MALFORMED)
        for detail in self._details:
            status.details.add().Pack(detail)
        return (("grpc-status-details-bin", status.SerializeToString()),)


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """A unary call that the subscriber made."""

    method: str
    request: Any
    metadata: dict[str, str]
    at: float


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The TLS files of a server, which requires client certificates if it has a CA for them."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


class ScriptedStream:
    """A WatchClusters stream that the subscriber opened. After its first batch, it sends heartbeats until
    `stop_heartbeats` is called."""

    def __init__(self, daemon: ScriptedDaemon, request: pb.WatchClustersRequest, context: Any, number: int) -> None:
        self.daemon = daemon
        self.request = request
        self.number = number
        self.metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.opened_at = time.monotonic()
        self.revision = request.resume_revision
        self.closed = asyncio.Event()
        """Set when either side has ended the stream."""
        self.sharded = False
        self._context = context
        self._end: asyncio.Future[Abort | None] = asyncio.get_running_loop().create_future()
        self._synced = False
        self._writing = asyncio.Lock()
        self._heartbeats: asyncio.Task[None] | None = None

    async def send(
        self,
        *events: pb.ClusterEvent,
        reset: bool = False,
        synced: bool = True,
        revision: str | None = None,
        previous: str | None = None,
        source: pb.SourceStatus | None = None,
        pending_sources: Sequence[str] = (),
        unknown_fields: bool = False,
    ) -> None:
        """Send a batch. By default it has the daemon's next revision, and continues the last batch of the stream."""
        batch = pb.WatchClustersResponse(
            events=events,
            revision=self.daemon.next_revision() if revision is None else revision,
            previous_revision=("" if reset and not self._has_sent else self.revision) if previous is None else previous,
            synced=synced,
            reset=reset,
            source=source if source is not None else pb.SourceStatus(state=pb.SourceStatus.STATE_STREAMING),
            pending_sources=pending_sources,
            sharded=self.sharded,
        )
        if unknown_fields:
            batch = with_unknown_fields(batch)
        await self.write(batch)
        if self._heartbeats is None:
            self._heartbeats = asyncio.create_task(self._send_heartbeats(), name="heartbeats")

    async def snapshot(self, *events: pb.ClusterEvent, pending_sources: Sequence[str] = ()) -> None:
        """Send a snapshot in one batch."""
        await self.send(*events, reset=True, pending_sources=pending_sources)

    async def heartbeat(self, *, synced: bool = True, source: pb.SourceStatus | None = None) -> None:
        """Send a batch without events, which does not advance the revision."""
        await self.send(synced=synced, revision=self.revision or "0", source=source)

    async def write(self, batch: pb.WatchClustersResponse) -> None:
        """Send a batch unchanged."""
        async with self._writing:
            self.daemon.trace(f"daemon: stream {self.number}: {describe(batch)}")
            self.revision, self._synced = batch.revision, batch.synced
            self._has_sent = True
            with suppress(asyncio.InvalidStateError, grpc.aio.BaseError):
                await self._context.write(batch)

    _has_sent = False

    def stop_heartbeats(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        else:
            self._heartbeats = asyncio.get_running_loop().create_task(asyncio.sleep(0))

    def end(
        self,
        code: grpc.StatusCode,
        message: str = "",
        *,
        retry_after_s: float | None = None,
        malformed: bool = False,
    ) -> None:
        """End the stream with a status; with `malformed`, its details cannot be decoded."""
        self.stop_heartbeats()
        self.daemon.trace(f"daemon: stream {self.number} ends with {code.name}")
        if not self._end.done():
            self._end.set_result(Abort(code, message, retry_after_s, malformed=malformed))

    def finish(self) -> None:
        """End the stream without an error."""
        self.stop_heartbeats()
        self.daemon.trace(f"daemon: stream {self.number} ends")
        if not self._end.done():
            self._end.set_result(None)

    async def serve(self) -> None:
        try:
            end = await self._end
        finally:
            self.stop_heartbeats()
            self.daemon.trace(f"stream {self.number} is closed")
            self.closed.set()
        if end is not None:
            await self._context.abort(end.code, end.message, end.trailing_metadata())

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self.heartbeat(synced=self._synced)


class ScriptedDaemon(rpc.DiscoveryServiceServicer):
    """The daemon's side of the protocol. Cases script its streams and the answers to unary calls."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.streams: asyncio.Queue[ScriptedStream] = asyncio.Queue()
        self.calls: list[ScriptedCall] = []
        self.called = asyncio.Condition()
        self.answers: dict[str, Answer] = {}
        """The answers to unary calls, by method."""
        self.opened = 0
        """The number of streams that were opened."""
        self._tls: TlsFiles | None = None
        self._revisions = 0
        self._servers: list[grpc.aio.Server] = []
        self._directory = tempfile.TemporaryDirectory(prefix="milo-conformance-")
        self.directory = Path(self._directory.name)
        self.relay = Relay(self.directory / "d.sock")

    async def __aenter__(self) -> ScriptedDaemon:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.relay.close()
        for server in self._servers:
            await server.stop(None)
        self._directory.cleanup()

    async def serve(self) -> None:
        """Start a server for new connections."""
        options = [("grpc.so_reuseport", 0), ("grpc.max_send_message_length", 64 << 20)]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_handlers(self),))
        target: str | int = f"{self.directory}/s{len(self._servers)}"
        if self._tls is None:
            server.add_insecure_port(f"unix://{target}")
        else:
            client_ca = self._tls.client_ca
            credentials = grpc.ssl_server_credentials(
                [(self._tls.key, self._tls.certificate)], client_ca, require_client_auth=client_ca is not None
            )
            target = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        self._servers.append(server)
        self.relay.target = target

    def use_tls(self, tls: TlsFiles) -> None:
        """Use TCP and this certificate for the next server."""
        self._tls = tls
        self.relay.is_tcp = True

    async def shut_down(self) -> None:
        """Send GOAWAY on all connections. Streams continue; new connections go to a new server."""
        old = self._servers[-1]
        await self.serve()
        self.trace("daemon: GOAWAY on all connections")
        self._stopping = asyncio.create_task(old.stop(LIMIT_S), name="GOAWAY")
        await asyncio.sleep(0.05)  # long enough for the GOAWAY frame to arrive

    def next_revision(self) -> str:
        self._revisions += 1
        return f"r{self._revisions}"

    async def WatchClusters(self, request: pb.WatchClustersRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        self.opened += 1
        stream = ScriptedStream(self, request, context, self.opened)
        self.trace(f"stream {stream.number} is opened, resume_revision={request.resume_revision!r}")
        self.streams.put_nowait(stream)
        await stream.serve()

    async def IssueKubeconfig(self, request: pb.IssueKubeconfigRequest, context: Any) -> Any:  # noqa: N802
        return await self._answer("IssueKubeconfig", request, context, pb.IssueKubeconfigResponse())

    async def ReleaseCluster(self, request: pb.ReleaseClusterRequest, context: Any) -> Any:  # noqa: N802
        return await self._answer("ReleaseCluster", request, context, pb.ReleaseClusterResponse())

    async def EndSubscription(self, request: pb.EndSubscriptionRequest, context: Any) -> Any:  # noqa: N802
        return await self._answer("EndSubscription", request, context, pb.EndSubscriptionResponse())

    async def RenewOwnership(self, request: pb.RenewOwnershipRequest, context: Any) -> Any:  # noqa: N802
        return await self._answer("RenewOwnership", request, context, pb.RenewOwnershipResponse())

    async def _answer(self, method: str, request: Any, context: Any, default: Any) -> Any:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.trace(f"call: {method} {one_line(request)}")
        async with self.called:
            self.calls.append(ScriptedCall(method, request, metadata, time.monotonic()))
            self.called.notify_all()
        try:
            answer = self.answers.get(method)
            response = default if answer is None else await answer(request)
        except Abort as error:
            self.trace(f"daemon: {method} ends with {error}")
            await context.abort(error.code, error.message, error.trailing_metadata())
        else:
            self.trace(f"daemon: {method} answers {one_line(response)}")
            return response

    async def wait_for_stream(self, limit_s: float | None = None) -> ScriptedStream:
        limit_s = LIMIT_S if limit_s is None else limit_s
        try:
            return await asyncio.wait_for(self.streams.get(), limit_s)
        except TimeoutError:
            raise CaseFailed(f"no stream was opened within {limit_s:g} s") from None

    async def wait_for_call(
        self, method: str, *, after: int = 0, incarnation: str = "", limit_s: float | None = None
    ) -> ScriptedCall:
        """Return the first call of the method, and for the incarnation if it is given, after skipping `after` calls."""
        limit_s = LIMIT_S if limit_s is None else limit_s

        def found() -> ScriptedCall | None:
            calls = [call for call in self.calls if call.method == method]
            if incarnation:
                calls = [call for call in calls if call.request.incarnation == incarnation]
            return calls[after] if len(calls) > after else None

        try:
            async with self.called, asyncio.timeout(limit_s):
                await self.called.wait_for(lambda: found() is not None)
        except TimeoutError:
            of = f" for the incarnation {incarnation!r}" if incarnation else ""
            raise CaseFailed(f"{method} was not called{of} within {limit_s:g} s") from None
        call = found()
        assert call is not None
        return call


def _encoded(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _handlers(daemon: ScriptedDaemon) -> grpc.GenericRpcHandler:
    """Return the handlers of the service, whose unary responses may also be bytes that cannot be decoded."""
    service = pb.DESCRIPTOR.services_by_name["DiscoveryService"]
    handlers = {}
    for method in service.methods:
        handler = (
            grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        )
        handlers[method.name] = handler(
            getattr(daemon, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=_encoded,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def cluster(name: str, **fields: Any) -> pb.Cluster:
    """Return a cluster with a UID, an endpoint and an incarnation, as a daemon sends them."""
    defaults = {"uid": f"uid-{name}", "endpoint": f"https://milo.test/{name}", "incarnation": f"{name}-1"}
    return pb.Cluster(name=name, **{**defaults, **fields})


def engaged(name: str, kubeconfig: pb.Kubeconfig | None = None, **fields: Any) -> pb.ClusterEvent:
    return pb.ClusterEvent(type=pb.ClusterEvent.TYPE_ENGAGED, cluster=cluster(name, **fields), kubeconfig=kubeconfig)


def updated(name: str, **fields: Any) -> pb.ClusterEvent:
    return pb.ClusterEvent(type=pb.ClusterEvent.TYPE_UPDATED, cluster=cluster(name, **fields))


def disengaged(name: str, reason: int | str = "DELETED", **fields: Any) -> pb.ClusterEvent:
    number = reason if isinstance(reason, int) else pb.DisengageReason.Value(f"DISENGAGE_REASON_{reason}")
    event = pb.ClusterEvent(type=pb.ClusterEvent.TYPE_DISENGAGED, cluster=cluster(name, **fields), message="scripted")
    event.reason = number  # type: ignore[assignment]  # also one that the proto does not have
    return event


def renewed(name: str, kubeconfig: pb.Kubeconfig) -> pb.ClusterEvent:
    return pb.ClusterEvent(type=pb.ClusterEvent.TYPE_KUBECONFIG, cluster=cluster(name), kubeconfig=kubeconfig)


def draining(reason: str = "NOT_READY", seconds: float = 60) -> pb.Draining:
    message = pb.Draining(reason=pb.DisengageReason.Value(f"DISENGAGE_REASON_{reason}"))
    message.deadline.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return message


def kubeconfig(
    name: str,
    token: str,
    *,
    expires_in_s: float = 3600,
    refresh_in_s: float | None = None,
    user: Any = None,
    server: str = "",
    authority: bytes = b"",
) -> pb.Kubeconfig:
    """Return a kubeconfig of the form that a daemon writes."""
    now = datetime.now(UTC)
    cluster = {"server": server or f"https://milo.test/{name}"}
    if authority:
        cluster["certificate-authority-data"] = b64encode(authority).decode()
    file = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token} if user is None else user}],
    }
    message = pb.Kubeconfig(cluster=name, kubeconfig=json.dumps(file).encode())
    message.issued_at.FromDatetime(now)
    message.expires_at.FromDatetime(now + timedelta(seconds=expires_in_s))
    message.refresh_after.FromDatetime(
        now + timedelta(seconds=expires_in_s * 0.6 if refresh_in_s is None else refresh_in_s)
    )
    return message


def with_unknown_fields(batch: pb.WatchClustersResponse) -> pb.WatchClustersResponse:
    """Return the batch with fields that the proto file does not have, in the batch and in its clusters."""
    unknown = b"\xb8\x3e\x01"  # An encoded field with the number 999 and an integer as its value.
    for event in batch.events:
        event.cluster.MergeFromString(unknown)
    batch.MergeFromString(unknown)
    return batch


def describe(batch: pb.WatchClustersResponse) -> str:
    flags = [name for name in ("reset", "synced", "sharded") if getattr(batch, name)]
    events = [
        f"{event.type if event.type > 4 else pb.ClusterEvent.Type.Name(event.type)[5:]} {event.cluster.name}"
        for event in batch.events[:6]
    ]
    more = [f"and {len(batch.events) - 6} more"] if len(batch.events) > 6 else []
    return " ".join([f"{batch.previous_revision!r} -> {batch.revision!r}", *flags, ", ".join(events + more)]).rstrip()


def one_line(message: Any) -> str:
    return " ".join(str(message).split())[:200]
