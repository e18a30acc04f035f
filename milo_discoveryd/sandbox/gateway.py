"""The front of the server: who is calling, and which API they mean. Errors become answers here, and nowhere else."""

from aiohttp import web

from milo_discoveryd.sandbox import answers, refusals
from milo_discoveryd.sandbox.api import Api
from milo_discoveryd.sandbox.control_planes import ControlPlanes
from milo_discoveryd.sandbox.faults import Approach, Faults
from milo_discoveryd.sandbox.refusals import PlainError, RefusedError
from milo_discoveryd.sandbox.resources import PROJECTS
from milo_discoveryd.sandbox.tokens import Tokens

_OPEN_TO_ALL = frozenset({"livez", "readyz", "healthz", "version"})


class Gateway:
    def __init__(self, milo: Api, control_planes: ControlPlanes, *, tokens: Tokens, faults: Faults) -> None:
        self._milo = milo
        self._control_planes = control_planes
        self._tokens = tokens
        self._faults = faults

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except (RefusedError, PlainError) as refusal:
            return answers.refused(refusal)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        segments = [segment for segment in request.path.split("/") if segment]
        project, below = _split(segments)
        self._faults.check(Approach(segments=tuple(below), query=request.query, project=project))
        subject = self._authenticate(request, below)
        api = self._control_planes.of(project, method=request.method) if project else self._milo
        return await api.answer(request, below, subject)

    def _authenticate(self, request: web.BaseRequest, segments: list[str]) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._tokens.subject(token.strip())
        if len(segments) == 1 and segments[0] in _OPEN_TO_ALL:
            return "system:anonymous"
        raise refusals.unauthorized()


def _split(segments: list[str]) -> tuple[str, list[str]]:
    """The project whose control plane is meant, if any, and the path below the root of the API that is meant."""
    match segments:
        case ("apis", PROJECTS.group, PROJECTS.version, PROJECTS.plural, project, "control-plane", *below):
            return project, below
    return "", segments
