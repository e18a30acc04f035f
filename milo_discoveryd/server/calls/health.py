"""The gRPC health service.

The servicer of grpcio-health-checking holds a lock, which all watches of a service share, while it sends to one of
them: a client that does not read would stop the others, and whatever sets the status.
"""

import asyncio
import math
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from milo_discoveryd.log.change_notifier import ChangeNotifier
from milo_discoveryd.server.calls.grpc_errors import StalledError
from milo_discoveryd.server.calls.handlers import ResponseWriter
from milo_discoveryd.server.calls.interceptor import CheckedService
from milo_discoveryd.server.calls.rpc_context import RpcContext

_Answer = health_pb2.HealthCheckResponse


class HealthService:
    """The statuses of services, for health checks that `AccessInterceptor` has admitted."""

    def __init__(self, notifier: ChangeNotifier, stalled_s: float) -> None:
        """`notifier` wakes the watches, also after changes of rights."""
        self._notifier = notifier
        self._stalled_s = stalled_s
        self._statuses = {"": _Answer.NOT_SERVING}
        self._is_shutting_down = False

    def set_ready(self, service: str, *, is_ready: bool) -> None:
        """Set the status of a service, unless the daemon is shutting down."""
        status = _Answer.SERVING if is_ready and not self._is_shutting_down else _Answer.NOT_SERVING
        if self._statuses.get(service) != status:
            self._statuses[service] = status
            self._notifier.notify()

    def shut_down(self) -> None:
        """Set the status of all services to NOT_SERVING for good."""
        self._is_shutting_down = True
        for service in self._statuses:
            self.set_ready(service, is_ready=False)

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            health.SERVICE_NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self._check,
                    request_deserializer=health_pb2.HealthCheckRequest.FromString,
                    response_serializer=_Answer.SerializeToString,
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch, request_deserializer=health_pb2.HealthCheckRequest.FromString
                ),
            },
        )

    async def _check(self, check: CheckedService, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        status = self._statuses.get(check.visible_service())
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _Answer(status=status)

    async def _watch(self, check: CheckedService, context: RpcContext) -> None:
        """Send the status and its changes until the caller's rights end. Raises CallError."""
        write, last = ResponseWriter(context).write, None
        with self._notifier.waiter() as waiter:
            while True:
                status = self._statuses.get(check.visible_service(), _Answer.SERVICE_UNKNOWN)
                if status != last:
                    try:
                        async with asyncio.timeout(self._stalled_s):
                            await write(_Answer(status=status).SerializeToString())
                    except TimeoutError:
                        message = f"the client read nothing for {self._stalled_s:g} s; call again"
                        raise StalledError("STALLED", message) from None
                    last = status
                await waiter.wait_for_change(math.inf)
