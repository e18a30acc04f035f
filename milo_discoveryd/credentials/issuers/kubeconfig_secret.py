"""Issues the credential that each cluster's Secret contains, in a kubeconfig or in separate fields."""

import base64
import re
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from milo_discoveryd.credentials import kubernetes_api
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, LongLivedError, validate
from milo_discoveryd.credentials.issuers import received_kubeconfig
from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import Issuer, MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import IssuerContext, RequestingIssuerSettings, ServedSource
from milo_discoveryd.credentials.kubernetes_api import TIMEOUT_S, KubernetesApi
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.schema import values
from milo_discoveryd.sources.endpoints import checked_authorities, checked_url
from milo_discoveryd.sources.field_path import DecodedData, FieldPath, Key
from milo_discoveryd.sources.kind import IssuerTraits, ProjectServer
from milo_discoveryd.sources.reading import MalformedError
from milo_kube import kubeconfig
from milo_kube.credential import ClientCertificate, Credential, CredentialError, Secret, token_of
from milo_kube.http.errors import TransportError

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")


class _SecretData(msgspec.Struct, frozen=True):
    data: dict[str, str] | None = None


_SECRET_DATA = msgspec.json.Decoder(_SecretData)


class CredentialPaths(msgspec.Struct, frozen=True):
    """The paths of the credential and the CA in a Secret without a kubeconfig."""

    token: FieldPath | None = None
    certificate: FieldPath | None = None
    private_key: FieldPath | None = None
    ca: FieldPath | None = None

    def read(self, data: Mapping[str, str], what: str) -> received_kubeconfig.ReceivedCredential:
        """Return the credential. Raises BackendError."""
        document = {"stringData": DecodedData(data)}
        try:
            token, certificate, key, authorities = (
                None if path is None else _text(path, document)
                for path in (self.token, self.certificate, self.private_key, self.ca)
            )
            pair = None
            if certificate is not None and key is not None:
                pair = ClientCertificate(chain=_pem(certificate).encode(), key=Secret(_pem(key)))
            return received_kubeconfig.ReceivedCredential(
                Credential(token=None if token is None else token_of(token, f"the token of {what}"), certificate=pair),
                None if authorities is None else checked_authorities(authorities, str(self.ca and self.ca.source)),
            )
        except MalformedError as error:
            raise BackendError(f"{what}: {error}") from None


def _text(path: FieldPath, document: Mapping[str, Any]) -> str:
    found = path.find(document)
    if not isinstance(found, str) or not found:
        raise MalformedError(f"the field {path.source} is not set to a nonempty string")
    return found


def _pem(value: str) -> str:
    """Return the value as PEM, decoded from base64 if necessary."""
    if value.lstrip().startswith("-----BEGIN"):
        return value
    try:
        return base64.b64decode(value, validate=True).decode()
    except ValueError:
        raise MalformedError("a certificate or key is neither PEM nor base64-encoded PEM") from None


class SecretPlace(msgspec.Struct, frozen=True):
    """The templates of the namespace and the name of each cluster's Secret."""

    namespace: str
    name: str
    objects: ClusterObjects | None = None
    """The objects whose names lead to the Secrets; None if no other incarnation of a cluster has one at its place."""

    def resolve(self, target: Target) -> tuple[str, str]:
        """Return the namespace and the name of a cluster's Secret. Raises BackendError."""
        values = {"name": target.local_name, "uid": target.uid}
        if isinstance(target, DeclaredTarget):
            secret_namespace, secret = target.secret
            values |= {"namespace": target.object_namespace, "object": target.object_name}
            values |= {"secret_namespace": secret_namespace, "secret": secret}
        namespace, name = (_filled(template, values) for template in (self.namespace, self.name))
        if not _LABEL.fullmatch(namespace) or not _NAME.fullmatch(name):
            raise BackendError(
                f"{self.namespace}/{self.name} is not a valid Secret name for {target.name}"
                f"{', whose object has not been received yet; retry' * ('{' in namespace + name)}",
                of_cluster=True,
            )
        return namespace, name


