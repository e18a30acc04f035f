"""Reads the kubeconfigs that the daemon issues, strictly, and renders kubeconfigs.

The daemon writes JSON with all data inline. A process that impersonates the daemon could send a kubeconfig that runs
a program, so everything that the daemon does not write is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from milo_discovery.errors import UnusableKubeconfig
from milo_kube import act_as
from milo_kube import kubeconfig as kubeconfig_reader
from milo_kube.act_as import ActAs
from milo_kube.credential import ascii_pem
from milo_kube.kubeconfig import ContextAccess, KubeconfigError, Policy

__all__ = ["KubeconfigAccess", "read_access", "render_kubeconfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeconfigAccess:
    """The cluster and user of a kubeconfig's context."""

    server: str
    authorities: str | None = None
    """CA certificates as PEM; None means the system's trust store."""
    tls_server_name: str | None = None
    token: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    """Client certificate as PEM."""
    key: str | None = field(default=None, repr=False)
    """Private key of the client certificate as PEM."""
    act_as: ActAs | None = None
    """The user that requests impersonate."""


# A credential is not used in the last part of its lifetime, because the request takes time to arrive.
_EXPIRY_MARGIN = timedelta(seconds=5)
_EXPIRY_MARGIN_SHARE = 0.1
_EARLIEST = datetime.min.replace(tzinfo=UTC) + _EXPIRY_MARGIN
_CLUSTER_FIELDS = frozenset({"server", "certificate-authority-data", "tls-server-name"})
_CREDENTIAL = Policy(
    cluster=_CLUSTER_FIELDS,
    user=act_as.FIELDS | {"token", "client-certificate-data", "client-key-data"},
    is_exact=True,
)
_PLUGIN = Policy(cluster=_CLUSTER_FIELDS, user=act_as.FIELDS | {"exec"}, is_exact=True)
EXEC_COMMAND = "milo-discovery"


def read_access(kubeconfig: bytes) -> KubeconfigAccess:
    """Read a kubeconfig with an embedded credential. Raises UnusableKubeconfig for anything else."""
    access = inline_access(_read(kubeconfig, _CREDENTIAL), "the kubeconfig")
    if access.token is None and access.certificate is None:
        raise UnusableKubeconfig("the kubeconfig has neither a token nor a client certificate with its key")
    return access


def read_exec_access(kubeconfig: bytes, cluster: str) -> KubeconfigAccess:
    """Read a kubeconfig that has no credential, but runs this package's exec plugin for this cluster.

    The result has no credential: callers build the exec entry themselves.
    """
    found = _read(kubeconfig, _PLUGIN)
    if found.plugin is None or (found.plugin.command, [*found.plugin.args]) != (EXEC_COMMAND, exec_arguments(cluster)):
        expected = " ".join((EXEC_COMMAND, *exec_arguments(cluster)))
        raise UnusableKubeconfig(f"the kubeconfig does not run the exec plugin `{expected}`")
    return inline_access(found, "the kubeconfig")


@lru_cache(maxsize=16)
def _shared(authorities: str) -> str:
    """Return one instance for equal CAs, so that a CA that many clusters share is held in memory once."""
    return authorities


def inline_access(found: ContextAccess, origin: str) -> KubeconfigAccess:
    """Return the inline data of a context. Raises UnusableKubeconfig."""
    authorities = _pem(found.authorities, origin)
    return KubeconfigAccess(
        server=found.server,
        authorities=None if authorities is None else _shared(authorities),
        tls_server_name=found.tls_server_name or None,
        token=found.token or None,
        certificate=_pem(found.certificate, origin),
        key=_pem(found.key, origin),
        act_as=found.act_as,
    )


def pem_text(content: bytes, origin: str) -> str:
    """Return PEM as ASCII: its comments may have other characters. Raises UnusableKubeconfig for binary data."""
    if not content.isascii() and b"-----BEGIN " not in content:
        raise UnusableKubeconfig(f"{origin} contains a CA, a certificate or a key that is not PEM")
    return ascii_pem(content)


def exec_arguments(cluster: str) -> list[str]:
    """Return the arguments with which the exec plugin is called."""
    return ["credential", "--cluster", cluster]


def usable_until(expires_at: datetime, issued_at: datetime | None) -> datetime:
    """Return when to stop using a credential: shortly before it expires, so that requests arrive in time."""
    margin = _EXPIRY_MARGIN
    if issued_at is not None:  # `issued_at` can be after `expires_at` if a clock was set back
        margin = max(timedelta(), min(margin, _EXPIRY_MARGIN_SHARE * (expires_at - issued_at)))
    return max(expires_at, _EARLIEST) - margin


def render_kubeconfig(name: str, access: KubeconfigAccess, user: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a kubeconfig document; `user` replaces the credential of `access`."""
    credential = {
        "token": access.token,
        "client-certificate-data": _bytes(access.certificate),
        "client-key-data": _bytes(access.key),
    }
    acting = {} if access.act_as is None else access.act_as.fields()
    return kubeconfig_reader.render(
        name,
        server=access.server,
        authorities=_bytes(access.authorities),
        tls_server_name=access.tls_server_name,
        user={**acting, **(credential if user is None else user)},
    )


def _read(content: bytes, policy: Policy) -> ContextAccess:
    """Read the only cluster and user. Error messages never quote a value, which may be a secret."""
    try:
        return kubeconfig_reader.parse(content, yaml=False).select(policy)
    except KubeconfigError as error:
        raise UnusableKubeconfig(f"the kubeconfig is not of the form that the daemon writes: {error}") from None


def _pem(content: bytes | None, origin: str) -> str | None:
    return None if content is None else pem_text(content, origin)


def _bytes(pem: str | None) -> bytes | None:
    return None if pem is None else pem.encode()
