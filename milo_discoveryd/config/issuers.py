"""Settings of credential issuers: a name, a type, and the settings of the type."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import ByType, Group, ListOf, Text, one_of, selector_text, span
from milo_discoveryd.sources.field_path import FieldPath, Key

_RequiredFile = Annotated[Path, values.required_file]
_File = Annotated[Path | None, values.file_path]
_Text = Annotated[str, Text(least=1, most=1024)]
_OptionalText = Annotated[str, Text(most=1024)]
_Words = Annotated[tuple[str, ...], ListOf(Text(least=1, most=1024))]
_Label = Annotated[str, values.cluster_name]
_ObjectName = Annotated[str, values.object_name]


def _secret_path(value: object) -> FieldPath:
    path = FieldPath.parse(str(value))
    if path.steps[0] != Key("stringData") or len(path.steps) == 1:
        raise ValueError("must be a path in the decoded data of a Secret, such as stringData[token]")
    return path


_SecretPath = Annotated[FieldPath | None, _secret_path]

MIN_TOKEN_TTL_S = 600
"""The shortest lifetime of a token that API servers issue, in seconds."""


class _Issuer(Group, frozen=True, kw_only=True):
    name: _Label
    """Name of the credential issuer in authorization rules, metrics and the log."""
    label_selector: Annotated[str, selector_text] = ""
    """Label selector of the clusters that the credential issuer serves. Default: all."""
    sources: Annotated[tuple[str, ...], ListOf(values.cluster_name)] = ()
    """Names of the `sources` whose clusters the credential issuer serves. Required if there are several `sources`, so
    that no credential is sent to an API server that it is not meant for."""
    hand_out: bool = True
    """`false`: only the daemon itself uses the issuer's credentials, and no kubeconfigs are issued with them."""

    is_of_cluster: ClassVar[bool] = False
    """See `IssuerTraits.is_of_cluster`."""
    asks_discovery_server: ClassVar[bool] = False
    """Whether the issuer's requests go to the watched API server of the served source, unless `kubeconfig` names
    another API server."""
    min_ttl_s: ClassVar[int] = 0
    """The shortest lifetime of a credential, in seconds."""


class DatumServiceAccount(_Issuer, frozen=True, kw_only=True):
    type: Annotated[Literal["datum-service-account"], one_of("datum-service-account")] = "datum-service-account"
    key_file: _RequiredFile
    """The JSON key file, reloaded when it changes."""
    ca_file: _File = None
    """CA certificates of the token endpoint; required for a loopback address. Default: the system's CAs."""
    audiences: _Words = ()
    """Accepted audiences: if the token is a JWT, it must have one of them. Default: any."""


