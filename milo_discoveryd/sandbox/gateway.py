"""The front of the server: who is calling, and which API they mean. Errors become answers here, and nowhere else."""

from aiohttp import web

from milo_discoveryd.sandbox import answers, refusals
from milo_discoveryd.sandbox.api import Api
from milo_discoveryd.sandbox.refusals import PlainError, RefusedError
from milo_discoveryd.sandbox.tokens import Tokens

_OPEN_TO_ALL = frozenset({"livez", "readyz", "healthz", "version"})


class Gateway:
    def __init__(self, milo: Api, tokens: Tokens) -> None:
        self._milo = milo
        self._tokens = tokens

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except (RefusedError, PlainError) as refusal:
            return answers.refused(refusal)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        segments = [segment for segment in request.path.split("/") if segment]
        subject = self._authenticate(request, segments)
        return await self._milo.answer(request, segments, subject)

    def _authenticate(self, request: web.BaseRequest, segments: list[str]) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._tokens.subject(token.strip())
        if len(segments) == 1 and segments[0] in _OPEN_TO_ALL:
            return "system:anonymous"
        raise refusals.unauthorized()
