"""The command `credential`: an exec credential plugin for kubectl and client libraries.

It is called often and concurrently, so it imports little and makes one call. The daemon shares one request to the
credential issuer among concurrent callers.
"""

from __future__ import annotations

import base64
import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from milo_discovery.errors import DiscoveryError
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery_cli.exit_status import CallFailure, CommandFailure
from milo_discovery_cli.names import NAME
from milo_discovery_cli.options import ConnectionOptions, connecting
from milo_kube.act_as import STATEMENT_VARIABLE
from milo_kube.kubeconfig import SERVER_VARIABLE
from milo_kube.rfc3339 import rfc3339

if TYPE_CHECKING:
    from milo_discovery.single_call import IssuedAccess

EXEC_INFO_VARIABLE = "KUBERNETES_EXEC_INFO"
_VERSION = "client.authentication.k8s.io/v1"
# v1beta1 has the same fields, as far as they are used here.
_VERSIONS = (_VERSION, "client.authentication.k8s.io/v1beta1")


@click.command("credential")
@click.argument("name", type=NAME, required=False, metavar="NAME")
@click.option("--cluster", metavar="NAME", hidden=True)  # Kubeconfigs call this command with --cluster.
@connecting(timeout="10s", timeout_help="How long to wait for the response.")
def credential(connection: ConnectionOptions, *, name: str | None, cluster: str | None) -> None:
    """Print a credential as an exec credential plugin does.

    kubectl and client libraries call this command, through the kubeconfigs that `milo-discovery kubeconfig` creates.
    Consumers of the ClusterProfiles that `milo-discovery publish` writes call it without NAME: the profile contains it.
    """
    if name is not None and cluster is not None:
        raise click.UsageError("--cluster and NAME both name the cluster: give only one of them.")
    exec_info = _parse_exec_info(os.environ.get(EXEC_INFO_VARIABLE))
    given = name or cluster or _cluster_of(exec_info)
    if not given:
        raise click.UsageError("Missing argument 'NAME'.")
    _print_credential(connection, given, exec_info)


def _print_credential(connection: ConnectionOptions, cluster: str, exec_info: dict[str, Any]) -> None:
    try:
        access, usable_until = _issue(connection, cluster)
    except DiscoveryError as error:
        raise CallFailure(error, connection.address, connection.credentials) from error
    _require_same_server(exec_info, access, cluster)
    _require_current_server(access, cluster)
    _require_same_user(access, cluster)
    click.echo(json.dumps(_exec_credential(exec_info, access, usable_until)))


def _issue(connection: ConnectionOptions, cluster: str) -> IssuedAccess:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from milo_discovery.single_call import issue_access  # noqa: PLC0415  (loads gRPC)

    return issue_access(cluster, connection.address, credentials=connection.credentials, timeout=connection.timeout)


def _parse_exec_info(value: str | None) -> dict[str, Any]:
    """Return the caller's ExecCredential, or a default one if a user runs the command manually."""
    if not value:
        return {"apiVersion": _VERSION}
    try:
        exec_info = json.loads(value)
    except ValueError as error:
        raise CommandFailure(f"{EXEC_INFO_VARIABLE} is not valid JSON: {error}") from error
    if not isinstance(exec_info, dict):
        raise CommandFailure(f"{EXEC_INFO_VARIABLE} is not a JSON object")
    if (version := exec_info.get("apiVersion")) not in _VERSIONS:
        supported = ", ".join(_VERSIONS)
        raise CommandFailure(f"{EXEC_INFO_VARIABLE} has the apiVersion {version!r}; supported: {supported}")
    return exec_info


def _cluster_of(exec_info: dict[str, Any]) -> str | None:
    """Return the cluster name in the configuration that a ClusterProfile passes to the plugin (KEP-4322), if any."""
    value: Any = exec_info
    for key in ("spec", "cluster", "config", "clusterName"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _require_same_server(exec_info: dict[str, Any], access: KubeconfigAccess, cluster: str) -> None:
    """Raise CommandFailure if `spec.cluster` shows that the caller may send the credential to a different server."""
    spec = exec_info.get("spec")
    stated = spec.get("cluster") if isinstance(spec, dict) else None
    if not isinstance(stated, dict):
        return
    refused = ""
    if stated.get("server") != access.server:
        refused = f"is for {access.server}, but the caller connects to {stated.get('server')}"
    elif stated.get("insecure-skip-tls-verify"):
        refused = "is for a verified server, but the caller does not verify it (insecure-skip-tls-verify)"
    elif _certificates(stated.get("certificate-authority-data")) != (access.authorities or "").split():
        refused = "is for a server with a different CA than the caller trusts (certificate-authority-data)"
    elif stated.get("tls-server-name") not in {None, "", access.tls_server_name}:
        refused = f"is not for a server named {stated['tls-server-name']} (tls-server-name)"
    elif stated.get("proxy-url"):
        refused = "is not sent through the proxy of a kubeconfig (proxy-url): set HTTPS_PROXY instead"
    if refused:
        raise CommandFailure(f"the credential of {cluster} {refused}")


def _require_current_server(access: KubeconfigAccess, cluster: str) -> None:
    """Raise CommandFailure if the calling kubeconfig names a server that is not the cluster's current one.

    The cluster has moved, or was replaced by another one of the same name, since the kubeconfig was made.
    """
    stated = os.environ.get(SERVER_VARIABLE, access.server)  # kubeconfigs written by earlier versions name no server
    if stated != access.server:
        raise CommandFailure(
            f"the credential of {cluster} is for {access.server}, but this kubeconfig connects to {stated}: "
            f"recreate it with `milo-discovery kubeconfig {cluster}`"
        )


def _require_same_user(access: KubeconfigAccess, cluster: str) -> None:
    """Raise CommandFailure unless the calling kubeconfig impersonates the user for which the credential is meant.

    Without impersonation, its requests would have all rights of the credential's own identity.
    """
    acting = access.act_as
    if acting is not None and os.environ.get(STATEMENT_VARIABLE) != acting.statement():
        raise CommandFailure(
            f"the daemon issues the credential of {cluster} for requests that impersonate {acting.user}, and this "
            f"kubeconfig does not impersonate the same user, groups and extra fields: recreate it with "
            f"`milo-discovery kubeconfig {cluster}`"
        )


def _certificates(data: Any) -> list[str] | None:
    """Return the CA's PEM, split at whitespace for comparison; None if it cannot be decoded."""
    try:
        return base64.b64decode(data or "", validate=True).decode().split()
    except (TypeError, ValueError):
        return None


def _exec_credential(
    exec_info: dict[str, Any], access: KubeconfigAccess, usable_until: datetime | None
) -> dict[str, Any]:
    status: dict[str, str] = {}
    if usable_until is not None:
        status["expirationTimestamp"] = rfc3339(usable_until, "milliseconds")
    if access.token is not None:
        status["token"] = access.token
    if access.certificate is not None and access.key is not None:
        status["clientCertificateData"] = access.certificate
        status["clientKeyData"] = access.key
    return {"kind": "ExecCredential", "apiVersion": exec_info["apiVersion"], "status": status}