class TokenExchange(_Issuer, frozen=True, kw_only=True):
    type: Annotated[Literal["token-exchange"], one_of("token-exchange")] = "token-exchange"
    token_url: Annotated[str, values.https_url]
    """URL of the token endpoint."""
    ca_file: _File = None
    """CA certificates of the token endpoint; required for a loopback address. Default: the system's CAs."""
    subject_token_file: _RequiredFile
    """File with the token that is exchanged, reloaded when it changes: a projected service-account token, a JWT-SVID,
    or any token that another process renews."""
    subject_token_type: _Text = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105 - the name of a type
    """Type URI of the subject token."""
    actor_token_file: _File = None
    """File with the actor token: a token of the party that acts for the subject. Default: none."""
    actor_token_type: _Text = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105 - as above
    """Type URI of the actor token."""
    grant: Annotated[str, one_of("token-exchange", "jwt-bearer")] = "token-exchange"
    """`token-exchange` (RFC 8693), or `jwt-bearer` to send the subject token as an assertion (RFC 7523)."""
    audience: _Words = ()
    """Names of the services that the requested token is for."""
    resource: _Words = ()
    """URIs of the services that the requested token is for."""
    scope: _OptionalText = ""
    """Space-separated scopes of the requested token. Default: the endpoint's."""
    requested_token_type: _OptionalText = ""
    """Type of the requested token. Default: an access token."""
    parameters: Annotated[dict[str, str], values.pairs] = msgspec.field(default_factory=dict)
    """Additional parameters of the request, such as `connector_id` for Dex."""
    client_id: _OptionalText = ""
    """OAuth client ID of the daemon. Default: none is sent."""
    client_secret_file: _File = None
    """File with the client's secret, for client authentication by HTTP Basic."""
    client_key_file: _File = None
    """File with the client's private key (RSA or P-256, PEM), for client authentication by a signed assertion
    (`private_key_jwt`)."""
    client_key_id: _OptionalText = ""
    """ID of the client's key, sent as `kid` of the assertion."""
    audiences: _Words = ()
    """Accepted audiences: if the issued token is a JWT, it must have one of them. Default: any."""

    def __post_init__(self) -> None:
        if self.client_secret_file is not None and self.client_key_file is not None:
            raise ValueError("has both `client_secret_file` and `client_key_file`: remove one of these settings")
        if (self.client_secret_file or self.client_key_file) is not None and not self.client_id:
            raise ValueError("has client authentication without `client_id`: set `client_id`")
        if self.grant == "jwt-bearer" and self.actor_token_file is not None:
            raise ValueError('has `actor_token_file`, which "grant: jwt-bearer" does not send: remove this setting')


class TokenRequest(_Issuer, frozen=True, kw_only=True):
    asks_discovery_server = True
    min_ttl_s = MIN_TOKEN_TTL_S

    type: Annotated[Literal["token-request"], one_of("token-request")] = "token-request"
    kubeconfig: _File = None
    """Kubeconfig of the infrastructure cluster. Default: the `discovery_kubeconfig` of the served source of clusters,
    or else the cluster that the daemon runs in."""
    namespace: _Label
    """Namespace of the service account."""
    service_account: _ObjectName
    """Name of the service account."""
    audiences: _Words = ()
    """Audiences of the requested tokens. Default: the API server's own."""
    bound: bool = True
    """Bind each project's tokens to a Secret, so that they can be revoked. `false` uses one token for all projects."""


class ClientCertificateSettings(_Issuer, frozen=True, kw_only=True):
    type: Annotated[Literal["client-certificate"], one_of("client-certificate")] = "client-certificate"
    ca_certificate: _RequiredFile
    """File with the CA certificate, reloaded when it changes."""
    ca_key: _RequiredFile
    """File with the CA's private key, reloaded when it changes."""
    common_name: Annotated[str, values.subject_template]
    """User name (common name) in the certificate; `{name}` and `{uid}` are the project's."""
    organizations: Annotated[tuple[str, ...], ListOf(values.subject_template)] = ()
    """Groups (organizations) in the certificate; `{name}` and `{uid}` are the project's."""


class ExecSettings(_Issuer, frozen=True, kw_only=True):
    type: Annotated[Literal["exec"], one_of("exec")] = "exec"
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


class TokenFileSettings(_Issuer, frozen=True, kw_only=True):
    type: Annotated[Literal["token-file"], one_of("token-file")] = "token-file"
    path: _RequiredFile
    """Path of the token file, reloaded when it changes."""
    audiences: _Words = ()
    """Accepted audiences: the token must have one of them. Default: any."""


