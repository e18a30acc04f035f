"""The HTTP port: `/metrics`, `/livez`, `/readyz`, `/readyz/sharding`, `/handed-over` and the status page at `/`.

`/livez` succeeds while the process responds. `/readyz` succeeds once at least one source is synced, and still
succeeds while that source is lost: stale data is better than none.

In a shard group, `/readyz/sharding` succeeds once the member has its share of the clusters: a rollout waits for it
before it replaces the next pod. `/handed-over` responds once the member has handed its clusters over: the operator's
preStop hook waits for it.
"""

import errno
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client import exposition
from prometheus_client.metrics_core import Metric

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.process_hardening import descriptor_limit
from milo_discoveryd.telemetry.board import StatusBoard
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.telemetry.shared_scrape import ScrapeForm, SharedScrape, Turns
from milo_discoveryd.telemetry.status import ClusterQuery
from milo_kube.http.server import HttpReply, HttpServer, ServerRequest
from milo_kube.http.visitors import is_on_loopback, is_own_host

CONNECTIONS = 64
"""Maximum number of connections, and at most one for eight files that the process may open: the port serves anybody."""

_NAMED = frozenset(
    {"milo_discoveryd_cluster_info", "milo_discoveryd_cluster_reachable", "milo_discoveryd_organization_clusters"}
)
"""Metrics with names of clusters or organizations as label values, which are not shown to every client."""

_OPEN_METRICS = "application/openmetrics-text"

Checks = Callable[[], Mapping[str, str | None]]
"""Returns the problem of each check by name; None for a check that passed."""


class HttpEndpoint:
    def __init__(
        self,
        metrics: Metrics,
        board: StatusBoard,
        *,
        ready: Checks,
        sharding: Checks = dict,
        handed_over: Callable[[], Awaitable[None]] | None = None,
        names_for: str = "loopback",
        hosts: Sequence[str] = (),
    ) -> None:
        """`hosts` are additional names accepted in the Host header of requests to this port."""
        self._metrics = metrics
        self._board = board
        self._ready = ready
        self._sharding = sharding
        self._handed_over = handed_over
        self._names_for = names_for
        self._hosts = frozenset(host.lower() for host in hosts)
        self._server = HttpServer(self._answer, connections=min(CONNECTIONS, max(1, descriptor_limit() // 8)))
        self._scrape = SharedScrape(self._collected)
        self._status_turns = Turns()

    async def start(self, host: str, port: int) -> str:
        """Start the server, and return its URL. Raises StartError."""
        try:
            return await self._server.start(host or None, port)
        except OSError as error:
            problem = "address already in use" if error.errno == errno.EADDRINUSE else error.strerror or error
            raise StartError(
                f"can't listen on {host}:{port} for metrics: {problem}; set another --http-listen, or "
                "set it to off, or stop any process that uses the port"
            ) from error

    async def stop(self) -> None:
        await self._server.stop()
        await self._scrape.stop()

    async def _answer(self, request: ServerRequest) -> HttpReply:
        match request.path:
            case "/livez":
                return HttpReply(b"ok\n")
            case "/readyz" | "/readyz/sharding" as path:
                checks = self._ready() if path == "/readyz" else self._sharding()
                return _checked(checks, is_verbose="verbose" in request.query)
            case "/handed-over" if self._handed_over is not None:
                await self._handed_over()
                return HttpReply(b"ok\n")
            case "/metrics" | "/" if is_own_host(request.headers.get("Host", ""), self._hosts):
                return await self._shown(request)
            case "/metrics" | "/":
                return HttpReply(b"the Host header is not accepted; add its name to http_hosts\n", status=421)
            case _:
                return HttpReply(b"not found; try /, /metrics, /livez or /readyz\n", status=404)

    async def _shown(self, request: ServerRequest) -> HttpReply:
        match request.path:
            case "/metrics":
                return await self._scraped(request)
            case _:
                return await self._status(request)

    def _shows_names(self, request: ServerRequest) -> bool:
        match self._names_for:
            case "everyone":
                return True
            case "loopback":
                return is_on_loopback(request.peer)
            case _:
                return False

    async def _scraped(self, request: ServerRequest) -> HttpReply:
        try:
            _, chosen = exposition.choose_encoder(request.headers.get("Accept", ""))
        except TypeError:  # a version that is not a number, compared with one
            chosen = ""
        # In two forms only: clients can state any number of versions, each of which would need a build of its own.
        encode, content_type = exposition.choose_encoder(_OPEN_METRICS if chosen.startswith(_OPEN_METRICS) else "")
        form = ScrapeForm(content_type, self._shows_names(request))
        return HttpReply(await self._scrape.read(form, lambda found: printable_metrics(encode(found))), content_type)

    def _collected(self, with_names: bool) -> Iterator[Metric]:
        return (family for family in self._metrics.registry.collect() if with_names or family.name not in _NAMED)

    async def _status(self, request: ServerRequest) -> HttpReply:
        from milo_discoveryd.telemetry import status_page  # noqa: PLC0415 - few daemons show it

        if "json" not in request.query:
            return HttpReply(status_page.PAGE, "text/html; charset=utf-8", headers=status_page.HEADERS)
        async with self._status_turns.turn():
            status = await self._board.status(_question(request.query), with_names=self._shows_names(request))
            encoded = msgspec.json.encode(status)
        return HttpReply(encoded, "application/json", headers=status_page.HEADERS)


def _question(query: Mapping[str, str]) -> ClusterQuery:
    page = query.get("page", "")
    return ClusterQuery(
        search=query.get("q", ""),
        state=query.get("state", ""),
        page=int(page) if page.isascii() and page.isdigit() and len(page) < 10 else 1,
        cluster=query.get("cluster", ""),
    )


def _checked(found: Mapping[str, str | None], *, is_verbose: bool) -> HttpReply:
    if not any(found.values()) and not is_verbose:
        return HttpReply(b"ok\n")
    # A failing source must not make other sources unavailable. Without a shard group, `/readyz/sharding` has no checks.
    is_ready = not found or None in found.values()
    lines = [f"[{'+' if problem is None else '-'}]{name} {problem or 'ok'}" for name, problem in found.items()]
    lines.append("ok" if is_ready else "failed")
    return HttpReply(("\n".join(lines) + "\n").encode(), status=200 if is_ready else 503)


# Invisible characters, except the newline, which separates the lines of metrics.
_HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def printable_metrics(encoded: bytes) -> bytes:
    """Replace invisible characters in metrics: the exposition format has no escape sequences for them."""
    return _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", encoded.decode()).encode()
