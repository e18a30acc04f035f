"""The command that kubectl and the client libraries call: a credential for one cluster, as an ExecCredential.

It is called often, and many at once, so that it loads little and asks one question; single-flight is the daemon's.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from milo_discovery import _access
from milo_discovery._access import Access
from milo_discovery._address import CHANNEL_OPTIONS, target
from milo_discovery._credential import usable_until
from milo_discovery.cli.endings import Ended, Failed
from milo_discovery.cli.options import Connection, one_call
from milo_discovery.errors import DiscoveryError

if TYPE_CHECKING:
    from milo_discovery._gen import discovery_pb2 as pb

CALLER_VARIABLE = "KUBERNETES_EXEC_INFO"
_VERSION = "client.authentication.k8s.io/v1"
# Both have the same fields, as far as they are used here.
_VERSIONS = (_VERSION, "client.authentication.k8s.io/v1beta1")


@click.command("credential")
@click.option("--cluster", metavar="NAME", required=True, help="Whose control plane it is for.")
@one_call
def credential(connection: Connection, *, cluster: str) -> None:
    """Print a short-lived credential as an ExecCredential, for kubectl and other clients to call."""
    caller = _caller(os.environ.get(CALLER_VARIABLE))
    try:
        kubeconfig = _ask(connection, cluster)
        access = _access.read(kubeconfig.kubeconfig)
    except DiscoveryError as error:
        raise Ended(error, connection.address) from error
    _refuse_elsewhere(caller, access, cluster)
    click.echo(json.dumps(_answer(caller, access, kubeconfig)))


def _ask(connection: Connection, cluster: str) -> pb.Kubeconfig:
    # Without the client, whose watches and models take longer to load than the question takes to ask.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    import grpc  # noqa: PLC0415  (usage errors do without)

    from milo_discovery._gen import discovery_pb2 as messages  # noqa: PLC0415
    from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub  # noqa: PLC0415

    limit = None if connection.timeout is None else connection.timeout.total_seconds()
    try:
        place, shown = target(connection.address), connection.credentials.channel_credentials()
        with (
            grpc.insecure_channel(place, options=CHANNEL_OPTIONS)
            if shown is None
            else grpc.secure_channel(place, shown, options=CHANNEL_OPTIONS)
        ) as channel:
            request, metadata = messages.IssueKubeconfigRequest(cluster=cluster), connection.credentials.metadata()
            answer = DiscoveryServiceStub(channel).IssueKubeconfig(request, timeout=limit, metadata=metadata)
            return answer.kubeconfig
    except grpc.RpcError as error:
        from milo_discovery._status import failure  # noqa: PLC0415

        raise failure(error) from error


def _caller(said: str | None) -> dict[str, Any]:
    """What the caller says of itself; nothing, where a person is the caller."""
    if not said:
        return {"apiVersion": _VERSION}
    try:
        caller = json.loads(said)
    except ValueError as error:
        raise Failed(f"{CALLER_VARIABLE} isn't JSON: {error}") from error
    if not isinstance(caller, dict) or caller.get("apiVersion") not in _VERSIONS:
        raise Failed(f"{CALLER_VARIABLE} asks for no version that is known here: those are {', '.join(_VERSIONS)}")
    return caller


def _refuse_elsewhere(caller: dict[str, Any], access: Access, cluster: str) -> None:
    """Where the caller says for which server it asks, another one must not be sent this credential."""
    spec = caller.get("spec")
    place = spec.get("cluster") if isinstance(spec, dict) else None
    server = place.get("server") if isinstance(place, dict) else None
    if server and server != access.server:
        raise Failed(f"the credential of {cluster} is for {access.server}, and was asked for by a client of {server}")


def _answer(caller: dict[str, Any], access: Access, kubeconfig: pb.Kubeconfig) -> dict[str, Any]:
    status: dict[str, str] = {}
    if kubeconfig.HasField("expires_at"):
        ends, issued = kubeconfig.expires_at.ToDatetime(UTC), kubeconfig.issued_at.ToDatetime(UTC)
        status["expirationTimestamp"] = _stamp(usable_until(ends, issued))
    if access.token is not None:
        status["token"] = access.token
    if access.certificate is not None and access.key is not None:
        status["clientCertificateData"] = access.certificate
        status["clientKeyData"] = access.key
    return {"kind": "ExecCredential", "apiVersion": caller["apiVersion"], "status": status}


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
