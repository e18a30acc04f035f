"""The two real API servers, each with its own etcd, controlled like the servers of scenarios.

A server keeps its address, certificates and data; its process and the port behind the proxy change. `MiloApi`
serves projects; `InfrastructureApi` serves projectcontrolplanes.
"""

import asyncio
import json
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.end_to_end.real import kubeconfig, process
from tests.end_to_end.real.api import DEFINITIONS, Api
from tests.end_to_end.real.certificates import LIFETIME, Authority
from tests.end_to_end.real.etcd import Etcd
from tests.end_to_end.real.process import Process, ProcessError
from tests.end_to_end.real.programs import ApiProgram, Programs
from tests.end_to_end.scenarios.steps import Mode
from tests.support.ports import free_port
from tests.support.tcp_proxy import TcpProxy

_ADMINISTRATOR = "admin"
_ADMINISTRATORS = "system:masters"


class RealApi(ABC):
    """An API server, its etcd, and the proxy for its clients.

    Without a proxy, connections cannot be cut, but the server outlives this process, unless it is `tied`. `audit` has
    rules of an audit policy: the server logs to `audit_log` the beginning of each request that they select.
    """

    mode: ClassVar[Mode]
    collection: ClassVar[str]
    has_controllers = False

    def __init__(
        self,
        programs: Programs,
        directory: Path,
        *,
        proxied: bool = True,
        tied: bool = True,
        streaming_lists: bool = True,
        audit: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.audit_log = directory / "audit.log"
        self._audited = audit
        self._program = self._choose(programs)
        self.title = self._program.title
        self.directory = directory
        self.etcd = Etcd(programs.etcd, directory, tied=tied)
        self.process: Process | None = None
        self._tied = tied
        self._streaming_lists = streaming_lists
        self._defined = False
        self._proxy = TcpProxy() if proxied else None
        self._port = free_port()
        self._authority = Authority(directory)
        self._certificate, self._key = self._authority.server("server")
        self._signing_key = self._authority.signing_key("service-accounts")
        self.token = kubeconfig.new_token()
        self._tokens = kubeconfig.write_tokens(
            directory / "tokens.csv", {self.token: (_ADMINISTRATOR, _ADMINISTRATORS)}
        )
        self._authentication = directory / "authentication.json"
        self.trust()
        self.kubeconfig = self._write_kubeconfig("kubeconfig", {"token": self.token})

    @staticmethod
    @abstractmethod
    def _choose(programs: Programs) -> ApiProgram: ...

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._proxy.port if self._proxy else self._port}"

    def kubeconfig_as(self, user: str, *groups: str, lifetime: timedelta = LIFETIME) -> Path:
        """Write a kubeconfig with a client certificate of this user in these groups."""
        certificate, key = self._authority.client(user, groups, lifetime=lifetime)
        return self._write_kubeconfig(f"{user}.kubeconfig", kubeconfig.with_certificate(certificate, key))

    async def start(self) -> None:
        """Start what is stopped; return once the collection can be listed and watched."""
        if self.process is not None:
            if self._proxy:
                self._proxy.open(self._port)  # in case `cut_off` shut the proxy
            return
        if self.etcd.process is None:
            await self.etcd.start()
        if self._proxy:
            self._port = free_port()
        self.process = process.start(self.title, self._argv(), log=self.directory / "apiserver.log", tied=self._tied)
        await self._until("does not listen", self._listens)
        if self._proxy:
            self._proxy.open(self._port)
        async with self.api() as api:
            await self._until("is not ready", lambda: api.answers("/readyz"))
            if not self._defined:
                for definition in self._program.definitions:
                    await api.define(yaml.safe_load(definition))
                self._defined = True
            await self._until_served(api)

    def processes(self) -> tuple[Process, ...]:
        return tuple(running for running in (self.etcd.process, self.process) if running)

    async def stop(self) -> None:
        """Kill the server, as kill -9 does; its etcd continues."""
        if self.process is None:
            return
        await self.process.end(signal.SIGKILL)
        self.process = None
        if self._proxy:
            await self._proxy.shut()

    async def terminate(self) -> None:
        """Send SIGTERM, and wait until the server has exited. Until then, open watches continue."""
        if self.process is None:
            return
        if self._proxy:
            self._proxy.refuse()
        await self.process.end(signal.SIGTERM)
        self.process = None
        if self._proxy:
            await self._proxy.shut()

    async def compact(self) -> None:
        """Compact every revision that any client has seen.

        A compaction of etcd is not enough, since the server's watch cache serves old events from memory. So the
        server is killed, etcd advances to a revision that no client can have seen and compacts everything before
        it, and the server's new cache begins there.
        """
        ran = self.process is not None
        await self.stop()
        await self.etcd.compact()
        if ran:
            await self.start()

    async def drop_watches(self) -> None:
        """Reset every open connection."""
        await self._required_proxy.cut()

    def control_plane(self) -> str:
        return ""

    async def cut_off(self) -> None:
        """Refuse all clients while the server runs, until `reconnect` or the next start."""
        await self._required_proxy.shut()

    async def reconnect(self) -> None:
        self._required_proxy.open(self._port)

    async def snapshot(self, name: str) -> Path:
        """Back up etcd, for `restore`."""
        backup = self.directory / "backups" / name
        await asyncio.to_thread(self.etcd.copy, backup)
        return backup

    async def restore(self, backup: Path | None) -> None:
        """Put another etcd behind the same address: a backup with earlier revisions, or an empty one."""
        ran = self.process is not None
        await self.stop()
        await self.etcd.stop()
        await asyncio.to_thread(self.etcd.replace, backup)
        self._defined = False
        if ran:
            await self.start()

    async def delete_definition(self) -> dict[str, Any]:
        """Delete the resource's definition with all objects, and return it."""
        group, _, plural = self.collection.removeprefix("/apis/").split("/")
        path = f"{DEFINITIONS}/{plural}.{group}"
        async with self.api() as api:
            definition = await api.call("GET", path)
            # Milo's server leaves objects behind if their definition is deleted within seconds after its start.
            await api.call("DELETE", self.collection)
            await api.call("DELETE", path)
            for left in (self.collection, path):
                await self._until(f"goes on answering {left}", partial(self._answers_not, api, left))
        return {
            "apiVersion": definition["apiVersion"],
            "kind": definition["kind"],
            "metadata": {"name": definition["metadata"]["name"]},
            "spec": definition["spec"],
        }

    async def define_again(self, definition: dict[str, Any]) -> None:
        async with self.api() as api:
            await api.define(definition)
            await self._until_served(api)

    async def close(self) -> None:
        await self.stop()
        await self.etcd.stop()
        if self._proxy:
            await self._proxy.close()

    def api(self) -> Api:
        """Return the administrator's client that bypasses the proxy, as an async context manager."""
        return Api(f"https://127.0.0.1:{self._port}", self._authority.file, self.token)

    def client(self) -> Api:
        """Return the administrator's client through the proxy."""
        return Api(self.url, self._authority.file, self.token)

    def client_as(self, user: str, *groups: str) -> Api:
        """Return a client with a certificate of this user in these groups."""
        return Api(self.url, self._authority.file, self._authority.client(user, groups))

    def kubeconfig_with(self, user: Mapping[str, str], name: str) -> Path:
        """Write a kubeconfig with these credentials; `name` is the name of the file."""
        return self._write_kubeconfig(f"{name}.kubeconfig", user)

    def client_with(self, token: str) -> Api:
        """Return a client with this token."""
        return Api(self.url, self._authority.file, token)

    @property
    def authority(self) -> Authority:
        """The authority of `--client-ca-file`, which has also signed the server's own certificate."""
        return self._authority

    def trust_clients(self, pem: bytes) -> None:
        """Accept client certificates of another authority too, from the next start on."""
        with self._authority.file.open("ab") as file:
            file.write(pem)

    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key that signs tokens of its service accounts."""
        key = load_pem_private_key(self._signing_key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def trust(self, *issuers: Mapping[str, Any]) -> None:
        """Accept JWTs of these issuers only; a running server reloads this within moments."""
        configuration = {
            "apiVersion": "apiserver.config.k8s.io/v1beta1",
            "kind": "AuthenticationConfiguration",
            "jwt": issuers,
        }
        replacement = self._authentication.with_suffix(".new")
        replacement.write_text(json.dumps(configuration))
        replacement.replace(self._authentication)

    @property
    def _required_proxy(self) -> TcpProxy:
        if self._proxy is None:
            raise ProcessError(f"{self.title} has no proxy, so its connections cannot be cut")
        return self._proxy

    def _write_kubeconfig(self, name: str, user: Mapping[str, str]) -> Path:
        return kubeconfig.write(self.directory / name, server=self.url, authority=self._authority.pem, user=user)

    def _argv(self) -> list[str]:
        more = [] if self._streaming_lists else ["--feature-gates=WatchList=false"]
        if self._audited:
            more += [f"--audit-policy-file={self._write_audit_policy()}", f"--audit-log-path={self.audit_log}"]
        return [
            *self._program.argv,
            f"--etcd-servers={self.etcd.url}",
            "--etcd-compaction-interval=0",  # the tests compact explicitly
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--tls-cert-file={self._certificate}",
            f"--tls-private-key-file={self._key}",
            f"--client-ca-file={self._authority.file}",
            f"--token-auth-file={self._tokens}",
            f"--authentication-config={self._authentication}",
            "--authorization-mode=RBAC",
            "--request-timeout=10s",  # how long open watches continue after SIGTERM; a minute by default
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._signing_key}",
            f"--service-account-signing-key-file={self._signing_key}",
            *more,
        ]

    def _write_audit_policy(self) -> Path:
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"],
            "rules": [*self._audited, {"level": "None"}],
        }
        file = self.directory / "audit-policy.json"
        file.write_text(json.dumps(policy))
        return file

    async def _until_served(self, api: Api) -> None:
        # The server is ready before its watch caches are: until then a collection answers 404, then 429.
        for query in ("?limit=1", "?resourceVersion=0", "?watch=1&resourceVersion=0&timeoutSeconds=1"):
            wanted = self.collection + query
            await self._until(f"does not answer {wanted}", partial(api.answers, wanted))

    @staticmethod
    async def _answers_not(api: Api, path: str) -> bool:
        return not await api.answers(path)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def _until(self, failing: str, holds: Callable[[], Awaitable[bool]]) -> None:
        assert self.process is not None
        await self.process.until(failing, holds)


class MiloApi(RealApi):
    """Milo's own API server, or a kube-apiserver in its place, which serves projects."""

    mode = "project"
    collection = "/apis/resourcemanager.miloapis.com/v1alpha1/projects"

    @staticmethod
    def _choose(programs: Programs) -> ApiProgram:
        return programs.milo


class InfrastructureApi(RealApi):
    """A kube-apiserver as the infrastructure cluster, which serves project control planes."""

    mode = "project-control-plane"
    collection = "/apis/infrastructure.miloapis.com/v1alpha1/projectcontrolplanes"

    @staticmethod
    def _choose(programs: Programs) -> ApiProgram:
        return programs.infrastructure
