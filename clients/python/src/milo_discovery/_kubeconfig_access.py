"""Reads the server, trust root and credential from a kubeconfig that the daemon issued.

The daemon writes kubeconfigs as JSON with all data inline, so reading one needs neither a YAML library nor other files.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


def read_access(kubeconfig: bytes) -> KubeconfigAccess:
    """Read the current context. Error messages never quote the content, which holds secrets."""
    try:
        document = json.loads(kubeconfig)
        context = _named(document, "contexts", document["current-context"])["context"]
        cluster = _named(document, "clusters", context["cluster"])["cluster"]
        user = _named(document, "users", context["user"])["user"]
        access = KubeconfigAccess(
            server=_text(cluster, "server") or "",
            authorities=_decoded(cluster, "certificate-authority-data"),
            tls_server_name=_text(cluster, "tls-server-name"),
            token=_text(user, "token"),
            certificate=_decoded(user, "client-certificate-data"),
            key=_decoded(user, "client-key-data"),
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        # `from None`: the decoding error as a cause would show the decoded text in tracebacks.
        raise UnusableKubeconfig("the kubeconfig does not have the form that the daemon writes") from None
    if not access.server:
        raise UnusableKubeconfig("the kubeconfig has no server")
    if access.token is None and (access.certificate is None or access.key is None):
        raise UnusableKubeconfig("the kubeconfig has neither a token nor a client certificate with its key")
    return access


def _named(document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    for each in document[kind]:
        if each["name"] == name:
            found: Mapping[str, Any] = each
            return found
    raise LookupError(kind)


def _text(part: Mapping[str, Any], key: str) -> str | None:
    value = part.get(key)
    if value is not None and not isinstance(value, str):
        raise TypeError(key)
    return value or None


def _decoded(part: Mapping[str, Any], key: str) -> str | None:
    value = _text(part, key)
    return None if value is None else base64.b64decode(value, validate=True).decode("ascii")
