"""Tracing: a span around each call, in the caller's trace. Imported only if traces are enabled."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, StatusCode, TracerProvider

from milo_discoveryd.server.calls.interceptor import Handler, wrap_handler

_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Statuses that count as failures of the server, as OpenTelemetry defines them."""


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """Creates a span for each call, except those of reflection.

    It wraps the error mapping, so that it never sees the text of an unexpected error.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("milo_discoveryd.server")

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        service, _, method = handler_call_details.method.strip("/").rpartition("/")
        metadata = {key: value for key, value in handler_call_details.invocation_metadata if isinstance(value, str)}

        def traced(call: Any) -> Any:
            async def in_span(request: Any, context: Any) -> Any:
                with self._tracer.start_as_current_span(
                    f"{service}/{method}",
                    context=extract(metadata),
                    kind=SpanKind.SERVER,
                    attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
                    record_exception=False,
                    set_status_on_exception=False,
                ) as span:
                    code = grpc.StatusCode.CANCELLED
                    try:
                        answer = await call(request, context)
                    except grpc.aio.AbortError:
                        code = context.code()
                        raise
                    else:
                        code = grpc.StatusCode.OK
                        return answer
                    finally:
                        span.set_attribute("rpc.grpc.status_code", code.value[0])
                        if code in _SERVER_ERRORS:
                            span.set_status(StatusCode.ERROR)

            return in_span

        return wrap_handler(await continuation(handler_call_details), traced)
