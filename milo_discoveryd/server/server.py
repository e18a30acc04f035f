"""The gRPC servers of the daemon: one for each listener, all with the same service, health and reflection."""

import asyncio
from collections.abc import Sequence

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from milo_discoveryd.errors import StartError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.interceptor import CallTally, Interceptor
from milo_discoveryd.server.listener import CHECK_EVERY_S, Listener, TcpAddress, UnixAddress, listener
from milo_discoveryd.server.service import NAME, Context, Service, handlers

log = structlog.get_logger()

OPTIONS = (
    # Two servers on one port would share its clients at random.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    # keepalive_timeout alone has no effect: the ping itself times out after a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
)
GRACE_S = 5.0


class Server:
    def __init__(self, service: Service, addresses: Sequence[UnixAddress | TcpAddress], tally: CallTally) -> None:
        self._service = service
        self._addresses = addresses
        self._tally = tally
        self._health = health.aio.HealthServicer()
        self._servers: list[tuple[grpc.aio.Server, Listener]] = []
        self.addresses: list[str] = []
        """Where it listens, once it has started."""

    async def start(self) -> None:
        """Raises StartError, with nothing left behind."""
        try:
            for address in self._addresses:
                # Reflection tells whoever may connect what there is to call: on a Unix socket they may read the proto
                # file anyway, on TCP we don't know who they are.
                await self._serve(address, reflect=isinstance(address, UnixAddress))
        except StartError:
            await self.stop()
            raise

    async def _serve(self, address: UnixAddress | TcpAddress, *, reflect: bool) -> None:
        bound = listener(address)
        server = grpc.aio.server(interceptors=[Interceptor(self._tally)], options=OPTIONS)
        self._servers.append((server, bound))

        async def identify(context: Context) -> Caller:
            return Caller(peer=context.peer(), listener=str(address))

        server.add_generic_rpc_handlers((handlers(self._service, identify),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if reflect:
            reflection.enable_server_reflection((NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self.addresses.append(bound.bind(server))
        await server.start()

    async def ready(self, is_ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", NAME):
            await self._health.set(name, status)

    async def guard(self) -> None:
        """Returns only by StartError: when a socket is no longer ours, clients reach somebody else, or nobody."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for _, bound in self._servers:
                if (problem := bound.lost()) is not None:
                    raise StartError(f"{problem}: clients can't reach this daemon any more")

    async def stop(self) -> None:
        """Streams are sent what they are owed, then ended; nobody is disengaged."""
        await self._health.enter_graceful_shutdown()
        self._service.drain()
        await asyncio.gather(*(server.stop(GRACE_S) for server, _ in self._servers))
        for _, bound in self._servers:
            bound.close()
