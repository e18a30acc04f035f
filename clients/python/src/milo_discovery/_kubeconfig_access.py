"""Reads the kubeconfigs that the daemon issues, strictly, and renders kubeconfigs.

The daemon writes JSON with all data inline, so reading needs neither a YAML library nor other files. Whatever answers
at the daemon's address could send a kubeconfig that runs a program, so everything that the daemon does not write is
refused.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from milo_discovery.errors import UnusableKubeconfig


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeconfigAccess:
    """The cluster and user of a kubeconfig's current context."""

    server: str
    authorities: str | None = None
    """CA certificates as PEM; None means the system's trust store."""
    tls_server_name: str | None = None
    token: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    """Client certificate as PEM."""
    key: str | None = field(default=None, repr=False)
    """Private key of the client certificate as PEM."""


# The fields that the daemon writes. Others are refused: an unknown field could name a program, a proxy or a file.
_CONFIG_FIELDS = frozenset({"apiVersion", "kind", "clusters", "users", "contexts", "current-context"})
_CLUSTER_FIELDS = frozenset({"server", "certificate-authority-data", "tls-server-name"})
_USER_FIELDS = frozenset({"token", "client-certificate-data", "client-key-data"})
_EXEC_FIELDS = frozenset(
    {"apiVersion", "command", "args", "env", "installHint", "interactiveMode", "provideClusterInfo"}
)
EXEC_COMMAND = "milo-discovery"


def read_access(kubeconfig: bytes) -> KubeconfigAccess:
    """Read a kubeconfig with an embedded credential. Raises UnusableKubeconfig for anything else."""
    access, _ = _read(kubeconfig, _USER_FIELDS)
    if access.token is None and (access.certificate is None or access.key is None):
        raise UnusableKubeconfig("the kubeconfig has neither a token nor a client certificate with its key")
    return access


def read_exec_access(kubeconfig: bytes, cluster: str) -> KubeconfigAccess:
    """Read a kubeconfig without a credential, whose exec plugin must be this package's own for this cluster.

    The result holds only the server and its trust root: callers build the exec entry themselves.
    """
    access, user = _read(kubeconfig, frozenset({"exec"}))
    call = user.get("exec")
    if not isinstance(call, dict) or not _EXEC_FIELDS.issuperset(call):
        raise UnusableKubeconfig("the kubeconfig has an exec entry that the daemon does not write")
    if call.get("command") != EXEC_COMMAND or call.get("args") != exec_arguments(cluster):
        raise UnusableKubeconfig(f"the kubeconfig calls another program than `{EXEC_COMMAND} credential`: refused")
    return access


def exec_arguments(cluster: str) -> list[str]:
    """Return the arguments with which the exec plugin is called."""
    return ["credential", "--cluster", cluster]


def render_kubeconfig(name: str, access: KubeconfigAccess, user: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a kubeconfig document; `user` replaces the credential of `access`."""
    cluster = {
        "server": access.server,
        "certificate-authority-data": _encoded(access.authorities),
        "tls-server-name": access.tls_server_name,
    }
    credential = {
        "token": access.token,
        "client-certificate-data": _encoded(access.certificate),
        "client-key-data": _encoded(access.key),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": _without_none(cluster)}],
        "users": [{"name": name, "user": _without_none(credential if user is None else user)}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def _read(kubeconfig: bytes, user_fields: frozenset[str]) -> tuple[KubeconfigAccess, dict[str, Any]]:
    """Read the only cluster and user. Error messages never quote the content, which holds secrets."""
    try:
        document = json.loads(kubeconfig)
        [cluster_entry], [user_entry], [context_entry] = (document[each] for each in ("clusters", "users", "contexts"))
        cluster, user, context = cluster_entry["cluster"], user_entry["user"], context_entry["context"]
        is_consistent = (context["cluster"], context["user"]) == (cluster_entry["name"], user_entry["name"])
        access = KubeconfigAccess(
            server=_text(cluster, "server") or "",
            authorities=_interned(_decoded(cluster, "certificate-authority-data")),
            tls_server_name=_text(cluster, "tls-server-name"),
            token=_text(user, "token"),
            certificate=_decoded(user, "client-certificate-data"),
            key=_decoded(user, "client-key-data"),
        )
        unknown = {
            *set(document) - _CONFIG_FIELDS,
            *set(cluster) - _CLUSTER_FIELDS,
            *set(user) - user_fields,
            *set(context) - {"cluster", "user"},
            *(set(cluster_entry) | set(user_entry) | set(context_entry)) - {"name", "cluster", "user", "context"},
        }
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        # `from None`: the decoding error as a cause would show the decoded text in tracebacks.
        raise UnusableKubeconfig("the kubeconfig does not have the form that the daemon writes") from None
    if unknown:
        raise UnusableKubeconfig(f"the kubeconfig has fields that the daemon does not write: {sorted(unknown)!a:.200}")
    if not is_consistent or document["current-context"] != context_entry["name"]:
        raise UnusableKubeconfig("the kubeconfig's current context does not name its cluster and user")
    if not is_http_url(access.server):
        raise UnusableKubeconfig("the kubeconfig has no server of the form https://HOST or https://HOST:PORT")
    if access.token is not None and not (access.token.isascii() and access.token.isprintable()):
        raise UnusableKubeconfig("the kubeconfig's token has characters that no HTTP header may contain")
    return access, user


def is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _text(part: Mapping[str, Any], key: str) -> str | None:
    value = part.get(key)
    if value is not None and not isinstance(value, str):
        raise TypeError(key)
    return value or None


def _decoded(part: Mapping[str, Any], key: str) -> str | None:
    value = _text(part, key)
    return None if value is None else base64.b64decode(value, validate=True).decode("ascii")


def _interned(text: str | None) -> str | None:
    """Return the interned text: the clusters of a fleet have the same CA, which is then held in memory once."""
    return None if text is None else sys.intern(text)


def _encoded(value: str | None) -> str | None:
    return None if value is None else base64.b64encode(value.encode()).decode()


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
