"""The settings of credential sources: a name, a type, and what that type needs."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from milo_discoveryd.config import values
from milo_discoveryd.config.fields import ByType, Group, ListOf, Text, one_of, selector_text, span

_RequiredFile = Annotated[Path, values.required_file]
_File = Annotated[Path | None, values.file_path]
_Text = Annotated[str, Text(least=1, most=1024)]
_Words = Annotated[tuple[str, ...], ListOf(Text(least=1, most=1024))]
_Label = Annotated[str, values.cluster_name]
_ObjectName = Annotated[str, values.object_name]


MIN_TOKEN_TTL_S = 600
"""API servers mint no tokens with a shorter lifetime."""


class _Source(Group, frozen=True, kw_only=True):
    name: _Label
    """What rules, metrics and the log call it."""
    label_selector: Annotated[str, selector_text] = ""
    """Which clusters it is for. None is all."""
    hand_out: bool = True
    """`false` for one that only the daemon itself authenticates with."""


class DatumServiceAccount(_Source, frozen=True, kw_only=True):
    type: Annotated[Literal["datum-service-account"], one_of("datum-service-account")] = "datum-service-account"
    key_file: _RequiredFile
    """The JSON key file, read again when it changes."""
    ca_file: _File = None
    """The CA of the token endpoint; required for one on this machine. None is the system's."""
    audiences: _Words = ()
    """A token that is a JWT must be for one of these. None is any."""


class TokenRequest(_Source, frozen=True, kw_only=True):
    type: Annotated[Literal["token-request"], one_of("token-request")] = "token-request"
    kubeconfig: _File = None
    """Of the infrastructure cluster. None is that of discovery."""
    namespace: _Label
    """Of the service account."""
    service_account: _ObjectName
    """Whose tokens they are."""
    audiences: _Words = ()
    """Who they are for. None is the API server's own."""
    bound: bool = True
    """To a Secret for each project. `false` has one token for all projects, and no Secrets."""


class ClientCertificate(_Source, frozen=True, kw_only=True):
    type: Annotated[Literal["client-certificate"], one_of("client-certificate")] = "client-certificate"
    ca_certificate: _RequiredFile
    """The CA, read again when it changes."""
    ca_key: _RequiredFile
    """Its key, as well."""
    common_name: Annotated[str, values.subject_template]
    """The user; `{name}` and `{uid}` are the project's."""
    organizations: Annotated[tuple[str, ...], ListOf(values.subject_template)] = ()
    """The groups, with the same placeholders."""


class Exec(_Source, frozen=True, kw_only=True):
    type: Annotated[Literal["exec"], one_of("exec")] = "exec"
    command: Annotated[str, values.absolute_command]
    """An absolute path."""
    args: Annotated[tuple[str, ...], ListOf(str)] = ()
    """What it is started with."""
    env: Annotated[dict[str, str], values.pairs] = msgspec.field(default_factory=dict)
    """Environment variables besides the inherited ones."""
    api_version: Annotated[str, one_of("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")] = (
        "client.authentication.k8s.io/v1"
    )
    """Of the credential that it prints."""
    per_cluster: bool = False
    """`true` runs it for each cluster, with that cluster's server."""
    timeout: Annotated[timedelta, span("1s", "5m")] = timedelta(seconds=25)
    """Then it is killed, with all that it started."""


class TokenFile(_Source, frozen=True, kw_only=True):
    type: Annotated[Literal["token-file"], one_of("token-file")] = "token-file"
    path: _RequiredFile
    """Of the file with the token, read again as it changes."""
    audiences: _Words = ()
    """The token must be for one of these. None is any."""


class KubeconfigSecret(_Source, frozen=True, kw_only=True):
    type: Annotated[Literal["kubeconfig-secret"], one_of("kubeconfig-secret")] = "kubeconfig-secret"
    kubeconfig: _File = None
    """Of the infrastructure cluster. None is that of discovery."""
    namespace_template: Annotated[str, values.namespace_template] = "project-{uid}"
    """Where a project's Secret is; or with `{name}`."""
    secret: _ObjectName = "kubeconfig"  # noqa: S105 - the name of one
    """The Secret's name."""
    key: _Text = "kubeconfig"
    """Of its data."""
    allow_long_lived: bool = False
    """`true` hands on a certificate that lives for more than 24 hours."""


class ProjectKubeconfig(_Source, frozen=True, kw_only=True):
    type: Annotated[Literal["project-kubeconfig"], one_of("project-kubeconfig")] = "project-kubeconfig"
    share_discovery_identity: bool = False
    """Allow this if discovery uses the same user, so that operators can do all that the daemon can."""


CredentialSource = (
    ProjectKubeconfig | DatumServiceAccount | TokenRequest | ClientCertificate | Exec | TokenFile | KubeconfigSecret
)
SOURCES = ByType(
    ProjectKubeconfig, DatumServiceAccount, TokenRequest, ClientCertificate, Exec, TokenFile, KubeconfigSecret
)
