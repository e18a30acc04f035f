"""Access to an API server from local files: a kubeconfig, or the service account of a pod.

These files belong to the user, so they may name further files, a proxy and a credential plugin. Fields that would
have to be ignored are refused.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from milo_discovery._kubeconfig_access import KubeconfigAccess, is_http_url, render_kubeconfig
from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.model import Kubeconfig
from milo_kube import addresses

_READ_AGAIN = timedelta(seconds=60)
_PLUGIN_TIMEOUT_S = 30.0
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CLUSTER_FIELDS = frozenset(
    {"server", "certificate-authority", "certificate-authority-data", "tls-server-name", "proxy-url", "extensions"}
    | {"disable-compression"}
)
_USER_FIELDS = frozenset(
    {"token", "tokenFile", "client-certificate", "client-certificate-data", "client-key", "client-key-data"}
    | {"exec", "extensions"}
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """An exec credential plugin."""

    entry: Mapping[str, Any]
    directory: Path
    """The directory that a relative path of the command is resolved in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAccess:
    """The content of the files at the time of reading."""

    access: KubeconfigAccess
    namespace: str = ""
    """The namespace of the context or the pod; empty if none is stated."""
    proxy: str | None = field(default=None, repr=False)
    """The URL of the proxy that the kubeconfig names."""
    plugin: Plugin | None = None
    """The plugin to run for a credential, if the kubeconfig has no other credential."""


class ServiceAccount:
    """The service account of the pod that this process runs in."""

    def __init__(self, environment: Mapping[str, str] = os.environ, directory: Path = _SERVICE_ACCOUNT) -> None:
        self._environment = environment
        self._directory = directory

    def read(self) -> LocalAccess:
        """Read the files. Raises UnusableKubeconfig."""
        host, port = (self._environment.get(f"KUBERNETES_SERVICE_{each}") for each in ("HOST", "PORT"))
        if not host or not port:
            raise UnusableKubeconfig("not running in a pod: name a kubeconfig instead")
        access = KubeconfigAccess(
            server=f"https://{addresses.bracketed(host)}:{port}",
            authorities=_text(self._directory / "ca.crt"),
            token=_text(self._directory / "token").strip(),
        )
        return LocalAccess(access=access, namespace=_text(self._directory / "namespace").strip())


