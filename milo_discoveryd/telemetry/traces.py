"""OpenTelemetry traces, which need the extra `traces`. They are disabled unless traces.endpoint is set.

There is a span for each gRPC call, in the caller's trace if it sent one, and for each request to an API server or token
endpoint. Spans hold methods, addresses and statuses: no message, no header, no error text.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from milo_discoveryd.daemon_errors import StartError
from milo_kube.http.client import tracer

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

SEND_WITHIN_S = 5
EXPORTER_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
INSTALL_HINT = "install the extra `traces` of milo-discoveryd, or unset traces.endpoint"


@asynccontextmanager
async def exporting(endpoint: str, share: float, *, version: str, mode: str) -> "AsyncIterator[TracerProvider]":
    """Export spans to an OTLP receiver over HTTP. If the receiver is down, spans are lost, and nothing else fails.

    Requests are traced in the tasks that begin within this context.
    """
    try:
        # Imported here because the packages are large, and few daemons export traces.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StartError(f"traces.endpoint: {error.name} is not installed; {INSTALL_HINT}") from error
    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": "milo-discoveryd", "service.version": version, "milo.discovery.mode": mode}
        ),
        sampler=ParentBased(TraceIdRatioBased(share)),
    )
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_WITHIN_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracing = tracer.set(_RequestTracer(provider))
    try:
        yield provider
    finally:
        tracer.reset(tracing)
        # Shutdown sends the remaining spans, and waits for the response.
        await asyncio.to_thread(provider.shutdown)


class _RequestTracer:
    """Makes a client span for each HTTP request."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._tracer = provider.get_tracer("milo_kube.http")

    def begin(self, method: str, url: str, headers: dict[str, str | tuple[str, ...]]) -> "_RequestSpan":
        from opentelemetry.propagate import inject  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415

        attributes = {"http.request.method": method, "url.full": url}
        span = self._tracer.start_span(method, kind=SpanKind.CLIENT, attributes=attributes)
        inject(headers, set_span_in_context(span))
        return _RequestSpan(span)


class _RequestSpan:
    def __init__(self, span: "Span") -> None:
        self._span = span

    def end(self, status: int | None) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if status is None or status >= 400:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
