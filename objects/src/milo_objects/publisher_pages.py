"""The HTTP pages of a publisher: probes and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from milo_discovery.extras import needs_extra
from milo_kube.http.server import HttpReply, ServerRequest
from milo_objects.publication import StreamConnected, StreamPublication

with needs_extra("nats", "milo-objects", ("./kube", "./clients/python", "./clients/cli", "./objects")):
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

SCOPE_STATES: Final = ("PENDING", "SYNCED", "STALE", "FORBIDDEN", "NOT_SERVED", "OVER_BUDGET")


class PublicationCollector(Collector):
    """The metrics of a publication, read when they are scraped."""

    def __init__(self, publication: StreamPublication) -> None:
        self._publication = publication

    def collect(self) -> Iterator[Metric]:
        publication = self._publication
        yield GaugeMetricFamily(
            "milo_objects_connected",
            "Whether NATS can be reached and its stream can be used (1) or not (0).",
            isinstance(publication.connection, StreamConnected),
        )
        yield GaugeMetricFamily(
            "milo_objects_pending", "Objects whose last change is not in the stream yet.", publication.pending
        )
        yield GaugeMetricFamily(
            "milo_objects_refused",
            "Objects that the stream does not take: too large, or it is full.",
            publication.refused,
        )
        scopes = GaugeMetricFamily(
            "milo_objects_scopes", "Kinds in clusters, by the state that readers are told.", labels=["state"]
        )
        states = publication.states()
        for state in SCOPE_STATES:
            scopes.add_metric([state], states[state])
        yield scopes
        stored = CounterMetricFamily(
            "milo_objects_messages", "Messages stored in the stream, by what they are about.", labels=["about"]
        )
        for about in ("cluster", "scope", "object"):
            stored.add_metric([about], publication.stored[about])
        yield stored
        failed = CounterMetricFamily(
            "milo_objects_failed_writes",
            "Writes that were not stored: another publisher was first, the stream is full, or no answer came.",
            labels=["cause"],
        )
        for cause in ("conflict", "full", "unanswered"):
            failed.add_metric([cause], publication.rejected[cause])
        yield failed


class PublisherPages:
    """Answers requests for /livez, /readyz and /metrics."""

    def __init__(self, publication: StreamPublication) -> None:
        self._publication = publication
        self._registry = CollectorRegistry()
        self._registry.register(PublicationCollector(publication))

    async def answer(self, request: ServerRequest) -> HttpReply:
        match request.path:
            case "/livez":
                return HttpReply(b"ok\n")
            case "/readyz":
                connection = self._publication.connection
                if isinstance(connection, StreamConnected):
                    return HttpReply(b"ok\n")
                away_s = asyncio.get_running_loop().time() - connection.since
                since = datetime.fromtimestamp(datetime.now(UTC).timestamp() - away_s, UTC)
                text = f"not ready since {since:%Y-%m-%dT%H:%M:%SZ}: {connection.problem}\n"
                return HttpReply(text.encode(), status=503)
            case "/metrics":
                return HttpReply(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)
        return HttpReply(b"pages: /livez /readyz /metrics\n", status=404)
