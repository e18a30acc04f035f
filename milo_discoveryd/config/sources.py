"""The settings of credential sources: a name, a type, and what that type needs."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from milo_discoveryd.config import values
from milo_discoveryd.config.fields import Group, selector_text, span

_RequiredFile = Annotated[Path, BeforeValidator(values.required_file)]
_File = Annotated[Path | None, BeforeValidator(values.file_path)]
_Text = Annotated[str, Field(min_length=1, max_length=1024)]
_Words = Annotated[tuple[_Text, ...], BeforeValidator(values.words)]
_Label = Annotated[str, BeforeValidator(values.cluster_name)]
_ObjectName = Annotated[str, BeforeValidator(values.object_name)]


class _Source(Group):
    name: _Label
    label_selector: Annotated[str, BeforeValidator(selector_text)] = ""
    """Which clusters it is for; of several sources, the first that covers a cluster serves it."""
    hand_out: bool = True
    """False for one that only the daemon itself authenticates with: see source.credentials."""


class DatumServiceAccount(_Source):
    type: Literal["datum-service-account"]
    key_file: _RequiredFile
    ca_file: _File = None
    """The CA of the token endpoint; none is the system's. A token endpoint on this machine needs one."""
    audiences: _Words = ()
    """Where set, a token that is a JWT must be for one of them."""


class TokenRequest(_Source):
    type: Literal["token-request"]
    kubeconfig: _File = None
    """Of the infrastructure cluster; none is that of discovery."""
    namespace: _Label
    service_account: _ObjectName
    audiences: _Words = ()
    bound: bool = True
    """To a Secret for each project, which is deleted at disengage; else one token is for all projects."""


class ClientCertificate(_Source):
    type: Literal["client-certificate"]
    ca_certificate: _RequiredFile
    ca_key: _RequiredFile
    common_name: Annotated[str, BeforeValidator(values.subject_template)]
    organizations: Annotated[
        tuple[Annotated[str, BeforeValidator(values.subject_template)], ...], BeforeValidator(values.words)
    ] = ()


class Exec(_Source):
    type: Literal["exec"]
    command: Annotated[str, BeforeValidator(values.absolute_command)]
    args: Annotated[tuple[str, ...], BeforeValidator(values.words)] = ()
    env: Annotated[dict[str, str], BeforeValidator(values.pairs)] = Field(default_factory=dict)
    api_version: Literal["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"] = (
        "client.authentication.k8s.io/v1"
    )
    per_cluster: bool = False
    timeout: Annotated[timedelta, span("1s", "5m")] = timedelta(seconds=25)


class TokenFile(_Source):
    type: Literal["token-file"]
    path: _RequiredFile
    audiences: _Words = ()


class KubeconfigSecret(_Source):
    type: Literal["kubeconfig-secret"]
    kubeconfig: _File = None
    """Of the infrastructure cluster; none is that of discovery."""
    namespace_template: Annotated[str, BeforeValidator(values.namespace_template)] = "project-{uid}"
    secret: _ObjectName = "kubeconfig"  # noqa: S105 - the name of one
    key: _Text = "kubeconfig"
    allow_long_lived: bool = False


CredentialSource = Annotated[
    DatumServiceAccount | TokenRequest | ClientCertificate | Exec | TokenFile | KubeconfigSecret,
    Field(discriminator="type"),
]
