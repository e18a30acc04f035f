"""Renders kubeconfigs as JSON, which is valid YAML: names cannot be parsed as another type or break out of their field.

Pure and deterministic: the same cluster and credential give the same bytes. Only the fields listed here are written:
no files, no proxy, no disabled TLS verification.
"""

from collections.abc import Mapping

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import UnfitError
from milo_kube import kubeconfig
from milo_kube.act_as import STATEMENT_VARIABLE, ActAs
from milo_kube.credential import Credential, is_confidential

COMMAND = "milo-discovery"
ADDRESS_VARIABLE = "MILO_DISCOVERY_ADDRESS"
_EXEC_VERSION = "client.authentication.k8s.io/v1"
_HINT = "milo-discovery is not on PATH. It comes with the Python package milo-discovery-cli."


class ClusterTrust(msgspec.Struct, frozen=True):
    """How clients reach and verify the API server of a cluster."""

    authorities: bytes | None
    """PEM; None stands for the system's CAs."""
    tls_server_name: str | None = None
    plain_loopback: bool = False
    """Whether credentials may be sent to servers on loopback without TLS."""
    server: str = ""
    """URL of the cluster's API server, if it differs from the cluster's endpoint."""


def embedded(name: str, server: str, trust: ClusterTrust, credential: Credential, act_as: ActAs | None = None) -> bytes:
    """Render a kubeconfig that contains the credential. Raises UnfitError if it would be sent without TLS."""
    if not is_confidential(server, plain_loopback=trust.plain_loopback):
        raise UnfitError(f"the endpoint of {name}, {server}, has no TLS: a credential would be sent unencrypted")
    user: dict[str, object] = {} if act_as is None else act_as.fields()
    if credential.token is not None:
        user["token"] = credential.token.reveal()
    if credential.certificate is not None:
        user["client-certificate-data"] = credential.certificate.chain
        user["client-key-data"] = credential.certificate.key.reveal().encode()
    return _config(name, server, trust, user)


def exec_form(name: str, server: str, trust: ClusterTrust, address: str | None, act_as: ActAs | None = None) -> bytes:
    """Render a kubeconfig without a secret: its exec plugin requests credentials from the daemon at `address`."""
    user: dict[str, object] = {} if act_as is None else act_as.fields()
    variables = {kubeconfig.SERVER_VARIABLE: server} | ({ADDRESS_VARIABLE: address} if address else {})
    if act_as is not None:
        variables[STATEMENT_VARIABLE] = act_as.statement()
    user |= {
        "exec": {
            "apiVersion": _EXEC_VERSION,
            "command": COMMAND,
            "args": ["credential", "--cluster", name],
            "env": [{"name": variable, "value": value} for variable, value in variables.items()],
            "installHint": _HINT,
            "interactiveMode": "Never",
            "provideClusterInfo": False,
        }
    }
    return _config(name, server, trust, user)


def _config(name: str, server: str, trust: ClusterTrust, user: Mapping[str, object]) -> bytes:
    document = kubeconfig.render(
        name, server=server, authorities=trust.authorities, tls_server_name=trust.tls_server_name, user=user
    )
    return msgspec.json.encode(document)


class IssuedKubeconfig(msgspec.Struct, frozen=True):
    """A kubeconfig for one cluster. The text may contain a secret, so its repr masks it."""

    cluster: str
    text: bytes
    issued_at: float
    expires_at: float | None = None
    refresh_at: float | None = None
    credential: IssuedCredential | None = None

    def __repr__(self) -> str:
        return f"IssuedKubeconfig(cluster={self.cluster!r}, text=***)"