class KubeconfigFile:
    """A context of a kubeconfig, by default the current one."""

    def __init__(self, path: Path, context: str | None = None) -> None:
        self._path = path
        self._context = context

    def read(self) -> LocalAccess:
        """Read the kubeconfig and the files that it names. Raises UnusableKubeconfig, which quotes no content."""
        context, cluster, user = self._selected(_document(self._path))
        given = {key for entry in (cluster, user) for key, value in entry.items() if value not in (None, "", False)}
        if unsupported := given - _CLUSTER_FIELDS - _USER_FIELDS:
            raise UnusableKubeconfig(
                f"the kubeconfig {self._path} has fields that are not supported: {', '.join(sorted(unsupported))}; use "
                "a CA, and a token, a client certificate or an exec credential plugin"
            )
        token_file = user.get("tokenFile")
        try:
            access = KubeconfigAccess(
                server=cluster["server"].rstrip("/"),
                authorities=self._content(cluster, "certificate-authority"),
                tls_server_name=cluster.get("tls-server-name") or None,
                token=_text(self._path.parent / token_file).strip() if token_file else user.get("token") or None,
                certificate=self._content(user, "client-certificate"),
                key=self._content(user, "client-key"),
            )
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UnusableKubeconfig(f"the kubeconfig {self._path} has an invalid cluster or user") from None
        has_credential = access.token is not None or access.certificate is not None
        return LocalAccess(
            access=access,
            namespace=str(context.get("namespace") or ""),
            proxy=self._proxy(cluster.get("proxy-url")),
            plugin=None if has_credential or not user.get("exec") else Plugin(user["exec"], self._path.parent),
        )

    def _selected(self, document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        try:
            context = _named(document["contexts"], self._context or document["current-context"])["context"]
            cluster = _named(document["clusters"], context["cluster"])["cluster"]
            user = _named(document["users"], context["user"])["user"] if context.get("user") else {}
        except (LookupError, TypeError, AttributeError):
            which = "a current context" if self._context is None else f"the context {self._context!r}"
            raise UnusableKubeconfig(
                f"the kubeconfig {self._path} does not have {which} with a cluster and a user"
            ) from None
        return context, cluster, user or {}

    def _content(self, fields: Mapping[str, Any], name: str) -> str | None:
        """Return the content of a PEM file that the kubeconfig embeds or names."""
        if fields.get(f"{name}-data"):
            return base64.b64decode(fields[f"{name}-data"], validate=True).decode("ascii")
        return _text(self._path.parent / fields[name]) if fields.get(name) else None

    def _proxy(self, url: str | None) -> str | None:
        if not url:
            return None
        if not is_http_url(url):
            # The URL is not shown: it may contain a password.
            raise UnusableKubeconfig(
                f"the kubeconfig {self._path} has a proxy-url other than http://HOST:PORT or https://HOST:PORT"
            )
        return url


LocalSource = ServiceAccount | KubeconfigFile


def default_source(kubeconfig: Path | None = None, context: str | None = None) -> LocalSource:
    """Return the kubeconfig; by default that of KUBECONFIG, the service account of the pod, or ~/.kube/config."""
    first = os.environ.get("KUBECONFIG", "").partition(os.pathsep)[0]
    path = kubeconfig or (Path(first) if first else None)
    if path is None and (_SERVICE_ACCOUNT / "token").exists():
        return ServiceAccount()
    return KubeconfigFile(path or Path.home() / ".kube" / "config", context)


async def issue(name: str, source: LocalSource) -> Kubeconfig:
    """Return the credential as a kubeconfig, which is renewed before it expires and when its files may have changed.

    Raises UnusableKubeconfig.
    """
    found = await asyncio.to_thread(source.read)
    access, expires_at = found.access, None
    if found.plugin is not None:
        access, expires_at = await _with_plugin(access, found.plugin)
    now = datetime.now(UTC)
    return Kubeconfig(
        cluster=name,
        kubeconfig=json.dumps(render_kubeconfig(name, access)).encode(),
        issued_at=now,
        expires_at=expires_at,
        refresh_after=now + _READ_AGAIN if expires_at is None else now + (expires_at - now) / 2,
    )


async def _with_plugin(access: KubeconfigAccess, plugin: Plugin) -> tuple[KubeconfigAccess, datetime | None]:
    """Run the plugin, without a terminal, and return the access with its credential."""
    entry = plugin.entry
    command = str(entry.get("command", ""))
    program = str(plugin.directory / command) if os.sep in command else command
    asked = {"apiVersion": entry.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": False}}
    try:
        environment = {**os.environ, **{each["name"]: each["value"] for each in entry.get("env") or ()}}
        process = await asyncio.create_subprocess_exec(
            program, *(entry.get("args") or ()), env={**environment, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_PLUGIN_TIMEOUT_S):
                output, _ = await process.communicate()
        except BaseException:
            # With its children, of which one that keeps the output open would delay `wait` until its own end.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        return _plugin_credential(access, json.loads(output)["status"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # `from None`: the error quotes the output, which may hold a token.
        raise UnusableKubeconfig(f"the credential plugin {command!r} of the kubeconfig failed") from None


def _plugin_credential(access: KubeconfigAccess, status: Mapping[str, Any]) -> tuple[KubeconfigAccess, datetime | None]:
    certificate, key = status.get("clientCertificateData"), status.get("clientKeyData")
    expiry = status.get("expirationTimestamp")
    expires_at = None if expiry is None else datetime.fromisoformat(expiry)
    if not isinstance(certificate, str | None) or not isinstance(key, str | None):
        raise TypeError("a certificate or key of another type")
    if expires_at is not None and expires_at.tzinfo is None:
        raise ValueError("an expiry without a time zone")
    return replace(access, token=status.get("token"), certificate=certificate, key=key), expires_at


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((entry for entry in entries if entry["name"] == name), {})


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UnusableKubeconfig(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UnusableKubeconfig(f"{path} is not a text file") from None


def _document(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else _yaml(path, text)
    except ValueError:
        raise UnusableKubeconfig(f"the kubeconfig {path} is neither JSON nor YAML") from None
    if not isinstance(found, dict):
        raise UnusableKubeconfig(f"the file {path} is not a kubeconfig")
    return found


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  (an optional dependency)
    except ModuleNotFoundError:
        raise UnusableKubeconfig(f"the kubeconfig {path} in YAML needs PyYAML: pip install PyYAML") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        # `from None`: the error quotes the file, which may hold secrets.
        raise UnusableKubeconfig(f"the kubeconfig {path} is neither JSON nor YAML") from None
