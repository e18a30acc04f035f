"""The front of the server: who is calling, and which API they mean. Errors become answers here, and nowhere else."""

from aiohttp import web

from milo_discoveryd.sandbox import answers, refusals
from milo_discoveryd.sandbox.api import Api
from milo_discoveryd.sandbox.control_planes import ControlPlanes
from milo_discoveryd.sandbox.refusals import PlainError, RefusedError
from milo_discoveryd.sandbox.resources import PROJECTS
from milo_discoveryd.sandbox.tokens import Tokens

_OPEN_TO_ALL = frozenset({"livez", "readyz", "healthz", "version"})


class Gateway:
    def __init__(self, milo: Api, control_planes: ControlPlanes, tokens: Tokens) -> None:
        self._milo = milo
        self._control_planes = control_planes
        self._tokens = tokens

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except (RefusedError, PlainError) as refusal:
            return answers.refused(refusal)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        segments = [segment for segment in request.path.split("/") if segment]
        subject = self._authenticate(request, segments)
        match segments:
            case ("apis", PROJECTS.group, PROJECTS.version, PROJECTS.plural, project, "control-plane", *rest):
                api = self._control_planes.of(project, method=request.method)
                return await api.answer(request, rest, subject)
        return await self._milo.answer(request, segments, subject)

    def _authenticate(self, request: web.BaseRequest, segments: list[str]) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._tokens.subject(token.strip())
        if len(segments) == 1 and segments[0] in _OPEN_TO_ALL:
            return "system:anonymous"
        raise refusals.unauthorized()
