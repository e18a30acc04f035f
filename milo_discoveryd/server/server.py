"""The gRPC servers of the daemon: one for each listener, all with the same service, health and reflection."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.server.calls.access import DenialAudit
from milo_discoveryd.server.calls.interceptor import CallInterceptor, CallMetrics
from milo_discoveryd.server.calls.service import NAME, Service, handlers
from milo_discoveryd.server.connections.acceptor import Acceptor
from milo_discoveryd.server.connections.authentication import (
    TokenAuthenticator,
    identify_by_listener,
    identify_by_token,
)
from milo_discoveryd.server.connections.listener import Listener, TcpAddress, UnixAddress
from milo_discoveryd.server.connections.rejection_log import RejectionLog
from milo_discoveryd.server.connections.socket_file import SocketFile

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

OPTIONS = (
    # Two servers on one port would share its clients at random.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    # keepalive_timeout alone has no effect: the ping itself times out after a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # By then, whoever has connected has sent its settings.
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
        tally: CallMetrics,
        *,
        audit: DenialAudit,
        traces: "TracerProvider | None" = None,
        reviews: TokenAuthenticator | None = None,
    ) -> None:
        """`reviews` is needed where a listener takes tokens."""
        self._service = service
        self._traces = traces
        self._listeners = listeners
        self._tally = tally
        self._reviews = reviews
        self._audit = audit
        self._health = health.aio.HealthServicer()
        self._servers: list[grpc.aio.Server] = []
        self._files: list[SocketFile] = []
        self._fronts: list[Acceptor] = []
        self.addresses: list[str] = []
        """Where it listens, once it has started."""

    async def start(self) -> None:
        """Raises StartError, with nothing left behind."""
        try:
            for listener in self._listeners:
                await self._serve(listener)
        except StartError:
            await self.stop()
            raise

    async def ready(self, is_ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", NAME):
            await self._health.set(name, status)

    async def guard(self) -> None:
        """Returns only by StartError: when a socket is no longer ours, clients reach somebody else, or nobody."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for file in self._files:
                if (problem := file.lost()) is not None:
                    raise StartError(f"{problem}: clients can't reach this daemon any more")
            for front in self._fronts:
                front.check()

    async def stop(self) -> None:
        """Streams are sent what they are owed, then ended; nobody is disengaged."""
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        await asyncio.gather(*(server.stop(GRACE_S) for server in self._servers))
        for front in self._fronts:
            await front.stop()
        for file in self._files:
            file.close()

    async def _serve(self, listener: Listener) -> None:
        rejections = RejectionLog(self._audit)
        front = self._front(listener, rejections)
        limits = () if front is not None else (("grpc.max_allowed_incoming_connections", listener.connections),)
        server = grpc.aio.server(interceptors=self._interceptors(), options=(*OPTIONS, *limits))
        self._servers.append(server)
        identify = identify_by_listener(listener.name) if front is None else front.identify
        if listener.tokens:
            assert self._reviews is not None
            identify = identify_by_token(identify, self._reviews, rejections)
        server.add_generic_rpc_handlers((handlers(self._service, identify),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if isinstance(listener.address, UnixAddress):
            # Reflection tells whoever may connect what there is to call. On a Unix socket they may read the proto file
            # anyway; what can be reached from elsewhere should say no more than it must.
            reflection.enable_server_reflection((NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        if front is None:
            self.addresses.append(self._bind(server, listener.address))
            await server.start()
        else:
            front.bind(server)
            await server.start()
            listening = self._listen(listener.address)
            self.addresses.append(_name(listener.address, listening))
            front.start(listening)

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        interceptors: list[grpc.aio.ServerInterceptor] = [CallInterceptor(self._tally)]
        if self._traces is not None:
            from milo_discoveryd.server.calls.tracing import Tracing  # noqa: PLC0415 - it imports what is an extra

            interceptors.insert(0, Tracing(self._traces))
        return interceptors

    def _front(self, listener: Listener, rejections: RejectionLog) -> Acceptor | None:
        if not listener.has_acceptor:
            return None
        front = Acceptor(listener.name, rejections, tls=listener.tls, connections=listener.connections)
        self._fronts.append(front)
        return front

    def _bind(self, server: grpc.aio.Server, address: UnixAddress | TcpAddress) -> str:
        if isinstance(address, UnixAddress):
            self._claim(address).claim(lambda path: _bind(server, f"unix:{path}"))
            return str(address)
        try:
            return str(TcpAddress(address.host, _bind(server, str(address))))
        except RuntimeError as error:
            raise _not_free(address) from error

    def _listen(self, address: UnixAddress | TcpAddress) -> socket.socket:
        if isinstance(address, TcpAddress):
            return _listen(address)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

        def bind(path: Path) -> None:
            listening.bind(str(path))
            listening.listen(_BACKLOG)

        try:
            self._claim(address).claim(bind)
        except StartError:
            listening.close()
            raise
        return listening

    def _claim(self, address: UnixAddress) -> SocketFile:
        file = SocketFile(address)
        self._files.append(file)
        return file


def _bind(server: grpc.aio.Server, address: str) -> int:
    """Raises RuntimeError."""
    return server.add_insecure_port(address)


def _listen(address: TcpAddress) -> socket.socket:
    try:
        both = not address.host and socket.has_dualstack_ipv6()
        host, family = "", socket.AF_INET6 if both else socket.AF_INET
        if address.host:
            family, _, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
            host = str(place[0])
        listening = socket.create_server((host, address.port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise _not_free(address) from error
    # Connections have it from here. asyncio sets it only for sockets that were made with the number of TCP, as this
    # was not: one event in twenty would wait 30 ms and more for an acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _not_free(address: TcpAddress) -> StartError:
    return StartError(f"can't listen on {address}: is the port in use, or the address not this machine's?")


def _name(address: UnixAddress | TcpAddress, listening: socket.socket) -> str:
    if isinstance(address, UnixAddress):
        return str(address)
    return str(TcpAddress(address.host, listening.getsockname()[1]))
