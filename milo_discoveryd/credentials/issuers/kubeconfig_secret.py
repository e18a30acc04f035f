"""Issues the credential of the kubeconfig in a Secret of each cluster."""

import re
import time
from collections.abc import Callable, Mapping
from math import inf

import msgspec
from msgspec.structs import replace

from milo_discoveryd.credentials import kubernetes_api
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, LongLivedError, validate
from milo_discoveryd.credentials.issuers import received_kubeconfig
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.kubernetes_api import TIMEOUT_S, KubernetesApi
from milo_discoveryd.daemon_errors import BackendError, CredentialError, UnfitError
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.declared_target import DeclaredTarget
from milo_kube.http.errors import TransportError

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")


class _SecretData(msgspec.Struct, frozen=True):
    data: dict[str, str] | None = None


_SECRET_DATA = msgspec.json.Decoder(_SecretData)


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
        namespace, secret = self._object(request.cluster.target)
        what = f"Secret {namespace}/{secret}"
        try:
            answer = await self._api.get(f"/api/v1/namespaces/{namespace}/secrets/{secret}", timeout_s=TIMEOUT_S)
        except TransportError as error:
            raise BackendError(str(error)) from error
        if answer.status != 200:
            rule = f"get secrets, resourceNames [{self._secret}], in every project's namespace"
            if answer.status == 404:
                raise BackendError(f"{what} does not exist (404)", of_cluster=True)
            # Without the name: a failure of the issuer is shown to callers that may not know this project.
            kubernetes_api.refuse(self._origin, answer, "read the kubeconfig Secret of a project", rule)
        data = kubernetes_api.read(self._origin, answer, _SECRET_DATA).data or {}
        if self._key not in data:
            raise BackendError(
                f"{what} has no key {self._key!r}, which kubeconfigs.issuers sets as `key`", of_cluster=True
            )
        try:
            received = received_kubeconfig.read(data[self._key], what)
            issued = validate(received.credential, self._clock(), origin=what, longest_s=self._longest_s)
            return replace(issued, authorities=received.authorities)
        except LongLivedError as error:
            raise UnfitError(f"{error}; set allow_long_lived: true to issue it anyway") from None
        except UnfitError:
            raise
        except CredentialError as error:
            raise BackendError(str(error), of_cluster=True) from None

    def _object(self, target: Target) -> tuple[str, str]:
        """Return the namespace and the name of a cluster's Secret."""
        known = {"name": target.local_name, "uid": target.uid}
        if isinstance(target, DeclaredTarget):
            secret_namespace, secret = target.secret
            known |= {"namespace": target.object_namespace, "object": target.object_name}
            known |= {"secret_namespace": secret_namespace, "secret": secret}
        namespace, secret = (_filled(each, known) for each in (self._namespace_template, self._secret))
        if not _LABEL.fullmatch(namespace) or not _NAME.fullmatch(secret):
            raise BackendError(
                f"{self._namespace_template}/{self._secret} gives no valid Secret for {target.name}"
                f"{', whose object has not been received yet; retry' * ('{' in namespace + secret)}",
                of_cluster=True,
            )
        return namespace, secret


def _filled(template: str, known: Mapping[str, str]) -> str:
    for name, value in known.items():
        template = template.replace(f"{{{name}}}", value)
    return template
