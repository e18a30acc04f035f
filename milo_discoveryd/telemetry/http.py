"""The HTTP port: `/metrics`, `/livez`, `/readyz`, and the status page at `/`.

Live means that the process answers. Ready means that one complete list was seen, and stays so while the source is lost:
a daemon with stale data serves better than none.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.http.server import Request, Response, Server
from milo_discoveryd.telemetry import status_page
from milo_discoveryd.telemetry.board import Board
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.telemetry.status import Question

CONNECTIONS = 64

Checks = Callable[[], Mapping[str, str | None]]
"""By name, what is wrong; None where nothing is."""


class Endpoint:
    def __init__(self, metrics: Metrics, board: Board, *, ready: Checks) -> None:
        self._metrics = metrics
        self._board = board
        self._ready = ready
        self._server = Server(self._answer, connections=CONNECTIONS)

    async def start(self, host: str, port: int) -> str:
        """Return the URL. Raises StartError."""
        try:
            return await self._server.start(host or None, port)
        except OSError as error:
            raise StartError(f"can't listen on {host}:{port} for metrics: {error.strerror or error}") from error

    async def stop(self) -> None:
        await self._server.stop()

    async def _answer(self, request: Request) -> Response:
        match request.path:
            case "/livez":
                return Response(b"ok\n")
            case "/readyz":
                return _checked(self._ready(), is_verbose="verbose" in request.query)
            case "/metrics":
                return await self._scraped(request.headers.get("Accept", ""))
            case "/":
                return self._status(request.query)
            case _:
                return Response(b"not found; there are /, /metrics, /livez and /readyz\n", status=404)

    async def _scraped(self, accept: str) -> Response:
        encode, content_type = exposition.choose_encoder(accept)
        # Collected here, where nothing changes meanwhile, and encoded in a thread: that takes most of the time.
        families = list(self._metrics.registry.collect())
        return Response(await asyncio.to_thread(encode, _Collected(families)), content_type)

    def _status(self, query: Mapping[str, str]) -> Response:
        question = Question(search=query.get("q", ""), state=query.get("state", ""))
        status = self._board.status(question)
        if "json" in query:
            return Response(status_page.to_json(status), "application/json", headers=status_page.HEADERS)
        page = status_page.render(status, question).encode()
        return Response(page, "text/html; charset=utf-8", headers=status_page.HEADERS)


def _checked(found: Mapping[str, str | None], *, is_verbose: bool) -> Response:
    is_well = all(problem is None for problem in found.values())
    if is_well and not is_verbose:
        return Response(b"ok\n")
    lines = [f"[{'+' if problem is None else '-'}]{name} {problem or 'ok'}" for name, problem in found.items()]
    lines.append("ok" if is_well else "failed")
    return Response(("\n".join(lines) + "\n").encode(), status=200 if is_well else 503)


class _Collected(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families
