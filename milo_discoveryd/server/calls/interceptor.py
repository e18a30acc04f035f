"""Around every call: counts it, times it, and sees to it that no error reaches a caller unmapped.

gRPC sends the text of an unhandled exception to the caller, whatever secret it quotes; so this stands outermost.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import grpc
import structlog
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from milo_discoveryd.server.calls.grpc_errors import CallError, status, unexpected

log = structlog.get_logger()

ABORT_S = 5.0

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its type stubs only


class Rpc(NamedTuple):
    """The identity of an RPC, as gRPC's conventional metric labels name it."""

    type: Literal["unary", "server_stream"]
    service: str
    method: str


class CallMetrics(Protocol):
    def call_started(self, rpc: Rpc) -> None: ...

    def call_handled(self, rpc: Rpc, code: str, seconds: float) -> None: ...


class CallInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, tally: CallMetrics) -> None:
        self._tally = tally

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        _, service, method = handler_call_details.method.split("/")
        rpc = Rpc("server_stream" if handler.response_streaming else "unary", service, method)
        return wrap_handler(handler, partial(self._guarded, rpc))

    def _guarded(self, rpc: Rpc, call: Any) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            code = "CANCELLED"
            self._tally.call_started(rpc)
            try:
                answer = await call(request, context)
            except CallError as error:
                code = code_pb2.Code.Name(error.code)
                await _abort(context, status(error))
            except grpc.aio.AbortError:
                code = context.code().name if context.code() else "UNKNOWN"
                raise
            except grpc.aio.InternalError:
                # So ends a write that waited for a caller who is gone by now. gRPC is about to cancel the call for it,
                # and would take this error for one of ours until then.
                log.debug("caller gone", method=rpc.method)
                raise asyncio.CancelledError from None
            except Exception:
                code = "INTERNAL"
                incident, told = unexpected()
                log.exception("call failed", method=rpc.method, incident=incident)
                await _abort(context, told)
            else:
                code = "OK"
                return answer
            finally:
                self._tally.call_handled(rpc, code, time.perf_counter() - started)

        return guarded


def wrap_handler(handler: "Handler | None", wrap: Callable[[Any], Any]) -> "Handler | None":
    """The same handler, with its calls wrapped. What we don't have, calls that stream requests, is left alone."""
    if handler is None or handler.request_streaming:
        return handler
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            wrap(handler.unary_stream),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
    return grpc.unary_unary_rpc_method_handler(
        wrap(handler.unary_unary),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def _abort(context: Any, told: status_pb2.Status) -> None:
    """Ends the call. A caller that reads nothing holds up even its end: that is left to gRPC, which has it by then."""
    try:
        async with asyncio.timeout(ABORT_S):
            await context.abort_with_status(rpc_status.to_status(told))
    except TimeoutError:
        return
