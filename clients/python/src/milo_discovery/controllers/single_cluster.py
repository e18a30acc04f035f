"""One cluster instead of a fleet: the same controllers, without a daemon.

The kubeconfig is read again now and then, and after a 401, so files and tokens in it may be renewed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from milo_discovery._api_clients import AsyncApiClients
from milo_discovery._calls import UnaryCall
from milo_discovery._kubeconfig_access import KubeconfigAccess, render_kubeconfig
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.model import Cluster, Kubeconfig

_READ_AGAIN = timedelta(seconds=60)
_EXEC_TIMEOUT_S = 30.0
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class SingleCluster:
    """A cluster that is engaged for as long as it runs.

    `kubeconfig` is the path of a file; by default that of `KUBECONFIG`, the service account of the pod, or
    `~/.kube/config`, whichever exists first.
    """

    def __init__(
        self, kubeconfig: str | os.PathLike[str] | None = None, *, context: str | None = None, name: str = "cluster"
    ) -> None:
        self._path = None if kubeconfig is None else Path(kubeconfig)
        self._context = context
        self._name = name
        self._handlers: list[Callable[[EngagedCluster], Awaitable[None]]] = []

    def on_engage(self, handler: Callable[[EngagedCluster], Awaitable[None]], /) -> object:
        """Register the handler, which is called once. Controllers do this."""
        self._handlers.append(handler)
        return handler

    async def run(self) -> None:
        """Run until cancelled. Raises UnusableKubeconfig."""
        access, _ = await self._read()
        api_clients = AsyncApiClients(self._issue)
        engaged = EngagedCluster(Cluster(name=self._name, endpoint=access.server), None, api_clients)
        try:
            async with asyncio.TaskGroup() as tasks:
                for handler in self._handlers:
                    tasks.create_task(_awaited(handler(engaged)), name=f"cluster {self._name}")
        finally:
            engaged.disengage()

    async def _issue(self, call: UnaryCall[Kubeconfig]) -> Kubeconfig:
        access, expires_at = await self._read()
        now = datetime.now(UTC)
        renew_at = now + _READ_AGAIN if expires_at is None else now + (expires_at - now) / 2
        return Kubeconfig(
            cluster=self._name,
            kubeconfig=json.dumps(render_kubeconfig(self._name, access)).encode(),
            issued_at=now,
            expires_at=expires_at,
            refresh_after=renew_at,
        )

    async def _read(self) -> tuple[KubeconfigAccess, datetime | None]:
        path = self._path or _default_path()
        if path is None:
            return await asyncio.to_thread(_in_cluster), None
        document = await asyncio.to_thread(_load, path)
        cluster, user = _selected(document, self._context, path)
        access = await asyncio.to_thread(_access, cluster, user, path)
        if access.token is not None or access.certificate is not None or not user.get("exec"):
            return access, None
        return await _with_exec_credential(access, user["exec"], path)


async def _awaited(handling: Awaitable[None]) -> None:
    await handling


def _default_path() -> Path | None:
    """Return the file to read; None for the service account of the pod."""
    variable = os.environ.get("KUBECONFIG", "").partition(os.pathsep)[0]
    if variable:
        return Path(variable)
    return None if (_IN_CLUSTER / "token").exists() else Path.home() / ".kube" / "config"


def _in_cluster() -> KubeconfigAccess:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return KubeconfigAccess(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        authorities=(_IN_CLUSTER / "ca.crt").read_text(),
        token=(_IN_CLUSTER / "token").read_text().strip(),
    )


def _load(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise UnusableKubeconfig(f"the kubeconfig {path} cannot be read: {error.strerror}") from error
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
    except ValueError as error:
        raise UnusableKubeconfig(f"the kubeconfig {path} is neither JSON nor YAML") from error
    if not isinstance(found, dict):
        raise UnusableKubeconfig(f"the kubeconfig {path} is not a mapping")
    return found


def _yaml(text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UnusableKubeconfig("a kubeconfig in YAML needs PyYAML: pip install PyYAML") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError("invalid YAML") from error


def _selected(document: Mapping[str, Any], context: str | None, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        name = context or document["current-context"]
        entry = _named(document["contexts"], name)["context"]
        cluster = _named(document["clusters"], entry["cluster"])["cluster"]
        user = _named(document["users"], entry["user"])["user"] if entry.get("user") else {}
    except (KeyError, TypeError, StopIteration) as error:
        raise UnusableKubeconfig(f"the kubeconfig {path} lacks its current context, or its cluster or user") from error
    if cluster.get("insecure-skip-tls-verify"):
        raise UnusableKubeconfig(f"the kubeconfig {path} disables the verification of the server: add its CA instead")
    return cluster, user or {}


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _access(cluster: Mapping[str, Any], user: Mapping[str, Any], path: Path) -> KubeconfigAccess:
    try:
        token = user.get("token")
        if token is None and user.get("tokenFile"):
            token = (path.parent / user["tokenFile"]).read_text().strip()
        return KubeconfigAccess(
            server=cluster["server"].rstrip("/"),
            authorities=_content(cluster, "certificate-authority", path),
            tls_server_name=cluster.get("tls-server-name"),
            token=token,
            certificate=_content(user, "client-certificate", path),
            key=_content(user, "client-key", path),
        )
    except OSError as error:
        raise UnusableKubeconfig(f"{error.filename}, which the kubeconfig {path} names, cannot be read") from error
    except (KeyError, ValueError) as error:
        raise UnusableKubeconfig(f"the kubeconfig {path} is invalid") from error


def _content(fields: Mapping[str, Any], name: str, path: Path) -> str | None:
    """Return a PEM file that is embedded or named."""
    if fields.get(f"{name}-data"):
        return base64.b64decode(fields[f"{name}-data"], validate=True).decode("ascii")
    return (path.parent / fields[name]).read_text() if fields.get(name) else None


async def _with_exec_credential(
    access: KubeconfigAccess, call: Mapping[str, Any], path: Path
) -> tuple[KubeconfigAccess, datetime | None]:
    """Run the exec credential plugin, without a terminal."""
    command = str(call.get("command", ""))
    program = str(path.parent / command) if os.sep in command else command
    environment = {**os.environ, **{each["name"]: each["value"] for each in call.get("env") or ()}}
    asked = {"apiVersion": call.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": False}}
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(asked)
    try:
        process = await asyncio.create_subprocess_exec(
            program, *(call.get("args") or ()), env=environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_EXEC_TIMEOUT_S):
                output, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        status = json.loads(output)["status"]
        expiry = status.get("expirationTimestamp")
        found = KubeconfigAccess(
            server=access.server,
            authorities=access.authorities,
            tls_server_name=access.tls_server_name,
            token=status.get("token"),
            certificate=status.get("clientCertificateData"),
            key=status.get("clientKeyData"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableKubeconfig(f"the credential plugin {command!r} of the kubeconfig {path} failed") from error
    return found, None if expiry is None else datetime.fromisoformat(expiry)
