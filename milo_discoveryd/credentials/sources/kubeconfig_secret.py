"""Hands out the credential of the kubeconfig in a Secret of each project's namespace.

Only inline data is accepted: a file path or a command in that kubeconfig would be read or run by the daemon.
"""

import base64
import binascii
import re
import time
from collections.abc import Callable
from math import inf

import msgspec

from milo_discoveryd.credentials import kubernetes_api
from milo_discoveryd.credentials.authentication import kubeconfig_schema
from milo_discoveryd.credentials.authentication.kubeconfig_schema import User
from milo_discoveryd.credentials.credential import ClientCertificate, Credential, token_of
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, validate
from milo_discoveryd.credentials.kubernetes_api import TIMEOUT_S, KubernetesApi
from milo_discoveryd.credentials.secret import Secret
from milo_discoveryd.credentials.sources.source import MintRequest, Scope
from milo_discoveryd.daemon_errors import BackendError, ConfigError, CredentialError, UnfitError
from milo_discoveryd.model.cluster import Target
from milo_kube.http.errors import TransportError

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


class _SecretData(msgspec.Struct, frozen=True):
    data: dict[str, str] | None = None


class KubeconfigSecretSource:
    type = "kubeconfig-secret"
    scope = Scope.CLUSTER
    takes_ttl = False

    def __init__(
        self,
        name: str,
        api: KubernetesApi,
        *,
        origin: str,
        namespace_template: str,
        secret: str,
        key: str,
        allow_long_lived: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._api = api
        self._origin = f"the infrastructure cluster ({origin})"
        self._namespace_template = namespace_template
        self._secret = secret
        self._key = key
        self._longest_s = inf if allow_long_lived else LONGEST_S
        self._clock = clock

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        namespace = self._namespace(request.cluster.target)
        what = f"Secret {namespace}/{self._secret}"
        try:
            answer = await self._api.get(f"/api/v1/namespaces/{namespace}/secrets/{self._secret}", timeout_s=TIMEOUT_S)
        except TransportError as error:
            raise BackendError(str(error)) from error
        if answer.status != 200:
            rule = f"get secrets, resourceNames [{self._secret}], in every project's namespace"
            if answer.status == 404:
                raise BackendError(f"{what} does not exist (404)", of_cluster=True)
            # Without the name: a failure of the source is shown to callers that may not know this project.
            kubernetes_api.refuse(self._origin, answer, "read the kubeconfig Secret of a project", rule)
        data = kubernetes_api.read(self._origin, answer, _SecretData).data or {}
        if self._key not in data:
            raise BackendError(
                f"{what} has no key {self._key!r}, which kubeconfigs.sources sets as `key`", of_cluster=True
            )
        try:
            credential = _credential(data[self._key], what)
            return validate(credential, self._clock(), origin=what, longest_s=self._longest_s)
        except UnfitError as error:
            raise UnfitError(f"{error}; set allow_long_lived to hand it out nevertheless") from None
        except CredentialError as error:
            raise BackendError(str(error), of_cluster=True) from None

    def _namespace(self, target: Target) -> str:
        name = self._namespace_template.replace("{name}", target.name).replace("{uid}", target.uid)
        if not _LABEL.fullmatch(name):
            raise BackendError(
                f"{self._namespace_template} gives no valid namespace name for {target.name}", of_cluster=True
            )
        return name


def _credential(encoded: str, what: str) -> Credential:
    try:
        content = base64.b64decode(encoded, validate=True)
        config = kubeconfig_schema.read(content, what)
    except (binascii.Error, ConfigError):
        raise BackendError(f"{what} does not contain a kubeconfig") from None
    context = next((each.context for each in config.contexts or () if each.name == config.current_context), None)
    user = next((each.user for each in config.users or () if context and each.name == context.user), None)
    if user is None:
        raise BackendError(f"{what} contains a kubeconfig whose current context has no user")
    if user.exec or user.token_file or user.client_certificate or user.client_key or user.auth_provider:
        raise BackendError(f"{what} contains a kubeconfig that names a command or a file: only inline data is accepted")
    return Credential(
        token=token_of(user.token, f"the token of {what}") if user.token else None, certificate=_pair(user, what)
    )


def _pair(user: User, what: str) -> ClientCertificate | None:
    if user.token or not (user.client_certificate_data or user.client_key_data):
        return None
    try:
        chain = base64.b64decode(user.client_certificate_data, validate=True)
        key = base64.b64decode(user.client_key_data, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise BackendError(f"{what} contains a certificate or key that is not valid base64") from None
    if not chain or not key:
        raise BackendError(f"{what} contains a certificate without a key, or a key without a certificate")
    return ClientCertificate(chain=chain, key=Secret(key))
