"""A kubeconfig's bytes. As JSON, which is YAML: no name or label can be read as something else, or break out of it.

Pure, and deterministic: the same cluster and credential give the same bytes. Nothing is written that is not listed
here: no command, no file, no proxy, no impersonation, no switched-off verification.
"""

import base64
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd.credentials.credential import Credential
from milo_discoveryd.daemon_errors import UnfitError

COMMAND = "milo-discovery"
ADDRESS_VARIABLE = "MILO_DISCOVERY_ADDRESS"
_EXEC_VERSION = "client.authentication.k8s.io/v1"
_HINT = "milo-discovery is not on PATH. It comes with the Python package milo-discovery-client."


class Place(msgspec.Struct, frozen=True):
    """How any of the clusters is known to be the one it should be."""

    authorities: bytes | None
    """PEM; none is the system's."""
    tls_server_name: str | None = None


def embedded(name: str, server: str, place: Place, credential: Credential) -> bytes:
    """Usable as it is. Raises UnfitError where the credential would travel in the clear."""
    if not _keeps_secrets(server):
        raise UnfitError(f"{name} is at {server}, without TLS: a credential would travel there in the clear")
    user: dict[str, object] = {}
    if credential.token is not None:
        user["token"] = credential.token.reveal()
    if credential.certificate is not None:
        user["client-certificate-data"] = _base64(credential.certificate.chain)
        user["client-key-data"] = _base64(credential.certificate.key.reveal().encode())
    return _config(name, server, place, user)


def exec_form(name: str, server: str, place: Place, address: str | None) -> bytes:
    """Holds no secret: calls the client's command, which asks the daemon at `address` each time."""
    user: dict[str, object] = {
        "exec": {
            "apiVersion": _EXEC_VERSION,
            "command": COMMAND,
            "args": ["credential", "--cluster", name],
            "env": [{"name": ADDRESS_VARIABLE, "value": address}] if address else [],
            "installHint": _HINT,
            "interactiveMode": "Never",
            "provideClusterInfo": False,
        }
    }
    return _config(name, server, place, user)


def _config(name: str, server: str, place: Place, user: Mapping[str, object]) -> bytes:
    cluster: dict[str, object] = {"server": server}
    if place.authorities is not None:
        cluster["certificate-authority-data"] = _base64(place.authorities)
    if place.tls_server_name:
        cluster["tls-server-name"] = place.tls_server_name
    return msgspec.json.encode(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _keeps_secrets(server: str) -> bool:
    parts = urlsplit(server)
    if parts.scheme == "https":
        return True
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
