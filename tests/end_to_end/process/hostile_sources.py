"""API servers of sources that attack the daemon which follows them."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from aiohttp import web

from milo_discoveryd.sources.project import PROJECTS
from tests.end_to_end.process.project_server import ProjectServer
from tests.support.web_server import serving

FORGED = "refused\n2026-01-01 00:00:00 INFO forged: all is well\r\x1b[2J\x1b[31m"


class EndlessLists:
    """An API server that continues each list of Projects with another page: an empty one, or always the same one."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self._items = items
        self.requests = 0

    def listening(self) -> AbstractAsyncContextManager[str]:
        return serving(self._answer)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != PROJECTS.path:
            return web.Response(text="ok")
        self.requests += 1
        metadata = {"resourceVersion": "5", "continue": f"{self.requests}"}
        return web.json_response({"metadata": metadata, "items": self._items})


class ForgingServer(ProjectServer):
    """Serves Projects, whose control planes refuse everything with a message that forges lines of logs."""

    is_forging = False
    """Whether lists of Projects are refused too."""

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if "control-plane" not in request.path and not self.is_forging:
            return await super()._answer(request)
        status = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": FORGED}
        return web.json_response(status, status=403)
