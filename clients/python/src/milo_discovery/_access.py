"""What a kubeconfig of the daemon's says: where to, whom to trust there, and with which credential.

The daemon writes them as JSON, and with nothing in them that stands elsewhere, so that reading one needs neither a YAML
library nor a file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from milo_discovery.errors import UnusableKubeconfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One cluster, and the user that its kubeconfig names."""

    server: str
    authorities: str | None = None
    """PEM; None is the system's."""
    tls_server_name: str | None = None
    token: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    """PEM, as its key is."""
    key: str | None = field(default=None, repr=False)


def read(kubeconfig: bytes) -> Access:
    """The access that its current context gives. What is wrong with one is told without quoting it."""
    try:
        document = json.loads(kubeconfig)
        context = _named(document, "contexts", document["current-context"])["context"]
        cluster = _named(document, "clusters", context["cluster"])["cluster"]
        user = _named(document, "users", context["user"])["user"]
        access = Access(
            server=_text(cluster, "server") or "",
            authorities=_decoded(cluster, "certificate-authority-data"),
            tls_server_name=_text(cluster, "tls-server-name"),
            token=_text(user, "token"),
            certificate=_decoded(user, "client-certificate-data"),
            key=_decoded(user, "client-key-data"),
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        # Not as the cause either: a traceback would show the text that was decoded.
        raise UnusableKubeconfig("the kubeconfig isn't of the form that the daemon writes") from None
    if not access.server:
        raise UnusableKubeconfig("the kubeconfig names no server")
    if access.token is None and (access.certificate is None or access.key is None):
        raise UnusableKubeconfig("the kubeconfig holds neither a token nor a certificate with its key")
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
