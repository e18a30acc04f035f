"""Tokens for a service account of the infrastructure cluster, by TokenRequestSource.

Where tokens are bound, each project has a Secret beside the service account, and its tokens are good for as long as
that Secret is there: it is deleted at disengage. It is named after the project's UID, so that a restarted daemon, or a
second one, finds it instead of leaving it behind.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

import msgspec

from milo_discoveryd.credentials import kubernetes_api
from milo_discoveryd.credentials.credential import Credential, token_of
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, validate
from milo_discoveryd.credentials.kubernetes_api import TIMEOUT_S, Answer, KubernetesApi
from milo_discoveryd.credentials.sources.source import MintRequest, Scope
from milo_discoveryd.daemon_errors import BackendError, TransportError
from milo_discoveryd.model.cluster import Target

LEAST_S = 600
"""API servers refuse to give less."""
ENDED_KEPT = 10_000
UID_LABEL = "discovery.miloapis.com/project-uid"
MANAGED_BY = "app.kubernetes.io/managed-by"


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    token: str
    expiration_timestamp: Annotated[datetime, msgspec.Meta(tz=True)]


class _TokenRequest(msgspec.Struct, frozen=True):
    status: _Status


class _Metadata(msgspec.Struct, frozen=True):
    uid: str


class _Object(msgspec.Struct, frozen=True):
    metadata: _Metadata


class _Bound(msgspec.Struct, frozen=True):
    incarnation: int
    secret_uid: str


class TokenRequestSource:
    type = "token-request"
    takes_ttl = True

    def __init__(
        self,
        name: str,
        api: KubernetesApi,
        *,
        origin: str,
        namespace: str,
        service_account: str,
        audiences: Sequence[str] = (),
        bound: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.scope = Scope.CLUSTER if bound else Scope.IDENTITY
        self._api = api
        self._origin = f"the infrastructure cluster ({origin})"
        self._namespace = namespace
        self._account = service_account
        self._audiences = tuple(audiences)
        self._clock = clock
        self._bound: dict[str, _Bound] = {}
        self._ended: OrderedDict[str, int] = OrderedDict()
        """The last incarnation of each UID that was revoked: a late mint must not bring its Secret back."""
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def mint(self, request: MintRequest) -> IssuedCredential:
        if request.target is None:
            return await self._request(request.ttl_s, None)
        uid = request.target.uid
        async with self._alone(uid):
            if self._ended.get(uid, 0) >= request.incarnation:
                raise BackendError(f"{request.target.name} was disengaged meanwhile")
            bound = self._bound.get(uid)
            if bound is not None and bound.incarnation != request.incarnation:
                await self._delete_secret(uid)  # what another incarnation had ends here
                bound = None
            if bound is None:
                bound = _Bound(request.incarnation, await self._secret(request.target))
                self._bound[uid] = bound
            try:
                return await self._request(request.ttl_s, (self._secret_name(uid), bound.secret_uid))
            except _GoneError:
                del self._bound[uid]  # somebody has deleted the Secret: the next attempt makes it again
                raise

    async def revoke(self, target: Target, incarnation: int) -> None:
        async with self._alone(target.uid):
            bound = self._bound.get(target.uid)
            if bound is not None and bound.incarnation > incarnation:
                return  # it is another's by now, and was made anew for it
            self._ended[target.uid] = incarnation
            self._ended.move_to_end(target.uid)
            if len(self._ended) > ENDED_KEPT:
                self._ended.popitem(last=False)
            await self._delete_secret(target.uid)

    @asynccontextmanager
    async def _alone(self, uid: str) -> AsyncIterator[None]:
        """One at a time for each project; nothing is kept of those that nobody works on."""
        lock, users = self._locks.get(uid, (asyncio.Lock(), 0))
        self._locks[uid] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(uid)
            if users > 1:
                self._locks[uid] = (lock, users - 1)

    async def _request(self, ttl_s: float, secret: tuple[str, str] | None) -> IssuedCredential:
        spec: dict[str, object] = {"audiences": self._audiences, "expirationSeconds": max(LEAST_S, int(ttl_s))}
        if secret is not None:
            name, uid = secret
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Secret", "name": name, "uid": uid}
        answer = await self._post(
            f"{self._in_namespace}/serviceaccounts/{self._account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        what = f"issue a token for the service account {self._namespace}/{self._account}"
        if secret is not None and answer.status in (404, 409):
            raise _GoneError(f"{self._origin} has no such Secret or service account any more to {what}")
        if answer.status not in (200, 201):
            rule = f"create serviceaccounts/token, resourceNames [{self._account}], in namespace {self._namespace}"
            kubernetes_api.refuse(self._origin, answer, what, rule)
        status = kubernetes_api.read(self._origin, answer, _TokenRequest).status
        return validate(
            Credential(token=token_of(status.token, f"the token of {self._origin}")),
            self._clock(),
            origin=self._origin,
            expires_at=status.expiration_timestamp.timestamp(),
            audiences=self._audiences,
            subject=f"system:serviceaccount:{self._namespace}:{self._account}",
            longest_s=LONGEST_S,
        )

    async def _secret(self, target: Target) -> str:
        """The UID of the project's Secret, which is made if there is none."""
        name = self._secret_name(target.uid)
        labels = {MANAGED_BY: "milo-discoveryd", UID_LABEL: hashlib.sha256(target.uid.encode()).hexdigest()[:32]}
        annotations = {"discovery.miloapis.com/project": target.name}
        answer = await self._post(
            f"{self._in_namespace}/secrets",
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "labels": labels, "annotations": annotations},
                "type": "Opaque",
            },
        )
        if answer.status == 409:
            answer = await self._call(self._api.get(f"{self._in_namespace}/secrets/{name}", timeout_s=TIMEOUT_S))
        if answer.status not in (200, 201):
            rule = f"create, get and delete secrets in namespace {self._namespace}"
            kubernetes_api.refuse(self._origin, answer, "make the Secret that tokens are bound to", rule)
        return kubernetes_api.read(self._origin, answer, _Object).metadata.uid

    async def _delete_secret(self, uid: str) -> None:
        path = f"{self._in_namespace}/secrets/{self._secret_name(uid)}"
        answer = await self._call(self._api.delete(path, timeout_s=TIMEOUT_S))
        if answer.status not in (200, 202, 404):
            rule = f"delete secrets in namespace {self._namespace}"
            kubernetes_api.refuse(self._origin, answer, "delete the Secret that tokens are bound to", rule)
        self._bound.pop(uid, None)

    def _secret_name(self, uid: str) -> str:
        # Hashed: a UID comes from an object upstream, and this becomes a part of a URL.
        told = hashlib.sha256(f"{self._account}/{uid}".encode()).hexdigest()[:32]
        return f"milo-discovery-{told}"

    @property
    def _in_namespace(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}"

    async def _post(self, path: str, body: object) -> Answer:
        return await self._call(self._api.post(path, msgspec.json.encode(body), timeout_s=TIMEOUT_S))

    async def _call(self, answering: Awaitable[Answer]) -> Answer:
        try:
            return await answering
        except TransportError as error:
            raise BackendError(str(error)) from error


class _GoneError(BackendError):
    """What the token was to be bound to is not there."""
