"""The sandbox as those see it who start one: the demo, the bench, tests of ours and of operators."""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from milo_sandbox import kubeconfigs
from milo_sandbox.api import Api, Features
from milo_sandbox.certificates import ServerIdentity, issue_identity
from milo_sandbox.churn import Churn
from milo_sandbox.control_planes import ControlPlanes
from milo_sandbox.faults import Faults
from milo_sandbox.gateway import INFRASTRUCTURE as INFRASTRUCTURE_PATH
from milo_sandbox.gateway import Gateway
from milo_sandbox.infrastructure import Infrastructure
from milo_sandbox.kubeconfigs import TokenFile
from milo_sandbox.milo import Milo
from milo_sandbox.names import Names
from milo_sandbox.resources import (
    INFRASTRUCTURE,
    MILO,
    NAMESPACES,
    PROJECTS,
    SERVICE_ACCOUNTS,
    Document,
    Resource,
)
from milo_sandbox.rights import ADMIN, EVERYTHING, Rights, Rule
from milo_sandbox.server import Server
from milo_sandbox.store import Snapshot, Store
from milo_sandbox.token_endpoint import TokenEndpoint
from milo_sandbox.tokens import Tokens


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
        identity: ServerIdentity | None = None,
        first_version: int = 1,
    ) -> None:
        self._random = Random(seed)  # noqa: S311 - names and UIDs need not be secret
        self.store = Store(MILO, random=self._random, history_limit=history_limit, first_version=first_version)
        self.names = Names(self._random)
        self.milo = Milo(self.store)
        self.projects = self.milo.projects
        self.control_planes = self.milo.control_planes
        self.rights = Rights()
        self.tokens = Tokens(life=token_life, clock=time.time)
        self.faults = Faults(time.monotonic)
        self._identity = identity or issue_identity(host)

        def new_api(store: Store) -> Api:
            return Api(store, features=features, rights=self.rights, tokens=self.tokens, faults=self.faults)

        self._api = new_api(self.store)
        self._project_apis = ControlPlanes(self.store, new_api)
        self.infrastructure = Infrastructure(
            new_api(Store(INFRASTRUCTURE, random=self._random, history_limit=1_000)),
            tokens=self.tokens,
            rights=self.rights,
        )
        self.tokens.holds = self.infrastructure.holds
        self.token_endpoint = TokenEndpoint(self.tokens, time.time)
        gateway = Gateway(
            self._api,
            self._project_apis,
            self.infrastructure,
            self.token_endpoint,
            url=lambda: self.url,
            tokens=self.tokens,
            faults=self.faults,
        )
        self._server = Server(gateway, self._identity.ssl_context(), host, port)
        self._token_files: list[TokenFile] = []
        self.populate(projects)

    async def __aenter__(self) -> Self:
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
    def port(self) -> int:
        return self._server.port

    @property
    def open_watches(self) -> int:
        return sum(len(api.streams) for api in self._apis)

    @property
    def ca_pem(self) -> bytes:
        return self._identity.ca_pem

    def control_plane_url(self, project: str) -> str:
        return f"{self.url}/apis/{PROJECTS.api_version}/{PROJECTS.plural}/{project}/control-plane"

    # Credentials

    def token(
        self,
        subject: str = ADMIN,
        *,
        rules: Iterable[Rule] | None = None,
        life: float | None = None,
        audiences: Sequence[str] = (),
    ) -> str:
        """A token for that subject, who is given these rules and no others if any are named."""
        if rules is not None:
            self.rights.grant(subject, rules)
        return self.tokens.issue(subject, life=life, audiences=audiences)

    def revoke_tokens(self) -> None:
        """Every token issued so far is bad from now on; the token files hold good ones again at once."""
        self.tokens.revoke_all()
        for file in self._token_files:
            file.renew()

    def kubeconfig(self, *, token: str | None = None, project: str = "") -> Document:
        """A kubeconfig for Milo, or a project's control plane, with the token in it: good for as long as that is."""
        return kubeconfigs.kubeconfig(
            server=self.control_plane_url(project) if project else self.url,
            ca_pem=self.ca_pem,
            user={"token": token or self.token()},
        )

    def write_kubeconfig(self, path: Path, *, subject: str = ADMIN) -> Path:
        """A kubeconfig whose token is in a file beside it, which is renewed for as long as the sandbox is entered."""
        path = path.absolute()
        file = TokenFile(path.with_name(f"{path.name}.token"), lambda: self.token(subject), life=self.tokens.life)
        file.start()
        self._token_files.append(file)
        config = kubeconfigs.kubeconfig(server=self.url, ca_pem=self.ca_pem, user={"tokenFile": str(file.path)})
        kubeconfigs.write(path, config)
        return path

    def write_service_account_key(self, path: Path, *, subject: str = ADMIN) -> Path:
        """The key file of a service account that gets tokens for that subject from the token endpoint."""
        kubeconfigs.write_secret(path, json.dumps(self.token_endpoint.register(subject, self.url)))
        return path.absolute()

    def add_service_account(self, namespace: str, name: str, *, rules: Iterable[Rule] = (EVERYTHING,)) -> str:
        """Of the infrastructure cluster, where TokenRequest gives tokens for it; who its tokens are for."""
        store = self.infrastructure.api.store
        if store[NAMESPACES].get(namespace) is None:
            store.create(NAMESPACES, {"metadata": {"name": namespace}})
        store.create(SERVICE_ACCOUNTS, {"metadata": {"name": name}}, namespace=namespace)
        subject = f"system:serviceaccount:{namespace}:{name}"
        self.rights.grant(subject, rules)
        return subject

    def infrastructure_kubeconfig(self, *, token: str | None = None) -> Document:
        """For the infrastructure cluster, with the token in it."""
        return kubeconfigs.kubeconfig(
            server=f"{self.url}/{INFRASTRUCTURE_PATH}", ca_pem=self.ca_pem, user={"token": token or self.token()}
        )

    # The server

    async def start(self) -> None:
        """Listen; after a stop, on the same address with the same data."""
        await self._server.start()

    async def stop(self) -> None:
        """Die as by kill -9: connections break, new ones are refused."""
        await self._server.kill()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def terminate(self, *, grace: float = 60.0) -> None:
        """End as by SIGTERM: the listener closes at once, open watches live on for a while and end cleanly."""
        self._server.refuse_new()
        await asyncio.sleep(grace)
        for api in self._apis:
            api.streams.end()
        await self._server.finish()

    # What goes wrong with watches, and with the data; `faults` has what goes wrong with answers

    def drop_watches(self) -> None:
        """Cut every open watch in mid-stream."""
        for api in self._apis:
            api.streams.drop()

    def end_watches(self) -> None:
        """End every open watch cleanly, long before its time."""
        for api in self._apis:
            api.streams.end()

    def silence_watches(self, *, silent: bool = True) -> None:
        """Have every watch, open or to come, say nothing more, bookmarks included; or catch up."""
        self._api.streams.hush(silent=silent)

    def compact(self) -> None:
        """Forget the history: a watch can't be resumed from any version seen so far."""
        self.store.compact()

    def change_schema(self, *, initializing: float = 0.0) -> None:
        """As after a change of the resources' definitions: watches end, nothing is served for a while, then 410."""
        self._api.streams.end(last_bookmark=False)
        self.store.compact()
        if initializing:
            self.faults.initializing(seconds=initializing)

    def delete_definition(self, resource: Resource) -> None:
        """The resource's watches end, and it is served no more until the faults are cleared."""
        self._api.streams.end(resource)
        self.faults.unserved(resource)

    def plant(self, name: str, body: bytes, *, resource: Resource = PROJECTS) -> None:
        """Have lists and watches show this in the place of the object of that name, be it an object or not."""
        self.store.plant(resource, name, body)

    def blink(self, *names: str, resource: Resource = PROJECTS) -> None:
        """Tell the watches that these were deleted and added again, though they live on: same UID, same everything."""
        for name in names:
            self.store.blink(resource, name)

    def snapshot(self) -> Snapshot:
        return self.store.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a backup, versions and all; resumed watches then wait for a future that may never come."""
        self.store.restore(snapshot)

    # The world

    def populate(self, count: int, *, ready: bool = True, finalizers: Iterable[str] = ()) -> list[str]:
        """So many projects more, each with its control plane; their names."""
        return self.milo.populate(count, self.names, ready=ready, finalizers=finalizers)

    def churn(self) -> Churn:
        """Life, to be stepped by hand or run: `churn.run(sandbox.churn(), per_second)`."""
        return Churn(self.store, self.names, self._random)

    @property
    def _apis(self) -> list[Api]:
        return [self._api, *self._project_apis.opened()]
