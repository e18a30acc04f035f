"""How to reach the API server that the objects are written to: from a pod's service account, or a kubeconfig."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milo_discovery.publishing.errors import InvalidTarget

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CLUSTER_FIELDS = {"server", "certificate-authority", "certificate-authority-data", "tls-server-name", "extensions"}
_USER_FIELDS = {
    *("token", "tokenFile", "client-certificate", "client-certificate-data", "client-key", "client-key-data"),
    "extensions",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An API server, and how to authenticate to it. Files are read again as they are renewed."""

    server: str
    namespace: str = ""
    """The namespace to write to; empty if none is stated."""
    authorities: Callable[[], str | None] = lambda: None
    """Returns CA certificates as PEM; None means the system's trust store."""
    tls_server_name: str | None = None
    token: Callable[[], str | None] = field(default=lambda: None, repr=False)
    certificate: Callable[[], tuple[str, str] | None] = field(default=lambda: None, repr=False)
    """Returns the client certificate and its key as PEM."""


def in_cluster(environment: Mapping[str, str] = os.environ, folder: Path = _SERVICE_ACCOUNT) -> Target:
    """Return the API server of the cluster that this process runs in."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise InvalidTarget("not running in a pod: name the API server to write to with --kubeconfig")
    if ":" in host:
        host = f"[{host}]"
    try:
        namespace = (folder / "namespace").read_text().strip()
    except OSError as error:
        raise InvalidTarget(f"the pod has no service account token: {error.strerror}: {folder}") from error
    return Target(
        server=f"https://{host}:{port}",
        namespace=namespace,
        authorities=lambda: _read(folder / "ca.crt"),
        token=lambda: _read(folder / "token").strip(),
    )


def from_kubeconfig(path: Path, context: str | None) -> Target:
    """Return the API server of a kubeconfig's context, by default the current one."""
    document = _parse(path, _read(path))
    try:
        name = context or document["current-context"]
        chosen = _named(document["contexts"], name)["context"]
        cluster = _named(document["clusters"], chosen["cluster"])["cluster"]
        user = _named(document["users"], chosen["user"])["user"] or {}
        server = cluster["server"]
    except (LookupError, TypeError):
        which = "a current context" if context is None else f"the context {context!r}"
        raise InvalidTarget(f"{path} does not have {which} with a cluster and a user") from None
    unsupported = (set(cluster) - _CLUSTER_FIELDS) | (set(user) - _USER_FIELDS)
    if unsupported:
        raise InvalidTarget(
            f"{path} has fields that are not supported for publishing: {', '.join(sorted(unsupported))}; use a CA, and "
            "a token, a token file or a client certificate"
        )
    content = _Contents(path.parent, {**cluster, **user})
    return Target(
        server=str(server).rstrip("/"),
        namespace=str(chosen.get("namespace") or ""),
        authorities=lambda: content.read("certificate-authority"),
        tls_server_name=cluster.get("tls-server-name"),
        token=content.token,
        certificate=content.certificate,
    )


@dataclass(frozen=True, slots=True)
class _Contents:
    """Reads values that a kubeconfig has inline or as the path of a file."""

    folder: Path
    fields: Mapping[str, Any]

    def read(self, name: str) -> str | None:
        inline = self.fields.get(f"{name}-data")
        if inline:
            try:
                return base64.b64decode(inline, validate=True).decode("ascii")
            except (binascii.Error, ValueError, TypeError):
                raise InvalidTarget(f"{name}-data in the kubeconfig is not valid base64 of a PEM file") from None
        return None if not self.fields.get(name) else _read(self.folder / str(self.fields[name]))

    def token(self) -> str | None:
        if self.fields.get("tokenFile"):
            return _read(self.folder / str(self.fields["tokenFile"])).strip()
        return self.fields.get("token")

    def certificate(self) -> tuple[str, str] | None:
        certificate, key = self.read("client-certificate"), self.read("client-key")
        return None if certificate is None or key is None else (certificate, key)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((each for each in entries if each["name"] == name), {})


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InvalidTarget(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InvalidTarget(f"{path} is not a text file") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        document = _parse_yaml(path, text)
    if not isinstance(document, dict):
        raise InvalidTarget(f"{path} is not a kubeconfig")
    return document


def _parse_yaml(path: Path, text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  (an optional dependency)
    except ModuleNotFoundError:
        raise InvalidTarget(
            f"reading {path} needs PyYAML: pip install './clients/python[kubernetes]' in a clone of the repository"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        # `from None`: the error quotes the file, which may hold secrets.
        raise InvalidTarget(f"{path} is not valid YAML") from None
