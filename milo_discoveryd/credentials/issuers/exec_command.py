"""Credentials from an exec credential plugin that the settings name. The plugin runs once per mint."""

import base64
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential, validate
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import IssuerContext, IssuerSettings
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import ListOf, one_of, span
from milo_kube.credential import Credential, CredentialError
from milo_kube.credential_providers import ExecOrigin
from milo_kube.exec_plugin import TIMEOUT_S, ExecCommand
from milo_kube.upstream import Upstream


class ExecIssuer:
    type = "exec"
    takes_ttl = False

    def __init__(
        self,
        name: str,
        command: ExecCommand,
        *,
        project: Upstream,
        per_cluster: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`per_cluster`: the command receives a cluster, and prints a credential for that cluster only."""
        self.name = name
        self.scope = Scope.CLUSTER if per_cluster else Scope.IDENTITY
        self._command = command
        self._project = project
        self.timeout_s = timeout_s

    async def mint(self, request: MintRequest) -> IssuedCredential:
        server = self._project.server if request.cluster is None else request.cluster.target.endpoint
        command = msgspec.structs.replace(self._command, cluster=lambda: self._cluster_info(server))
        try:
            return await self._minted(ExecOrigin(command, self.timeout_s))
        except UnfitError:
            raise
        except CredentialError as error:
            # A plugin that fails for one cluster's endpoint may work for the others.
            raise BackendError(str(error), of_cluster=self.scope is Scope.CLUSTER) from None

    async def _minted(self, plugin: ExecOrigin) -> IssuedCredential:
        credential = await plugin.obtain()
        if credential.token is not None:
            credential = Credential(token=credential.token, expires_at=credential.expires_at)
        return validate(
            credential,
            time.time(),
            origin=f"exec plugin {self._command.argv[0]}",
            expires_at=credential.expires_at,
        )

    def _cluster_info(self, server: str) -> Mapping[str, object]:
        info: dict[str, object] = {"server": server}
        authorities = self._project.trusted()
        if authorities is not None:
            info["certificate-authority-data"] = base64.b64encode(authorities).decode()
        if self._project.tls_server_name:
            info["tls-server-name"] = self._project.tls_server_name
        return info


class ExecSettings(IssuerSettings, frozen=True, kw_only=True):
    command: Annotated[str, values.absolute_command]
    """Absolute path of the command, an exec credential plugin."""
    args: Annotated[tuple[str, ...], ListOf(str)] = ()
    """Arguments of the command."""
    env: Annotated[dict[str, str], values.pairs] = msgspec.field(default_factory=dict)
    """Additional environment variables of the command."""
    api_version: Annotated[str, one_of("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")] = (
        "client.authentication.k8s.io/v1"
    )
    """API version of the ExecCredential that the command prints."""
    per_cluster: bool = False
    """Run the command once per cluster, and pass it the cluster's API server."""
    timeout: Annotated[timedelta, span("1s", "5m")] = timedelta(seconds=25)
    """Time after which the command is killed with its child processes."""

    @property
    def is_per_cluster(self) -> bool:
        return self.per_cluster

    def issuer(self, context: IssuerContext) -> ExecIssuer:
        return ExecIssuer(
            self.name,
            ExecCommand(api_version=self.api_version, argv=(self.command, *self.args), environment=self.env),
            project=context.served[0].project,
            per_cluster=self.per_cluster,
            timeout_s=self.timeout.total_seconds(),
        )
