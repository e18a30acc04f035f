"""Interceptors around calls: metrics, the mapping of errors to gRPC statuses, and access to health checks and
reflection."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from milo_discoveryd.instruments import CallMetrics
from milo_discoveryd.logger import log
from milo_discoveryd.server.calls.access import AccessControl, CallContext
from milo_discoveryd.server.calls.grpc_errors import (
    CallError,
    InvalidRequestError,
    LateRequestError,
    PermissionDeniedError,
    TooManyCallsError,
    TooManyReviewsError,
    UnauthenticatedError,
    UnavailableError,
    error_status,
    internal_error,
)
from milo_discoveryd.server.calls.in_flight import InFlightCalls
from milo_discoveryd.server.calls.rpc_context import Authenticator
from milo_discoveryd.server.calls.verification import verified
from milo_discoveryd.server.paced_audit import PacedAudit

ABORT_S = 5.0
REFLECTION_S = 30.0
"""How long a call of reflection may last: its token needs no other review. Clients ask all that they need at once."""
_REQUEST_BYTES = 1024
"""Maximum size of a request of a watch of health, which keeps it, and of reflection, whose answer repeats it."""
_UNKNOWN_SERVICE = "unknown"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic only in grpc's type stubs
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
RpcType: TypeAlias = Literal["unary", "server_stream", "bidi_stream"]


class Rpc(NamedTuple):
    """The identity of an RPC, as gRPC's conventional metric labels name it."""

    type: RpcType
    service: str
    method: str


_PACED = (UnauthenticatedError, PermissionDeniedError, TooManyCallsError, TooManyReviewsError, LateRequestError)
"""Errors that a caller would get again if it repeated the call at once."""