def _filled(template: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        template = template.replace(f"{{{placeholder}}}", value)
    return template


class KubeconfigSecretIssuer:
    type = "kubeconfig-secret"
    scope = Scope.CLUSTER
    takes_ttl = False

    def __init__(
        self,
        name: str,
        api: KubernetesApi,
        *,
        origin: str,
        place: SecretPlace,
        reading: str | CredentialPaths,
        states_server: bool = False,
        allow_long_lived: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`reading` is the key of a kubeconfig, or the paths of the credential's fields. With `states_server`, the
        kubeconfig's server is used instead of the cluster's endpoint."""
        self.name = name
        self._api = api
        self._origin = f"the infrastructure cluster ({origin})"
        self.place = place
        self._reading = reading
        self.states_server = states_server
        self._longest_s = inf if allow_long_lived else LONGEST_S
        self._clock = clock

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        namespace, secret = self.place.resolve(request.cluster.target)
        what = f"Secret {namespace}/{secret}"
        try:
            answer = await self._api.get(f"/api/v1/namespaces/{namespace}/secrets/{secret}", timeout_s=TIMEOUT_S)
        except TransportError as error:
            raise kubernetes_api.unanswered(error) from error
        if answer.status != 200:
            rule = f"get secrets, resourceNames [{self.place.name}], in every project's namespace"
            if answer.status == 404:
                raise BackendError(f"{what} does not exist (404)", of_cluster=True, reason="missing")
            # The message omits the Secret's name: failures of an issuer are shown to callers that may not see this
            # project.
            kubernetes_api.refuse(self._origin, answer, "read the kubeconfig Secret of a project", rule)
        data = kubernetes_api.read(self._origin, answer, _SECRET_DATA, of_cluster=True).data or {}
        if self.place.objects is not None:
            await self.place.objects.confirm(request.cluster)
        try:
            received = self._received(data, request.cluster.target, what)
            issued = validate(received.credential, self._clock(), origin=what, longest_s=self._longest_s)
            return replace(issued, authorities=received.authorities, **self._stated_server(received, what))
        except LongLivedError as error:
            raise LongLivedError(f"{error}; set allow_long_lived: true to issue it anyway") from None
        except UnfitError:
            raise
        except CredentialError as error:
            reason = "invalid" if error.reason == "failed" else error.reason
            raise BackendError(str(error), of_cluster=True, reason=reason) from None

    def _received(self, data: Mapping[str, str], target: Target, what: str) -> received_kubeconfig.ReceivedCredential:
        if isinstance(self._reading, CredentialPaths):
            return self._reading.read(data, what)
        key = self._reading.replace("{secret_key}", target.secret_key if isinstance(target, DeclaredTarget) else "")
        if key not in data:
            raise BackendError(
                f"{what} has no key {key!r}: correct the Secret, or the issuer's setting `key`", reason="missing"
            )
        policy = kubeconfig.SELF_CONTAINED if self.states_server else kubeconfig.RECEIVED
        return received_kubeconfig.read(data[key], what, policy)

    def _stated_server(self, received: received_kubeconfig.ReceivedCredential, what: str) -> dict[str, str]:
        if not self.states_server or not isinstance(received, received_kubeconfig.ReceivedKubeconfig):
            return {}
        try:
            server = received.server and checked_url(received.server, ())
            if received.authorities is not None:
                checked_authorities(received.authorities.decode(errors="replace"), "certificate-authority-data")
        except MalformedError as error:
            raise BackendError(f"{what} contains a kubeconfig that is refused: {error}") from None
        return {"server": server, "tls_server_name": received.tls_server_name}


def _secret_path(value: object) -> FieldPath:
    path = FieldPath.parse(str(value))
    if path.steps[0] != Key("stringData") or len(path.steps) == 1:
        raise ValueError("must be a path in the decoded data of a Secret, such as stringData[token]")
    return path


_SecretPath = Annotated[FieldPath | None, _secret_path]


class KubeconfigSecretSettings(RequestingIssuerSettings, frozen=True, kw_only=True):
    namespace_template: Annotated[str, values.secret_namespace_template] = "project-{uid}"
    """Namespace of a cluster's Secret; variables: `{uid}`, `{name}`, and in mode `declarative` `{namespace}`, the
    namespace of the cluster's object, and `{secret_namespace}`, the namespace in the setting `secret` of the kind."""
    secret: Annotated[str, values.secret_name_template] = "kubeconfig"  # noqa: S105 - the name of a Secret
    """Name of the Secret; variables: `{name}`, and in mode `declarative` `{object}`, the name of the cluster's object,
    and `{secret}`, the name in the setting `secret` of the kind."""
    key: Annotated[str, values.secret_key_template] = "kubeconfig"
    """Key of the kubeconfig in the Secret's data. In mode `declarative`, `{secret_key}` is the `key` in the setting
    `secret` of the kind."""
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

    @property
    def traits(self) -> IssuerTraits:
        return IssuerTraits(self.type, (self.secret, self.namespace_template, self.key), is_of_cluster=True)

    def issuer(self, context: IssuerContext) -> Issuer:
        return self.for_each_source(
            context,
            lambda served: self._of_source(context, served),
            distinguishes_sources="{uid}" in self.namespace_template + self.secret,
        )

    def _of_source(self, context: IssuerContext, served: ServedSource) -> KubeconfigSecretIssuer:
        api, origin = self.api(context, served)
        # With a namespace for each cluster, a user that can write a Secret can change the server of that cluster only.
        is_own_namespace = "{uid}" in self.namespace_template or "{name}" in self.namespace_template
        paths = CredentialPaths(self.token, self.certificate, self.private_key, self.ca)
        objects = None if "{uid}" in self.namespace_template else served.open_objects()
        return KubeconfigSecretIssuer(
            self.name,
            api,
            origin=origin,
            place=SecretPlace(self.namespace_template, self.secret, objects),
            reading=paths if self.has_fields else self.key,
            states_server=is_own_namespace and served.project_server is ProjectServer.IDENTITY,
            allow_long_lived=self.allow_long_lived,
        )
