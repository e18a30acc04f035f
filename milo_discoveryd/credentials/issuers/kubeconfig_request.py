"""Requests kubeconfigs through a subresource of each cluster's object, such as Gardener's `adminkubeconfig`."""

import time
from collections.abc import Callable
from datetime import datetime

import msgspec
from msgspec.structs import replace

from milo_discoveryd.credentials import kubernetes_api
from milo_discoveryd.credentials.issued_credential import IssuedCredential, validate
from milo_discoveryd.credentials.issuers import received_kubeconfig
from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import Issuer, MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import (
    MIN_TOKEN_TTL_S,
    IssuerContext,
    Label,
    RequestingIssuerSettings,
    RequiredText,
    ServedSource,
)
from milo_discoveryd.credentials.kubernetes_api import TIMEOUT_S, KubernetesApi
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.sources.kind import IssuerTraits
from milo_kube.credential import CredentialError
from milo_kube.http.errors import TransportError

_CREATED = 201


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    kubeconfig: str = ""
    expiration_timestamp: datetime | None = None


class _Response(msgspec.Struct, frozen=True):
    status: _Status = _Status()


_RESPONSE = msgspec.json.Decoder(_Response)


class KubeconfigRequestIssuer:
    type = "kubeconfig-request"
    scope = Scope.CLUSTER
    takes_ttl = True

    def __init__(
        self,
        name: str,
        api: KubernetesApi,
        *,
        origin: str,
        objects: ClusterObjects,
        subresource: str,
        api_version: str,
        kind: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._api = api
        self._origin = origin
        self._objects = objects
        self._subresource = subresource
        self._type = {"apiVersion": api_version, "kind": kind}
        self._clock = clock

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        target, resource = request.cluster.target, self._objects.resource
        path = f"{self._objects.path(target)}/{self._subresource}"
        body = {**self._type, "spec": {"expirationSeconds": max(MIN_TOKEN_TTL_S, int(request.ttl_s))}}
        try:
            answer = await self._api.post(path, msgspec.json.encode(body), timeout_s=TIMEOUT_S)
        except TransportError as error:
            raise kubernetes_api.unanswered(error) from error
        what = f"{resource.plural}/{self._subresource} of {target.name}"
        if answer.status == 404:
            raise BackendError(f"{what} does not exist (404)", of_cluster=True)
        if answer.status != _CREATED:
            rule = f"create {resource.plural}/{self._subresource} in {resource.group or 'the core group'}"
            kubernetes_api.refuse(self._origin, answer, "request a kubeconfig", rule, of_cluster=True)
        status = kubernetes_api.read(self._origin, answer, _RESPONSE, of_cluster=True).status
        await self._objects.confirm(request.cluster)
        try:
            received = received_kubeconfig.read(status.kubeconfig, what)
            expires_at = None if status.expiration_timestamp is None else status.expiration_timestamp.timestamp()
            issued = validate(received.credential, self._clock(), origin=what, expires_at=expires_at)
            return replace(issued, authorities=received.authorities)
        except UnfitError:
            raise
        except CredentialError as error:
            raise BackendError(str(error), of_cluster=True) from None


class KubeconfigRequestSettings(RequestingIssuerSettings, frozen=True, kw_only=True):
    min_ttl_s = MIN_TOKEN_TTL_S

    subresource: Label
    """Subresource of a cluster's object to which the request is posted, such as `adminkubeconfig`."""
    api_version: RequiredText
    """`apiVersion` of the request, such as `authentication.gardener.cloud/v1alpha1`."""
    kind: RequiredText
    """`kind` of the request, such as `AdminKubeconfigRequest`."""

    @property
    def traits(self) -> IssuerTraits:
        return IssuerTraits(self.type, is_of_cluster=True)

    def issuer(self, context: IssuerContext) -> Issuer:
        return self.for_each_source(context, lambda served: self._of_source(context, served))

    def _of_source(self, context: IssuerContext, served: ServedSource) -> KubeconfigRequestIssuer:
        objects = served.open_objects()
        assert objects is not None, "kinds that watch no objects refuse the issuer"
        api, origin = self.api(context, served)
        return KubeconfigRequestIssuer(
            self.name,
            api,
            origin=origin,
            objects=objects,
            subresource=self.subresource,
            api_version=self.api_version,
            kind=self.kind,
        )
