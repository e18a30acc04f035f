"""The sandbox as an object, for the commands, the benchmark, and tests of this project and of operators."""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from milo_sandbox import kubeconfigs
from milo_sandbox.api import Api, Features
from milo_sandbox.backends import INFRASTRUCTURE, Backends, Platform
from milo_sandbox.churn import Churn
from milo_sandbox.control_planes import purge
from milo_sandbox.controller_manager import ControllerManager
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.faults import Faults
from milo_sandbox.gateway import Gateway
from milo_sandbox.infrastructure import Infrastructure
from milo_sandbox.kubeconfigs import RenewedTokenFile
from milo_sandbox.milo import Milo
from milo_sandbox.names import Names
from milo_sandbox.objects import Objects
from milo_sandbox.resources import (
    MILO,
    NAMESPACES,
    PROJECTS,
    PROXIED_EVENTS,
    SERVICE_ACCOUNTS,
    Document,
    ResourceDefinition,
)
from milo_sandbox.rights import ADMIN, EVERYTHING, Rule, SubjectRights
from milo_sandbox.server import HttpsServer, ServerAddress
from milo_sandbox.store import Store, StoreBackup
from milo_sandbox.token_endpoint import AssertionEndpoint
from milo_sandbox.tokens import Tokens


class Sandbox:
    """A fake Milo API on a local address. It serves while its `async with` block runs."""

    def __init__(
        self,
        *,
        address: ServerAddress = ServerAddress(),  # noqa: B008 - immutable
        projects: int = 0,
        seed: int | None = None,
        token_life: float = 600.0,
        features: Features = Features(),  # noqa: B008 - immutable
        history_limit: int = 20_000,
        first_version: int = 1,
        controllers: bool = False,
    ) -> None:
        """With `controllers`, Milo's controllers provision, suspend and delete projects; otherwise tests perform these
        steps through `milo`."""
        self._random = Random(seed)  # noqa: S311 - names and UIDs need not be secret
        self.store = Store(
            (*MILO, CUSTOM_RESOURCE_DEFINITIONS),
            random=self._random,
            history_limit=history_limit,
            first_version=first_version,
        )
        self.names = Names(self._random)
        self.milo = Milo(self.store)
        self.rights = SubjectRights()
        self.tokens = Tokens(life=token_life, clock=time.time)
        self.faults = Faults(time.monotonic)
        self._server = HttpsServer(address)
        self._backends = Backends(
            self.store,
            partial(Api, features=features, rights=self.rights, tokens=self.tokens, faults=self.faults),
            served=[PROXIED_EVENTS] if features.events_proxy else [],
            random=self._random,
            tokens=self.tokens,
            rights=self.rights,
            server=self._server,
        )
        control_planes = self._backends.control_planes
        self.controllers = ControllerManager(self.store, self.milo, control_planes) if controllers else None
        self._purges: asyncio.Task[None] | None = None
        self.token_endpoint = AssertionEndpoint(self.tokens, time.time)
        self._gateway = Gateway(
            self._backends,
            self.token_endpoint,
            url=lambda: self.url,
            tokens=self.tokens,
            faults=self.faults,
            limits_organization_watches=features.organization_watches,
        )
        self._token_files: list[RenewedTokenFile] = []
        self.populate(projects)

    async def __aenter__(self) -> Self:
        await self.start()
        if self.controllers is not None:
            self._purges = asyncio.create_task(self.controllers.run(), name="controllers")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._token_files:
            file.stop()
        if self._purges is not None:
            self._purges.cancel()
        await self.stop()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def open_watches(self) -> int:
        return sum(len(api.streams) for api in self._backends.opened())

    @property
    def ca_pem(self) -> bytes:
        return self._server.identity.ca_pem

    @property
    def requests(self) -> int:
        """The number of requests so far."""
        return self._gateway.requests

    def requests_of(self, project: str) -> int:
        """Return the number of requests to a project's control plane so far."""
        return self._gateway.requests_of[project]

    def control_plane_url(self, project: str) -> str:
        return self._backends.control_plane_url(project)

    def organization_url(self, organization: str) -> str:
        return f"{self.url}/apis/{PROJECTS.api_version}/organizations/{organization}/control-plane"

    def control_plane(self, project: str) -> Store:
        """Return the objects of a project's control plane."""
        return self._backends.control_planes.of(project).store

    @property
    def projects(self) -> Objects:
        return self.milo.projects

    @property
    def control_planes(self) -> Objects:
        return self.milo.control_planes

    @property
    def infrastructure(self) -> Infrastructure:
        return self._backends.infrastructure

    def mount(self, prefix: str, platform: Platform) -> None:
        """Let another server answer the requests whose paths begin with the prefix."""
        self._backends.platforms[prefix] = platform

    def new_api(self, *resources: ResourceDefinition) -> Api:
        """Return an empty API of these resources, with the tokens, rights and faults of the sandbox."""
        return self._backends.new_api(Store(resources, history_limit=1_000))

    # Credentials

    def token(
        self,
        subject: str = ADMIN,
        *,
        rules: Iterable[Rule] | None = None,
        life: float | None = None,
        audiences: Sequence[str] = (),
    ) -> str:
        """Issue a token for a subject, and replace the subject's rules if any are given."""
        if rules is not None:
            self.rights.grant(subject, rules)
        return self.tokens.issue(subject, life=life, audiences=audiences)

    def revoke_tokens(self) -> None:
        """Revoke every issued token, and renew the token files."""
        self.tokens.revoke_all()
        for file in self._token_files:
            file.renew()

    def kubeconfig(self, *, token: str | None = None, organization: str = "", project: str = "") -> Document:
        """Return a kubeconfig for Milo, or for the control plane of an organization or a project, with an embedded
        token."""
        server = self.control_plane_url(project) if project else self.url
        if organization:
            server = self.organization_url(organization)
        return kubeconfigs.kubeconfig(server=server, ca_pem=self.ca_pem, user={"token": token or self.token()})

    def write_kubeconfig(self, path: Path, *, subject: str = ADMIN) -> Path:
        """Write a kubeconfig, and a token file beside it. The token is renewed while the sandbox runs."""
        path = path.absolute()
        file = RenewedTokenFile(
            path.with_name(f"{path.name}.token"), lambda: self.token(subject), life=self.tokens.life
        )
        file.start()
        self._token_files.append(file)
        config = kubeconfigs.kubeconfig(server=self.url, ca_pem=self.ca_pem, user={"tokenFile": str(file.path)})
        kubeconfigs.write(path, config)
        return path

    def write_service_account_key(self, path: Path, *, subject: str = ADMIN) -> Path:
        """Write the key file of a service account. In exchange for assertions signed with the key, the
        token endpoint issues tokens of `subject`."""
        kubeconfigs.write_secret(path, json.dumps(self.token_endpoint.register(subject, self.url)))
        return path.absolute()

    def add_service_account(self, namespace: str, name: str, *, rules: Iterable[Rule] = (EVERYTHING,)) -> str:
        """Create a service account in the infrastructure cluster; return the subject of its tokens."""
        store = self.infrastructure.api.store
        if store[NAMESPACES].get(namespace) is None:
            store.create(NAMESPACES, {"metadata": {"name": namespace}})
        store.create(SERVICE_ACCOUNTS, {"metadata": {"name": name}}, namespace=namespace)
        subject = f"system:serviceaccount:{namespace}:{name}"
        self.rights.grant(subject, rules)
        return subject

    def infrastructure_kubeconfig(self, *, token: str | None = None) -> Document:
        """Return a kubeconfig for the infrastructure cluster, with an embedded token."""
        return self.mounted_kubeconfig(INFRASTRUCTURE, token=token)

    def mounted_kubeconfig(self, path: str, *, token: str | None = None) -> Document:
        """Return a kubeconfig for the server at a path, with an embedded token."""
        return kubeconfigs.kubeconfig(
            server=f"{self.url}/{path}", ca_pem=self.ca_pem, user={"token": token or self.token()}
        )

    # The server

    async def start(self) -> None:
        """Listen; after a stop, on the same address and with the same data."""
        await self._server.start(self._gateway.handle)

    async def stop(self) -> None:
        """Stop as after `kill -9`: connections break, and new ones are refused."""
        await self._server.kill()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def terminate(self, *, grace: float = 60.0) -> None:
        """Stop as after SIGTERM: the listener closes at once, and open watches end cleanly after the grace period."""
        await self._server.refuse_new()
        await asyncio.sleep(grace)
        for api in self._backends.opened():
            api.streams.end()
        await self._server.finish()

    # Faults of watches and of the data; `faults` has the faults of responses

    def drop_watches(self) -> None:
        """Cut the connections of all open watches."""
        for api in self._backends.opened():
            api.streams.drop()

    def end_watches(self) -> None:
        """End all open watches cleanly, before their timeout."""
        for api in self._backends.opened():
            api.streams.end()

    def silence_watches(self, project: str = "", *, silent: bool = True) -> None:
        """Send nothing, not even bookmarks, on current and future watches of the Milo API, or of a project's control
        plane; or let them catch up."""
        api = self._backends.control_planes.of(project) if project else self._backends.milo
        api.streams.set_silent(silent=silent)

    def freeze_etcd(self) -> None:
        """Act as a server whose etcd is unavailable. End this by `faults.clear` and `silence_watches(silent=False)`."""
        self.silence_watches()
        self.faults.freeze_etcd()

    def compact(self) -> None:
        """Compact the history: watches cannot resume from any version seen so far."""
        self.store.compact()

    def change_schema(self, *, initializing: float = 0.0) -> None:
        """Act as a server whose CRD changed: watches end, versions are compacted, and for `initializing` seconds only
        paged lists are served."""
        self._backends.milo.streams.end(last_bookmark=False)
        self.store.compact()
        if initializing:
            self.faults.initializing(seconds=initializing)

    def delete_definition(self, resource: ResourceDefinition) -> None:
        """End the resource's watches, and stop serving it until the faults are cleared."""
        self._backends.milo.streams.end(resource)
        self.faults.unserved(resource)

    def plant(self, name: str, body: bytes, *, resource: ResourceDefinition = PROJECTS) -> None:
        """Serve arbitrary bytes in lists and watches instead of an object."""
        self.store.plant(resource, name, body)

    def report_recreated(self, *names: str, resource: ResourceDefinition = PROJECTS) -> None:
        """Report objects as deleted and added again, although they still exist with the same UID."""
        for name in names:
            self.store.report_recreated(resource, name)

    def snapshot(self) -> StoreBackup:
        return self.store.snapshot()

    def restore(self, snapshot: StoreBackup) -> None:
        """Restore a backup with its versions. A watch that resumes at a later version waits for that version."""
        self.store.restore(snapshot)

    # Data

    def populate(self, count: int, *, ready: bool = True, finalizers: Iterable[str] = ()) -> list[str]:
        """Create projects with their control planes; return their names."""
        return self.milo.populate(count, self.names, ready=ready, finalizers=finalizers)

    def churn(self) -> Churn:
        """Return a source of changes, to step by hand or to run: `churn.run(sandbox.churn(), per_second)`."""
        return Churn(self.store, self.names, self._random, lambda project: purge(self.control_plane(project)))