class KubeconfigSecret(_Issuer, frozen=True, kw_only=True):
    is_of_cluster = True
    asks_discovery_server = True

    type: Annotated[Literal["kubeconfig-secret"], one_of("kubeconfig-secret")] = "kubeconfig-secret"
    kubeconfig: _File = None
    """Kubeconfig of the infrastructure cluster. Default: the `discovery_kubeconfig` of the served source of clusters,
    or else the cluster that the daemon runs in."""
    namespace_template: Annotated[str, values.secret_namespace_template] = "project-{uid}"
    """Namespace of a cluster's Secret; variables: `{uid}`, `{name}`, and in mode `declarative` `{namespace}`, the
    namespace of the cluster's object, and `{secret_namespace}`, the namespace of `declarative.secret`."""
    secret: Annotated[str, values.secret_name_template] = "kubeconfig"  # noqa: S105 - the name of a Secret
    """Name of the Secret; variables: `{name}`, and in mode `declarative` `{object}`, the name of the cluster's object,
    and `{secret}`, the name in `declarative.secret`."""
    key: Annotated[str, values.secret_key_template] = "kubeconfig"
    """Key of the kubeconfig in the Secret's data. In mode `declarative`, `{secret_key}` is the `key` of
    `declarative.secret`."""
    token: _SecretPath = None
    """Path of a token in a Secret without a kubeconfig, such as `stringData[token]`, or
    `stringData[config].bearerToken` where the value is JSON. Default: none."""
    certificate: _SecretPath = None
    """Path of a client certificate in a Secret without a kubeconfig, as PEM or base64. Default: none."""
    private_key: _SecretPath = None
    """Path of the client certificate's private key, as PEM or base64. Default: none."""
    ca: _SecretPath = None
    """Path of the CA certificates of the cluster's API server in a Secret without a kubeconfig, as PEM or base64.
    Default: none."""
    allow_long_lived: bool = False
    """`true` to issue certificates and tokens that are valid for more than 24 hours, and tokens without an expiry."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("has only one of `certificate` and `private_key`: set both")
        if self.ca is not None and not self.has_fields:
            raise ValueError(
                "has `ca`, but neither `token` nor `certificate`: set one of them, or remove `ca`, because a "
                "kubeconfig has its own CA"
            )

    @property
    def has_fields(self) -> bool:
        """Whether the Secret contains a credential in separate fields, instead of a kubeconfig."""
        return self.token is not None or self.certificate is not None


class KubeconfigRequest(_Issuer, frozen=True, kw_only=True):
    is_of_cluster = True
    asks_discovery_server = True
    min_ttl_s = MIN_TOKEN_TTL_S

    type: Annotated[Literal["kubeconfig-request"], one_of("kubeconfig-request")] = "kubeconfig-request"
    kubeconfig: _File = None
    """Kubeconfig of the API server with the clusters' objects. Default: the `discovery_kubeconfig` of the served source
    of clusters, or else the cluster that the daemon runs in."""
    subresource: _Label
    """Subresource of a cluster's object to which the request is posted, such as `adminkubeconfig`."""
    api_version: _Text
    """`apiVersion` of the request, such as `authentication.gardener.cloud/v1alpha1`."""
    kind: _Text
    """`kind` of the request, such as `AdminKubeconfigRequest`."""


class KubeconfigFileSettings(_Issuer, frozen=True, kw_only=True):
    is_of_cluster = True

    type: Annotated[Literal["kubeconfig-file"], one_of("kubeconfig-file")] = "kubeconfig-file"
    allow_long_lived: bool = False
    """`true` to issue certificates and tokens that are valid for more than 24 hours, and tokens without an expiry."""


class ProjectKubeconfig(_Issuer, frozen=True, kw_only=True):
    type: Annotated[Literal["project-kubeconfig"], one_of("project-kubeconfig")] = "project-kubeconfig"
    share_discovery_identity: bool = False
    """`true` to issue credentials even if discovery uses the same user: operators then get the daemon's own
    permissions."""


IssuerSettings = (
    ProjectKubeconfig
    | DatumServiceAccount
    | TokenExchange
    | TokenRequest
    | ClientCertificateSettings
    | ExecSettings
    | TokenFileSettings
    | KubeconfigSecret
    | KubeconfigRequest
    | KubeconfigFileSettings
)
ISSUERS = ByType(
    ProjectKubeconfig,
    DatumServiceAccount,
    TokenExchange,
    TokenRequest,
    ClientCertificateSettings,
    ExecSettings,
    TokenFileSettings,
    KubeconfigSecret,
    KubeconfigRequest,
    KubeconfigFileSettings,
)
