"""The gRPC servers of the daemon: one for each listener, all with the same service, health checks and reflection."""

import asyncio
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.instruments import CallMetrics
from milo_discoveryd.server.calls import reflection
from milo_discoveryd.server.calls.handlers import NAME, frequent_wakeups, handlers
from milo_discoveryd.server.calls.health import HealthService
from milo_discoveryd.server.calls.in_flight import MAX_CALLS, InFlightCalls
from milo_discoveryd.server.calls.interceptor import AccessInterceptor, CallInterceptor, Refusals
from milo_discoveryd.server.calls.request_arrival import ArrivalInterceptor, ArrivingRequests
from milo_discoveryd.server.calls.rpc_context import Authenticator
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.server.calls.unread_answers import UnreadAnswers
from milo_discoveryd.server.connections.acceptor import Acceptor
from milo_discoveryd.server.connections.listener import Listener, TcpEndpoint, UnixSocket
from milo_discoveryd.server.connections.socket_file import SocketFile
from milo_discoveryd.server.connections.tcp_sockets import bound

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from milo_discoveryd.server.connections.bearer_authentication import Reviewer

# What only listeners with tokens need is imported for these.
# ruff: noqa: PLC0415

OPTIONS = (
    # A subscriber on a dead connection is told of no move: it is noticed before `sharding.release_timeout` has passed.
    ("grpc.keepalive_time_ms", 10_000),
    # keepalive_timeout alone has no effect, because the ping itself times out only after a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Idle connections count against the limits. A client reconnects automatically with its next call.
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_concurrent_streams", 100),
    # More than any valid request, so that the error of a longer one says what the limit is.
    ("grpc.max_receive_message_length", 96 * 1024),
    # What a stream may send that nothing reads. By default it grows with the connection's rate, up to megabytes.
    ("grpc.http2.lookahead_bytes", 16 * 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # The handshake includes the client's HTTP/2 settings.
    ("grpc.server_handshake_timeout_ms", 10_000),
)
GRACE_S = 5.0
CHECK_EVERY_S = 5.0
_BACKLOG = 1024


class Server:
    def __init__(
        self,
        service: Service,
        listeners: Sequence[Listener],
        metrics: CallMetrics,
        *,
        traces: "TracerProvider | None" = None,
        reviewer: "Reviewer | None" = None,
    ) -> None:
        """`reviewer` is required if a listener accepts bearer tokens."""
        self._service = service
        self._traces = traces
        self._listeners = listeners
        self._metrics = metrics
        self._reviewer = reviewer
        self._audit = service.access.audit
        self._health = HealthService(service.notifier, service.stalled_s)
        self._servers: list[grpc.aio.Server] = []
        self._files: list[SocketFile] = []
        self._acceptors: list[Acceptor] = []
        self.addresses: list[str] = []
        """The addresses in use; available once the server has started."""

    async def start(self) -> None:
        """Start all listeners. If it raises StartError, no listener is left open."""
        try:
            for listener in self._listeners:
                await self._serve(listener)
        except StartError:
            await self.stop()
            raise

    def certificate_expiries(self) -> Iterator[tuple[str, float]]:
        """Yield a pair for each server certificate: `listener NAME`, and the expiry as a Unix timestamp."""
        for listener in self._listeners:
            if listener.tls is not None and listener.tls.expires_at is not None:
                yield f"listener {listener.name}", listener.tls.expires_at

    def set_ready(self, sources: Mapping[str, bool]) -> None:
        """Report the health of each source, as `SERVICE/SOURCE`, and of the daemon, which is ready if one source is."""
        ready = dict.fromkeys(("", NAME), any(sources.values()))
        ready |= {f"{NAME}/{name}": is_ready for name, is_ready in sources.items() if name}
        for service, is_ready in ready.items():
            self._health.set_ready(service, is_ready=is_ready)

    async def watch(self) -> None:
        """Check sockets and connections periodically.

        Raises StartError if a socket's file was changed, or the error that ended an accept loop.
        """
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            self._audit.flush()
            for file in self._files:
                if (problem := file.lost()) is not None:
                    raise StartError(f"{problem}: clients may fail to reach this daemon")
            for acceptor in self._acceptors:
                acceptor.check()

    async def stop(self) -> None:
        """Shut down gracefully: streams send their pending changes, and no cluster is disengaged for the shutdown."""
        self._health.shut_down()
        self._service.end_streams()
        for acceptor in self._acceptors:
            acceptor.is_stopping = True
        await asyncio.gather(*(server.stop(GRACE_S) for server in self._servers))
        for acceptor in self._acceptors:
            await acceptor.stop()
        for file in self._files:
            file.close()
        self._audit.flush()

    async def _serve(self, listener: Listener) -> None:
        acceptor = Acceptor(listener, self._audit)
        authenticator: Authenticator = acceptor
        if listener.tokens:
            from milo_discoveryd.server.connections.bearer_authentication import BearerAuthentication

            assert self._reviewer is not None
            authenticator = BearerAuthentication(authenticator, self._reviewer, self._audit)
        server = self._server(listener, authenticator)
        self._acceptors.append(acceptor)
        acceptor.bind(server)
        await server.start()
        listening = self._listen(listener.address)
        self.addresses.append(_address(listener.address, listening[0]))
        acceptor.start(listening)

    def _server(self, listener: Listener, authenticator: Authenticator) -> grpc.aio.Server:
        access, in_flight = self._service.access, InFlightCalls(len(self._listeners))
        refusals = Refusals(authenticator, self._audit)
        interceptors: list[grpc.aio.ServerInterceptor] = [
            CallInterceptor(self._metrics, refusals),
            AccessInterceptor(NAME, access, authenticator, in_flight, refusals),
        ]
        if self._traces is not None:
            from milo_discoveryd.server.calls.tracing import TracingInterceptor  # needs an extra

            interceptors.insert(0, TracingInterceptor(self._traces))
        answers = UnreadAnswers(
            authenticator.close, lambda context: authenticator.origin(context).owners, len(self._listeners)
        )
        interceptors.insert(0, ArrivalInterceptor(ArrivingRequests(len(self._listeners)), answers, refusals))
        with frequent_wakeups():
            server = grpc.aio.server(
                interceptors=interceptors,
                options=OPTIONS,
                # gRPC rejects calls above this limit before they take memory.
                maximum_concurrent_rpcs=access.quotas.limits.streams + MAX_CALLS,
            )
        self._servers.append(server)
        server.add_generic_rpc_handlers((handlers(self._service, authenticator, in_flight), self._health.handlers()))
        if isinstance(listener.address, UnixSocket):
            # Only at Unix sockets, because their users are local and can read the proto file anyway.
            described = reflection.ReflectionService((NAME, health.SERVICE_NAME, reflection.NAME))
            server.add_generic_rpc_handlers((described.handlers(),))
        return server

    def _listen(self, address: UnixSocket | TcpEndpoint) -> list[socket.socket]:
        if isinstance(address, TcpEndpoint):
            return _listen(address)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

        def bind(path: Path) -> None:
            listening.bind(str(path))
            listening.listen(_BACKLOG)

        try:
            self._socket_file(address).claim(bind)
        except StartError:
            listening.close()
            raise
        return [listening]

    def _socket_file(self, address: UnixSocket) -> SocketFile:
        file = SocketFile(address)
        self._files.append(file)
        return file


def _listen(address: TcpEndpoint) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        made = bound(address.host, address.port)
        for listening in made:
            listening.listen(_BACKLOG)
    except OSError as error:
        for listening in made:
            listening.close()
        problem = f"can't listen on {address}: {error.strerror or error}"
        raise StartError(f"{problem}; set another --listen, or stop any process that uses the port") from error
    return made


def _address(address: UnixSocket | TcpEndpoint, listening: socket.socket) -> str:
    if isinstance(address, UnixSocket):
        return str(address)
    return str(TcpEndpoint(address.host, listening.getsockname()[1]))
