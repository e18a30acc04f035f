"""The APIs that one sandbox serves: Milo's, those of its projects, and those of other servers on the same address."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from aiohttp import web

from milo_sandbox.api import Api
from milo_sandbox.control_planes import ControlPlanes
from milo_sandbox.infrastructure import Infrastructure
from milo_sandbox.resources import INFRASTRUCTURE as INFRASTRUCTURE_KINDS
from milo_sandbox.resources import PROJECTS, ResourceDefinition
from milo_sandbox.rights import SubjectRights
from milo_sandbox.server import HttpsServer
from milo_sandbox.store import Store
from milo_sandbox.tokens import Tokens
from milo_sandbox.webhooks import RootWebhooks

INFRASTRUCTURE = "infrastructure"
"""The path prefix of the infrastructure cluster."""


class Platform(Protocol):
    """A server of the paths below a prefix."""

    async def answer(self, request: web.BaseRequest, segments: list[str], subject: str) -> web.StreamResponse: ...


class Backends:
    """The APIs of one sandbox."""

    def __init__(
        self,
        store: Store,
        new_api: Callable[[Store], Api],
        *,
        served: Sequence[ResourceDefinition],
        random: Random,
        tokens: Tokens,
        rights: SubjectRights,
        server: HttpsServer,
    ) -> None:
        """`store`: that of Milo's API. `served`: further kinds of control planes."""
        self._server = server
        self.new_api = new_api
        webhooks = RootWebhooks(store)

        def new_milo_api(of: Store) -> Api:
            api = new_api(of)
            api.webhooks = webhooks
            return api

        self.milo = new_milo_api(store)
        self.control_planes = ControlPlanes(store, new_milo_api, served=served)
        self.infrastructure = Infrastructure(
            new_api(Store(INFRASTRUCTURE_KINDS, random=random, history_limit=1_000)), tokens=tokens, rights=rights
        )
        tokens.holds = self.infrastructure.holds
        self.platforms: dict[str, Platform] = {INFRASTRUCTURE: self.infrastructure}
        """The servers other than Milo's, by the prefix of their paths."""

    def opened(self) -> list[Api]:
        """Return the APIs of Milo and of all control planes in use."""
        return [self.milo, *self.control_planes.opened()]

    def control_plane_url(self, project: str) -> str:
        return f"{self._server.url}/apis/{PROJECTS.api_version}/{PROJECTS.plural}/{project}/control-plane"