class Refusals:
    """Responds to failed calls, and counts refused calls.

    A caller with too many refused calls loses its connection. So does one that does not read the end of a stream: until
    then, gRPC keeps what the stream has sent.
    """

    def __init__(self, authenticator: Authenticator, audit: PacedAudit) -> None:
        self.authenticator = authenticator
        self._audit = audit

    async def answer(self, method: str, context: Any, error: CallError, *, is_stream: bool = False) -> None:
        try:
            await self.abort(context, error_status(error), is_stream=is_stream)
        finally:
            if isinstance(error, TooManyCallsError | LateRequestError):
                self._audit.refused(self.authenticator.connected(context), "", error.reason, call=method)
            if isinstance(error, _PACED):
                self.authenticator.refused(context)

    async def abort(self, context: Any, status: status_pb2.Status, *, is_stream: bool) -> None:
        if is_stream:
            await abort(context, status, self.authenticator.close)
        else:
            await abort(context, status)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Counts and times calls, and maps their errors.

    Only the interceptors of traces and of arriving requests may wrap it: gRPC sends the text of an unhandled exception,
    which may contain secrets, to the caller.
    """

    def __init__(self, metrics: CallMetrics, refusals: Refusals) -> None:
        self._metrics = metrics
        self._refusals = refusals

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        _, service, method = handler_call_details.method.split("/")
        rpc = Rpc(_type_of(handler), service, method)
        return wrap_handler(handler, partial(self._guarded, rpc))

    def _guarded(self, rpc: Rpc, call: Any) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            code = "CANCELLED"
            self._metrics.call_started(rpc)
            self._refusals.authenticator.count_call(context, 1)
            try:
                answer = await call(request, context)
            except CallError as error:
                code = code_pb2.Code.Name(error.code)
                await self._refusals.answer(rpc.method, context, error, is_stream=rpc.type != "unary")
            except grpc.aio.AbortError:
                code = context.code().name if context.code() else "UNKNOWN"
                raise
            except grpc.aio.InternalError:
                raise _disconnected() from None
            except Exception:
                code = "INTERNAL"
                incident, status = internal_error()
                log.exception("call failed", method=rpc.method, incident=incident)
                await self._refusals.abort(context, status, is_stream=rpc.type != "unary")
            else:
                code = "OK"
                return answer
            finally:
                self._refusals.authenticator.count_call(context, -1)
                self._metrics.call_handled(rpc, code, time.perf_counter() - started)

        return guarded


class CheckedService:
    """A health check by a caller under its current rights."""

    def __init__(self, service: str, call: CallContext, prefix: str) -> None:
        """Names of services that begin with `prefix` are those of sources."""
        self._service = service
        self._call = call
        self._prefix = prefix

    def visible_service(self) -> str:
        """Return the name of the service, but that of an unknown one for a source outside of the caller's scope.

        Raises PermissionDeniedError if the caller may no longer call.
        """
        self._call.require_rule()
        if not self._service.startswith(self._prefix):
            return self._service
        is_visible = self._call.scope.covers_source(self._service.removeprefix(self._prefix))
        return self._service if is_visible else _UNKNOWN_SERVICE


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Applies the rules and limits of the service's own calls to health checks and reflection."""

    def __init__(
        self,
        service: str,
        access: AccessControl,
        authenticator: Authenticator,
        in_flight: InFlightCalls,
        refusals: Refusals,
    ) -> None:
        """`service` names the service that checks access itself."""
        self._prefix = f"/{service}/"
        self._access = access
        self._authenticator = authenticator
        self._in_flight = in_flight
        self._refusals = refusals

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(self._prefix):
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        if handler.request_streaming:
            return wrap_handler(handler, partial(self._reflecting, method))
        return wrap_handler(handler, partial(self._guarded, method, is_stream=handler.response_streaming))

    def _guarded(self, method: str, call: Any, *, is_stream: bool) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            size = request.ByteSize()
            async with self._admitted(method, context, is_stream=is_stream, request_bytes=size) as admitted:
                check = CheckedService(request.service, admitted, self._prefix[1:])
                if not is_stream:
                    return await call(check, context)
                if size > _REQUEST_BYTES:
                    raise InvalidRequestError("service", "longer than any service name")
                async with verified(self._authenticator, admitted.caller, context):
                    return await call(check, context)

        return guarded

    def _reflecting(self, method: str, call: Any) -> Any:
        async def admitted(messages: Any, context: Any) -> None:
            async with (
                self._admitted(method, context, is_reflection=True) as caller,
                aclosing(_permitted(messages, caller)) as requests,
            ):
                try:
                    async with asyncio.timeout(REFLECTION_S):
                        await call(requests, context)
                except TimeoutError:
                    message = f"reflection took longer than {REFLECTION_S:g} s; call again"
                    raise UnavailableError("REFLECTION_ENDED", message, retry_after_s=0) from None

        return admitted

    @asynccontextmanager
    async def _admitted(
        self,
        method: str,
        context: Any,
        *,
        is_stream: bool = False,
        request_bytes: int = 0,
        is_reflection: bool = False,
    ) -> AsyncIterator[CallContext]:
        owners = self._authenticator.origin(context).owners
        with self._in_flight.slot(owners, request_bytes, is_reflection=is_reflection) as slot:
            caller = await self._authenticator.identify(context)
            async with self._access.authorize(caller, method) as call:
                if not is_stream:
                    yield call
                    return
                with call.stream_slot():
                    slot.release()
                    yield call


async def _permitted(messages: Any, call: CallContext) -> AsyncGenerator[Any, None]:
    """Yield the requests of reflection while the caller may call. Raises CallError."""
    # Closed, because gRPC's iterator refers to itself, and to its last message.
    async with aclosing(aiter(messages)) as iterator:
        async for request in iterator:
            call.require_rule()
            if request.ByteSize() > _REQUEST_BYTES:
                raise InvalidRequestError("request", f"more than {_REQUEST_BYTES} bytes")
            yield request


def wrap_handler(handler: "Handler | None", wrap: Callable[[Any], Any]) -> "Handler | None":
    """Return the handler with its calls wrapped. Those of request streams, which only reflection has, get an iterator
    of the requests."""
    if handler is None:
        return None
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(
            wrap(handler.stream_stream),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
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


def _type_of(handler: Handler) -> RpcType:
    if not handler.response_streaming:
        return "unary"
    return "bidi_stream" if handler.request_streaming else "server_stream"


async def abort(context: Any, status: status_pb2.Status, close: Callable[[Any], None] = lambda _: None) -> None:
    """Abort the call with the status. If the client does not read it in time, call `close`, and return."""
    try:
        async with asyncio.timeout(ABORT_S):
            await context.abort_with_status(rpc_status.to_status(status))
    except TimeoutError:
        close(context)
    except grpc.aio.InternalError:
        raise _disconnected() from None


def _disconnected() -> asyncio.CancelledError:
    """Return the error for a call whose client has disconnected. gRPC cancels such a call a little later; until then,
    its writes fail with an internal error."""
    log.debug("client disconnected")
    return asyncio.CancelledError()
