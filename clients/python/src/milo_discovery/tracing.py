"""OpenTelemetry spans, without a dependency on the OpenTelemetry packages."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class SpanTracer(Protocol):
    """An OpenTelemetry tracer."""

    def start_as_current_span(self, name: str, *args: Any, **options: Any) -> AbstractContextManager[Any]: ...


def span(tracer: SpanTracer | None, name: str, attributes: dict[str, str]) -> AbstractContextManager[Any]:
    """Return a context in which a span is current; without a tracer, one that does nothing."""
    return nullcontext() if tracer is None else tracer.start_as_current_span(name, attributes=attributes)
