"""The HTTP endpoint: `/metrics`, `/livez`, `/readyz`, and the status page at `/`.

Live means that this process answers: nothing outside of it matters. Ready means that one complete list was seen, and
stays so when the source is lost: a daemon with an old view serves better than none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiohttp import web
from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.telemetry import status_page
from milo_discoveryd.telemetry.board import Board
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.telemetry.status import Question

CONNECTIONS = 64
"""At once. For one more the oldest is ended: a crowd that says nothing keeps neither Prometheus out nor a kubelet."""

Checks = Callable[[], Mapping[str, str | None]]
"""By name, what is wrong; None where nothing is."""


class Endpoint:
    def __init__(self, metrics: Metrics, board: Board, *, ready: Checks, live: Checks) -> None:
        self._metrics = metrics
        self._board = board
        self._ready = ready
        self._live = live
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Where it listens. Raises StartError."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._serve_status),
                web.get("/metrics", self._serve_metrics),
                web.get("/livez", self._answer(self._live)),
                web.get("/readyz", self._answer(self._ready)),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None

        def connection() -> asyncio.Protocol:
            transports = (each.transport for each in server.connections)
            still_open = [each for each in transports if each is not None and not each.is_closing()]
            for oldest in still_open[: max(0, len(still_open) + 1 - CONNECTIONS)]:
                oldest.abort()
            return server()

        try:
            self._listening = await asyncio.get_running_loop().create_server(connection, host or None, port)
        except OSError as error:
            await self.stop()
            raise StartError(f"can't listen on {host}:{port} for metrics: {error.strerror or error}") from error
        return _url(self._listening)

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve_metrics(self, request: web.Request) -> web.Response:
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        # Collected here, where nothing changes meanwhile, and turned into text elsewhere: that is the long part.
        families = list(self._metrics.registry.collect())
        body = await asyncio.to_thread(encode, _Collected(families))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _serve_status(self, request: web.Request) -> web.Response:
        question = Question(search=request.query.get("q", ""), state=request.query.get("state", ""))
        status = self._board.status(question)
        if "json" in request.query:
            body, content_type = status_page.to_json(status), "application/json"
        else:
            body, content_type = status_page.render(status, question).encode(), "text/html"
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=status_page.HEADERS)

    def _answer(self, checks: Checks) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            found = checks()
            well = all(problem is None for problem in found.values())
            if well and "verbose" not in request.query:
                return web.Response(text="ok\n")
            lines = [f"[{'+' if problem is None else '-'}]{name} {problem or 'ok'}" for name, problem in found.items()]
            lines.append("ok" if well else "failed")
            return web.Response(text="\n".join(lines) + "\n", status=200 if well else 503)

        return answer


class _Collected(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _url(listening: asyncio.Server) -> str:
    host, port = listening.sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
