"""Traces, by OpenTelemetry: an extra, and off until somebody says where spans are to go.

A span for each call that a subscriber makes, a child of the caller's own where it sent one along, and for each request
to an API server or token endpoint. Spans hold methods, addresses and statuses: no message, no header, no error's text.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from milo_discoveryd.daemon_errors import StartError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

SEND_WITHIN_S = 5
EXPORTER_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
INSTALL_HINT = "install the extra `traces` of milo-discoveryd, or unset traces.endpoint"


@asynccontextmanager
async def exporting(endpoint: str, share: float, *, version: str, mode: str) -> "AsyncIterator[TracerProvider]":
    """To an OTLP receiver, over HTTP; one that is away costs spans, and nothing else.

    What is asked of an API server is traced from the sessions that are opened from here on.
    """
    try:
        # Heavy, and seldom wanted.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor  # noqa: PLC0415
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
    upstream = AioHttpClientInstrumentor()
    upstream.instrument(tracer_provider=provider)
    try:
        yield provider
    finally:
        upstream.uninstrument()
        # It sends what is left, and waits for that.
        await asyncio.to_thread(provider.shutdown)
