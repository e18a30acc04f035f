"""Issues tokens of a service account of the infrastructure cluster with the TokenRequest API.

Bound tokens are bound to a Secret that is created for the engagement; after a day, the next token is bound to a new
Secret. At disengagement the cluster's Secrets are deleted, which revokes the tokens. The labels of a Secret identify
the daemon's run and the cluster, so that a daemon never deletes the Secrets of another daemon with the same service
account, of another source that follows the same object, or of an object with the same UID at another API server.
"""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Annotated, NoReturn

import msgspec

from milo_discoveryd.credentials import kubernetes_api
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, validate
from milo_discoveryd.credentials.issuers.issuer import MintRequest, RequestingDaemon, Scope
from milo_discoveryd.credentials.issuers.settings import (
    MIN_TOKEN_TTL_S,
    IssuerContext,
    Label,
    RequestingIssuerSettings,
    Words,
)
from milo_discoveryd.credentials.kubernetes_api import OVERLOADED, TIMEOUT_S, UNSENT, ApiAnswer, KubernetesApi
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster, ClusterIdentity
from milo_discoveryd.schema import values
from milo_kube.credential import Credential, token_of
from milo_kube.http.errors import TransportError
from milo_kube.list_pages import EndlessListError, ListPages
from milo_kube.reflect.wire import error_status

ROTATE_AFTER_S = LONGEST_S
"""After this time, the next token is bound to a new Secret."""
EXPIRED_AFTER_S = ROTATE_AFTER_S + LONGEST_S + 3600.0
"""The age after which no token bound to a Secret can be valid, whichever run created the Secret."""
DELETED_LEEWAY_S = 120.0
"""The time after the deletion of a Secret that waits for its finalizers. API servers accept its tokens for the first
minute; another one is for clocks that differ."""
CLEAN_UP_EVERY_S = 6 * 3600.0
PAGE = 250
ENDED_KEPT = 10_000
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "milo-discoveryd"
RUN_LABEL = "discovery.miloapis.com/run"
CLUSTER_LABEL = "discovery.miloapis.com/cluster-identity"
GROUP_LABEL = "discovery.miloapis.com/shard-group"
CLUSTER_ANNOTATION = "discovery.miloapis.com/project"
_CONCURRENT_DELETIONS = 8


class _TokenStatus(msgspec.Struct, frozen=True, rename="camel"):
    token: str
    expiration_timestamp: Annotated[datetime, msgspec.Meta(tz=True)]


_NOT_SERVED = (
    "the service account does not exist on this server (Milo's own API server serves no TokenRequest: set "
    "the issuer's `kubeconfig` to a kubeconfig of the infrastructure cluster)"
)


class _TokenRequest(msgspec.Struct, frozen=True):
    status: _TokenStatus


_TOKEN_REQUEST = msgspec.json.Decoder(_TokenRequest)


class _SecretMetadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    uid: str
    creation_timestamp: Annotated[datetime, msgspec.Meta(tz=True)]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _SecretObject(msgspec.Struct, frozen=True):
    metadata: _SecretMetadata


_SECRET_OBJECT = msgspec.json.Decoder(_SecretObject)


class _RemainingMetadata(msgspec.Struct, frozen=True, rename="camel"):
    deletion_timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _DeletionAnswer(msgspec.Struct, frozen=True):
    """A Status, or the Secret if it waits for its finalizers."""

    metadata: _RemainingMetadata = _RemainingMetadata()


_DELETION_ANSWER = msgspec.json.Decoder(_DeletionAnswer)


class _ListMetadata(msgspec.Struct, frozen=True):
    continue_: str = msgspec.field(name="continue", default="")


class _SecretList(msgspec.Struct, frozen=True):
    items: list[_SecretObject] | None
    metadata: _ListMetadata = _ListMetadata()


_SECRET_LIST = msgspec.json.Decoder(_SecretList)


class _BoundSecret(msgspec.Struct, frozen=True):
    incarnation: int
    name: str
    uid: str
    rotate_at: float


class RequestedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The service account whose tokens are requested, and the properties of the tokens."""

    namespace: str
    service_account: str
    audiences: tuple[str, ...] = ()
    bound: bool = True
    """Whether the tokens of a cluster are bound to a Secret, which is deleted when the cluster is disengaged."""

    @property
    def subject(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.service_account}"


class TokenRequestIssuer:
    type = "token-request"
    takes_ttl = True

    def __init__(
        self,
        name: str,
        api: KubernetesApi,
        *,
        origin: str,
        tokens: RequestedTokens,
        daemon: RequestingDaemon,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.scope = Scope.CLUSTER if tokens.bound else Scope.IDENTITY
        self._api = api
        self._origin = f"the infrastructure cluster ({origin})"
        self._tokens = tokens
        self._run = _digest(f"{tokens.service_account}/{daemon.run}")
        of_group = f"{tokens.service_account}/{daemon.group}"
        self._group_label = {GROUP_LABEL: _digest(of_group)} if daemon.group else {}
        self._name_prefix = f"milo-discovery-{daemon.member or self._run}"
        self._clock = clock
        self._bound: dict[ClusterIdentity, _BoundSecret] = {}
        self._ended: OrderedDict[ClusterIdentity, int] = OrderedDict()
        """The last revoked incarnation of each cluster: a late mint must not create a Secret for it again."""
        self._locks: dict[ClusterIdentity, tuple[asyncio.Lock, int]] = {}
        self._clean_up_at = float("-inf")
        self._cleaning: asyncio.Task[None] | None = None

    async def mint(self, request: MintRequest) -> IssuedCredential:
        cluster = request.cluster
        if cluster is None:
            return await self._request(request.ttl_s, None)
        identity = cluster.identity
        async with self._exclusive(identity):
            if self._ended.get(identity, 0) >= cluster.incarnation:
                raise BackendError(
                    f"{cluster.target.name} was disengaged before its credential was issued", of_cluster=True
                )
            bound = self._bound.get(identity)
            if bound is not None and bound.incarnation != cluster.incarnation:
                await self._delete_secrets(identity)
                bound = None
            if bound is None or self._clock() >= bound.rotate_at:
                self._bound[identity] = bound = await self._create_secret(cluster)
            try:
                issued = await self._request(request.ttl_s, bound)
            except _SecretGoneError:
                del self._bound[identity]  # the next attempt creates another Secret
                raise
        # Not before: a token that is valid by this machine's clock shows that Secrets are as old as they seem.
        self._begin_clean_up()
        return issued

    async def unbound(self, ttl_s: float) -> IssuedCredential:
        """Return a token that is bound to no Secret."""
        return await self._request(ttl_s, None)

    async def revoke(self, cluster: Cluster) -> None:
        identity = cluster.identity
        async with self._exclusive(identity):
            bound = self._bound.get(identity)
            if bound is not None and bound.incarnation > cluster.incarnation:
                return  # a later incarnation deleted the Secrets of this one
            self._ended[identity] = cluster.incarnation
            self._ended.move_to_end(identity)
            if len(self._ended) > ENDED_KEPT:
                self._ended.popitem(last=False)
            await self._delete_secrets(identity)

    async def revoke_others(self, covers: Callable[[str], bool]) -> Mapping[str, BackendError]:
        """Revoke what other runs in the shard group minted for the clusters whose names `covers` accepts. Return the
        clusters with a Secret whose deletion the API server refused."""
        selector = ",".join(f"{label}={value}" for label, value in self._group_label.items())
        others = (secret for secret in await self._list(selector) if secret.labels.get(RUN_LABEL) != self._run)
        refused: dict[str, BackendError] = {}
        overloaded: list[BackendError] = []
        """Consecutive answers of an overloaded server, which is asked no more after a few."""
        failed: list[BackendError] = []

        async def revoke_next() -> None:
            for secret in others:
                if failed or len(overloaded) >= _CONCURRENT_DELETIONS:
                    failed.extend(overloaded)
                    return
                cluster = secret.annotations.get(CLUSTER_ANNOTATION, "")
                try:
                    await self._revoke_other(secret, partial(covers, cluster))
                    overloaded.clear()
                except _OverloadedError as error:
                    refused[cluster] = error
                    overloaded.append(error)
                except _RefusedDeletionError as error:
                    refused[cluster] = error
                except BackendError as error:
                    failed.append(error)
                except Exception as error:
                    log.exception("token of another member not revoked", issuer=self.name, cluster=cluster)
                    refused[cluster] = BackendError(f"unexpected error ({type(error).__name__})")

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CONCURRENT_DELETIONS):
                tasks.create_task(revoke_next(), name="revoke tokens of other members")
        if failed:
            raise failed[0]
        return refused

    async def _revoke_other(self, secret: _SecretMetadata, is_permitted: Callable[[], bool]) -> None:
        """Delete the Secret of another run, if that is permitted when the request is sent.

        Raises _RefusedDeletionError for what may be of this Secret alone.
        """

        def require_permit() -> None:
            if not is_permitted():
                raise _NotPermittedError

        try:
            require_permit()
            answer = await self._deletion(secret, require_permit)
        except _NotPermittedError:
            await asyncio.sleep(0)  # the decision takes a hash for each member, and most Secrets are of other members
            return
        except BackendError as error:
            if isinstance(error.__cause__, TransportError) and error.__cause__.cause in UNSENT:
                raise
            raise _RefusedDeletionError(str(error)) from error
        try:
            self._require_revoked(answer)
        except BackendError as error:
            if answer.status == 401:
                raise
            kind = _OverloadedError if answer.status in OVERLOADED else _RefusedDeletionError
            raise kind(str(error), retry_after_s=error.retry_after_s) from error

    @asynccontextmanager
    async def _exclusive(self, identity: ClusterIdentity) -> AsyncIterator[None]:
        """Serialize the requests about one cluster; locks without users are dropped."""
        lock, users = self._locks.get(identity, (asyncio.Lock(), 0))
        self._locks[identity] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(identity)
            if users > 1:
                self._locks[identity] = (lock, users - 1)

    async def _request(self, ttl_s: float, bound: _BoundSecret | None) -> IssuedCredential:
        spec: dict[str, object] = {
            "audiences": self._tokens.audiences,
            "expirationSeconds": max(MIN_TOKEN_TTL_S, int(ttl_s)),
        }
        if bound is not None:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Secret", "name": bound.name, "uid": bound.uid}
        answer = await self._post(
            f"{self._in_namespace}/serviceaccounts/{self._tokens.service_account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        what = f"issue a token for the service account {self._tokens.namespace}/{self._tokens.service_account}"
        # API servers answer 404 for a missing service account, too, and 409 for a Secret with another UID.
        if bound is not None and answer.status in (404, 409) and error_status(answer.body).name == bound.name:
            raise _SecretGoneError(
                f"{self._origin} could not {what} ({answer.status}): the Secret no longer exists", of_cluster=True
            )
        if answer.status == 404:
            raise BackendError(f"{self._origin} could not {what} (404): {_NOT_SERVED}")
        if answer.status not in (200, 201):
            account = f"resourceNames [{self._tokens.service_account}], in namespace {self._tokens.namespace}"
            rule = f"create serviceaccounts/token, {account}"
            kubernetes_api.refuse(self._origin, answer, what, rule)
        status = kubernetes_api.read(self._origin, answer, _TOKEN_REQUEST).status
        return validate(
            Credential(token=token_of(status.token, f"the token of {self._origin}")),
            self._clock(),
            origin=self._origin,
            expires_at=status.expiration_timestamp.timestamp(),
            audiences=self._tokens.audiences,
            subject=self._tokens.subject,
        )

    async def _create_secret(self, cluster: Cluster) -> _BoundSecret:
        # The suffix is random, so that neither two daemons nor two runs of one daemon ever use the same Secret.
        identity = _digest(str(cluster.identity))
        name = f"{self._name_prefix}-{identity[:6]}-{secrets.token_hex(4)}"
        now = self._clock()
        answer = await self._post(
            self._secrets,
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "labels": {
                        MANAGED_BY: MANAGER,
                        RUN_LABEL: self._run,
                        CLUSTER_LABEL: identity,
                        **self._group_label,
                    },
                    "annotations": {CLUSTER_ANNOTATION: cluster.target.name},
                },
                "type": "Opaque",
            },
        )
        if answer.status != 201:
            self._refuse(answer, "create the Secret that tokens are bound to")
        created = kubernetes_api.read(self._origin, answer, _SECRET_OBJECT).metadata
        return _BoundSecret(cluster.incarnation, name, created.uid, now + ROTATE_AFTER_S)

    async def _delete_secrets(self, identity: ClusterIdentity) -> None:
        """Delete all Secrets of this run for the cluster, including those whose creation got no response."""
        await self._delete(await self._list(f"{RUN_LABEL}={self._run},{CLUSTER_LABEL}={_digest(str(identity))}"))
        self._bound.pop(identity, None)

    def _begin_clean_up(self) -> None:
        """Periodically delete old Secrets. No mint waits for that: there may be thousands."""
        now = self._clock()
        if now >= self._clean_up_at and (self._cleaning is None or self._cleaning.done()):
            self._clean_up_at = now + CLEAN_UP_EVERY_S
            self._cleaning = asyncio.create_task(self._clean_up(now), name=f"clean up at {self.name}")

    async def _clean_up(self, now: float) -> None:
        """Delete Secrets of all runs, once all tokens bound to them have expired."""
        # Failures are ignored: a later mint begins again. One Secret that cannot be deleted keeps no others.
        with log.contained("old Secrets not deleted", issuer=self.name), suppress(BackendError):
            for metadata in await self._list(f"{MANAGED_BY}={MANAGER},{RUN_LABEL}"):
                if now - metadata.creation_timestamp.timestamp() > EXPIRED_AFTER_S:
                    with suppress(BackendError):
                        await self._delete((metadata,))

    async def _list(self, selector: str) -> list[_SecretMetadata]:
        found: list[_SecretMetadata] = []
        query = [("labelSelector", selector), ("limit", str(PAGE))]
        continued, pages = "", ListPages(self._clock())
        while True:
            more = [("continue", continued)] if continued else []
            answer = await self._call(self._api.get(self._secrets, [*query, *more], timeout_s=TIMEOUT_S))
            if answer.status != 200:
                self._refuse(answer, "list the Secrets that tokens are bound to")
            page = kubernetes_api.read(self._origin, answer, _SECRET_LIST)
            found += [item.metadata for item in page.items or ()]
            continued = page.metadata.continue_
            if not continued:
                return found
            try:
                pages = pages.next(continued, self._clock())
            except EndlessListError as error:
                raise BackendError(f"{self._origin}: the Secrets that tokens are bound to: {error}") from None

    async def _delete(self, found: Iterable[_SecretMetadata]) -> None:
        for metadata in found:
            self._require_deleted(await self._deletion(metadata))

    async def _deletion(self, metadata: _SecretMetadata, sending: Callable[[], None] | None = None) -> ApiAnswer:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": metadata.uid}}
        path = f"{self._secrets}/{metadata.name}"
        return await self._call(self._api.delete(path, msgspec.json.encode(body), timeout_s=TIMEOUT_S, sending=sending))

    def _require_deleted(self, answer: ApiAnswer) -> None:
        if answer.status not in (200, 202, 404, 409):  # 409: another Secret has this name now
            self._refuse(answer, "delete the Secret that tokens are bound to")

    def _require_revoked(self, answer: ApiAnswer) -> None:
        """Raise BackendError if tokens that are bound to the Secret may still be accepted.

        A 404 that does not name the Secret may be a proxy's, and a 409 a webhook's.
        """
        if answer.status == 409 or (answer.status == 404 and not error_status(answer.body).name):
            self._refuse(answer, "delete the Secret that tokens are bound to")
        self._require_deleted(answer)
        deleted_at = kubernetes_api.read(self._origin, answer, _DELETION_ANSWER).metadata.deletion_timestamp
        if deleted_at is not None and self._clock() < deleted_at.timestamp() + DELETED_LEEWAY_S:
            raise BackendError(
                f"{self._origin} keeps the Secret that tokens are bound to until its finalizers are done"
            )

    def _refuse(self, answer: ApiAnswer, what: str) -> NoReturn:
        rule = f"create, list and delete secrets in namespace {self._tokens.namespace}"
        kubernetes_api.refuse(self._origin, answer, what, rule)

    @property
    def _secrets(self) -> str:
        return f"{self._in_namespace}/secrets"

    @property
    def _in_namespace(self) -> str:
        return f"/api/v1/namespaces/{self._tokens.namespace}"

    async def _post(self, path: str, body: object) -> ApiAnswer:
        return await self._call(self._api.post(path, msgspec.json.encode(body), timeout_s=TIMEOUT_S))

    async def _call(self, answering: Awaitable[ApiAnswer]) -> ApiAnswer:
        try:
            return await answering
        except TransportError as error:
            raise BackendError(str(error)) from error


class _NotPermittedError(Exception):
    """The credentials of a cluster may not be revoked now."""


class _RefusedDeletionError(BackendError):
    """A Secret was not deleted, which says nothing about others."""


class _OverloadedError(_RefusedDeletionError):
    """A Secret was not deleted, as perhaps no other would be now."""


class _SecretGoneError(BackendError):
    """The Secret that the requested token should be bound to no longer exists."""


def _digest(text: str) -> str:
    """Return a hash of the text, which is valid as a label value and in an object name."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class TokenRequestSettings(RequestingIssuerSettings, frozen=True, kw_only=True):
    min_ttl_s = MIN_TOKEN_TTL_S

    namespace: Label
    """Namespace of the service account."""
    service_account: Annotated[str, values.object_name]
    """Name of the service account."""
    audiences: Words = ()
    """Audiences of the requested tokens. Default: the API server's own."""
    bound: bool = True
    """Bind each project's tokens to a Secret, so that they can be revoked. `false` uses one token for all projects."""

    @property
    def is_per_cluster(self) -> bool:
        return self.bound

    def issuer(self, context: IssuerContext) -> TokenRequestIssuer:
        api, origin = self.api(context, context.served[0])
        tokens = RequestedTokens(
            namespace=self.namespace,
            service_account=self.service_account,
            audiences=self.audiences,
            bound=self.bound,
        )
        return TokenRequestIssuer(self.name, api, origin=origin, tokens=tokens, daemon=context.requesting_daemon())
