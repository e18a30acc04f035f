"""The sandbox as those see it who start one: the demo, the bench, tests of ours and of operators."""

import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from milo_discoveryd.sandbox import kubeconfigs
from milo_discoveryd.sandbox.api import Api, Features
from milo_discoveryd.sandbox.certificates import issue_identity
from milo_discoveryd.sandbox.control_planes import ControlPlanes
from milo_discoveryd.sandbox.faults import Faults
from milo_discoveryd.sandbox.gateway import Gateway
from milo_discoveryd.sandbox.kubeconfigs import TokenFile
from milo_discoveryd.sandbox.objects import Objects
from milo_discoveryd.sandbox.resources import MILO, PROJECT_CONTROL_PLANES, PROJECTS, Document
from milo_discoveryd.sandbox.rights import ADMIN, Rights, Rule
from milo_discoveryd.sandbox.server import Server
from milo_discoveryd.sandbox.store import Store
from milo_discoveryd.sandbox.tokens import Tokens


class Sandbox:
    """A Milo API on an address of this machine, for as long as it is entered."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        projects: int = 0,
        seed: int | None = None,
        token_life: float = 600.0,
        features: Features = Features(),  # noqa: B008 - immutable
        history_limit: int = 20_000,
    ) -> None:
        random = Random(seed)  # noqa: S311 - names and UIDs need not be secret
        self.store = Store(MILO, random=random, history_limit=history_limit)
        self.projects = Objects(self.store, PROJECTS)
        self.control_planes = Objects(self.store, PROJECT_CONTROL_PLANES)
        self.rights = Rights()
        self.tokens = Tokens(life=token_life, clock=time.time)
        self.faults = Faults(time.monotonic)
        self._identity = issue_identity(host)

        def new_api(store: Store) -> Api:
            return Api(store, features=features, rights=self.rights, faults=self.faults)

        self._milo = new_api(self.store)
        self._control_planes = ControlPlanes(self.store, new_api)
        self._server = Server(
            Gateway(self._milo, self._control_planes, self.tokens), self._identity.ssl_context(), host, port
        )
        self._token_files: list[TokenFile] = []
        self._initial_projects = projects

    async def __aenter__(self) -> Self:
        if self._initial_projects:
            self.populate(self._initial_projects)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._token_files:
            file.stop()
        await self.stop()

    @property
    def url(self) -> str:
        host = f"[{self._server.host}]" if ":" in self._server.host else self._server.host
        return f"https://{host}:{self._server.port}"

    @property
    def ca_pem(self) -> bytes:
        return self._identity.ca_pem

    # Credentials

    def token(self, subject: str = ADMIN, *, rules: Iterable[Rule] | None = None, life: float | None = None) -> str:
        """A token for that subject, who is given these rules and no others if any are named."""
        if rules is not None:
            self.rights.grant(subject, rules)
        return self.tokens.issue(subject, life=life)

    def kubeconfig(self, *, token: str | None = None) -> Document:
        """A kubeconfig with the token in it, good for as long as the token is."""
        return kubeconfigs.kubeconfig(server=self.url, ca_pem=self.ca_pem, user={"token": token or self.token()})

    def write_kubeconfig(self, path: Path, *, subject: str = ADMIN) -> Path:
        """A kubeconfig whose token is in a file beside it, which is renewed for as long as the sandbox is entered."""
        path = path.absolute()
        file = TokenFile(path.with_name(f"{path.name}.token"), lambda: self.token(subject), life=self.tokens.life)
        file.start()
        self._token_files.append(file)
        config = kubeconfigs.kubeconfig(server=self.url, ca_pem=self.ca_pem, user={"tokenFile": str(file.path)})
        kubeconfigs.write(path, config)
        return path

    # The life of the server

    async def start(self) -> None:
        """Listen; after a stop, on the same address with the same data."""
        await self._server.start()

    async def stop(self) -> None:
        """Die as by kill -9."""
        await self._server.kill()

    def compact(self) -> None:
        """Forget the history: a watch can't be resumed from any version seen so far."""
        self.store.compact()

    def drop_watches(self) -> None:
        """Cut every open watch in mid-stream."""
        self._milo.streams.drop()

    # The world

    def populate(self, count: int, *, ready: bool = True) -> None:
        for i in range(count):
            self.projects.create(f"p-{i}", ready=ready)
            self.control_planes.create(f"p-{i}", ready=ready)
