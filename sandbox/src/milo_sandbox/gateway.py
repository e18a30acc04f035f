"""Authenticates requests and routes them to an API. RefusalError and PlainError become responses here."""

from collections import Counter
from collections.abc import Callable

import msgspec
from aiohttp import web

from milo_sandbox import answers, contexts, refusals, token_endpoint
from milo_sandbox.backends import Backends
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.faults import Approach, Faults, Injected
from milo_sandbox.refusals import PlainError, RefusalError
from milo_sandbox.token_endpoint import AssertionEndpoint
from milo_sandbox.tokens import Tokens

_OPEN_TO_ALL = frozenset({"livez", "readyz", "healthz", "version"})


class Gateway:
    def __init__(
        self,
        backends: Backends,
        endpoint: AssertionEndpoint,
        *,
        url: Callable[[], str],
        tokens: Tokens,
        faults: Faults,
        limits_organization_watches: bool,
    ) -> None:
        """`url` returns the URL of the server."""
        self._backends = backends
        self._endpoint = endpoint
        self._url = url
        self._tokens = tokens
        self._faults = faults
        self._limits_organization_watches = limits_organization_watches
        self.requests = 0
        """The number of requests, answered or not."""
        self.requests_of: Counter[str] = Counter()
        """The number of requests to each project's control plane; other requests are counted under ""."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        try:
            return await self._answer(request)
        except (RefusalError, PlainError) as refusal:
            return answers.refused(refusal)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        segments = [segment for segment in request.path.split("/") if segment]
        if tuple(segments) == token_endpoint.PATH and request.method == "POST":
            return await self._endpoint.answer(request, self._url())
        context = contexts.entered(segments)
        project, below = context.project, context.segments
        self.requests_of[project] += 1
        query = contexts.constrained(context, request.method, request.query, watches=self._limits_organization_watches)
        if query is not None:
            request = request.clone(rel_url=request.rel_url.with_query(query))
        self._faults.check(Approach(segments=tuple(below), query=request.query, project=project))
        subject = self._authenticate(request, below)
        if segments == ["sandbox", "faults"]:
            return await self._answer_faults(request)
        if segments and (platform := self._backends.platforms.get(segments[0])) is not None:
            return await platform.answer(request, segments[1:], subject)
        # CustomResourceDefinitions are global.
        is_definition = below[:2] == ["apis", CUSTOM_RESOURCE_DEFINITIONS.group]
        api = self._backends.control_planes.of(project) if project and not is_definition else self._backends.milo
        return await api.answer(request, below, subject)

    async def _answer_faults(self, request: web.BaseRequest) -> web.StreamResponse:
        """Inject a fault, remove all injected faults, or only return how many requests hang."""
        if request.method == "POST":
            try:
                self._faults.inject(msgspec.json.decode(await request.read(), type=Injected))
            except msgspec.DecodeError as error:
                raise refusals.bad_request(f"the body of the request is not a fault: {error}") from error
        elif request.method == "DELETE":
            self._faults.stop_injected()
        return answers.document({"hanging": self._faults.held_requests})

    def _authenticate(self, request: web.BaseRequest, segments: list[str]) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._tokens.subject(token.strip())
        if len(segments) == 1 and segments[0] in _OPEN_TO_ALL:
            return "system:anonymous"
        raise refusals.unauthorized()
