"""Authenticated requests to the API server of one cluster, over connections that clusters share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from milo_discovery.api_errors import ClusterApiError, NotLeading, Unreachable, api_error
from milo_discovery.errors import DiscoveryError, UnusableKubeconfig
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.tracing import SpanTracer, span
from milo_kube import retry_after
from milo_kube.api_request import JSON, Access, Answer, ApiRequest
from milo_kube.api_server import ApiServer, Pools, Query
from milo_kube.costly_steps import SMALL_PAGE, page_steps
from milo_kube.credential import ClientCertificate, Credential, Secret
from milo_kube.http.errors import TransportError
from milo_kube.list_pages import EndlessListError, ListPages, PageSize
from milo_kube.reflect.wire import TOO_MANY_VALUES, error_status, has_too_many_values

__all__ = ["ClusterApi"]

USER_AGENT = "milo-discovery-client"
IDLE_S = 60.0
"""How long an idle connection is kept open."""
REQUEST_TIMEOUT_S = 30.0
RESPONSE_LIMIT = 8 << 20
"""Maximum bytes of a response other than a page of a list: more than any API server stores in an object."""
_PAGE = 100
"""So few that all of them have not too many values, which are decoded in one step."""
_MOST_OBJECTS = 100_000
_MOST_BYTES = 64 << 20
"""Maximum bytes of the objects of a list: its API server chooses how large they are."""
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class Credentials(Protocol):
    """The credentials of one cluster."""

    async def access(self) -> KubeconfigAccess:
        """Return the credential to use now. Raises DiscoveryError."""

    async def access_after_401(self, refused: str | None) -> KubeconfigAccess:
        """Return the credential to use after a 401 for the token `refused`: the same one if there is no newer one."""

    def require_present(self, server: str) -> None:
        """Raise DiscoveryError if the cluster no longer has this server: it may move while a request waits."""


class ClusterApi(ApiServer):
    """The API of one cluster. Close it to release its connections."""

    __slots__ = ("_credentials", "_may_write", "_tracer", "name")

    def __init__(
        self,
        name: str,
        credentials: Credentials,
        pools: Pools,
        *,
        proxy: str | None = None,
        tracer: SpanTracer | None = None,
        may_write: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`proxy`: the URL of a proxy; by default, the environment sets it. `tracer`: each request is a span.

        `may_write` is called with the URL of the server when a request that can change an object is about to be sent,
        since the Lease may be lost, or the cluster move, while it waits for a credential or a connection.
        """
        super().__init__(_ClusterAccess(name, credentials), pools, proxy=proxy, response_limit=RESPONSE_LIMIT)
        self.name = name
        self._credentials = credentials
        self._tracer = tracer
        self._may_write = may_write

    async def send(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: object = None,
        *,
        content_type: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
        arrived: Callable[[int], None] = lambda _: None,
        sending: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Send a request as `receive` does, and return the decoded response."""
        content = await self.receive(
            method,
            path,
            query,
            body,
            content_type=content_type,
            timeout_s=timeout_s,
            arrived=arrived,
            sending=sending,
        )
        if has_too_many_values(content):
            raise Unreachable("too_large", f"{method} {path}: the response has {TOO_MANY_VALUES}")
        try:
            if len(content) < SMALL_PAGE:
                return _MAPPING.decode(content)
            return await page_steps(len(content)).result(lambda: _MAPPING.decode(content))
        except _UNDECODABLE as error:
            raise Unreachable("closed", f"{method} {path}: the response of {self.name} is not a JSON object") from error

    async def receive(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: object = None,
        *,
        content_type: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
        arrived: Callable[[int], None] = lambda _: None,
        sending: Callable[[], None] | None = None,
    ) -> bytes:
        """Send a request and return the response. `arrived` is called with the sizes of its pieces, and `sending` when
        the request is about to be sent.

        Raises ApiError, Unreachable, DiscoveryError, or NotLeading if `may_write` returns false.
        """
        encoded = None if body is None else msgspec.json.encode(body)
        attributes = {"http.request.method": method, "url.path": path, "milo.cluster": self.name}
        with span(self._tracer, method, attributes):
            try:
                answer = await self.request(
                    method,
                    path,
                    query,
                    encoded,
                    content_type=content_type,
                    timeout_s=timeout_s,
                    arrived=arrived,
                    sending=sending,
                )
            except TransportError as error:
                if isinstance(error.__cause__, DiscoveryError):
                    raise error.__cause__ from None
                if error.cause == "credential":
                    raise UnusableKubeconfig(str(error)) from error
                raise Unreachable(error.cause, f"{method} {path}: {error}") from error
            if answer.status >= 300:
                raise _refused(answer, f"{method} {path}")
            return answer.body

    def _sending(self, request: ApiRequest, server: str) -> None:
        if request.method != "GET" and not self._may_write(server):
            lost = "this replica no longer holds the Lease or owns the cluster, or the cluster has moved"
            raise NotLeading(f"{request.method} {request.path} was not sent: {lost}")
        try:
            self._credentials.require_present(server)
        except DiscoveryError as error:
            raise TransportError("credential", str(error)) from error
        super()._sending(request, server)

    async def read_list(self, path: str, query: Query = ()) -> list[dict[str, Any]]:
        """Read a list in pages. Raises as `send` does, and ClusterApiError for a list that is too long."""
        found: list[dict[str, Any]] = []
        more: list[tuple[str, str]] = []
        size, clock = PageSize(_PAGE), asyncio.get_running_loop().time
        pages, read = ListPages(clock()), 0
        while True:
            pieces: list[int] = []
            try:
                page = await self.send(
                    "GET", path, [*query, ("limit", str(size.objects)), *more], arrived=pieces.append
                )
            except Unreachable as error:
                if error.cause != "too_large" or not size.shrink():
                    raise
                continue
            meta = {"apiVersion": page.get("apiVersion"), "kind": str(page.get("kind", "")).removesuffix("List")}
            found.extend({**meta, **item} for item in page.get("items") or ())
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            size.page_fitted()
            if len(found) >= _MOST_OBJECTS:
                raise ClusterApiError(f"GET {path}: {self.name} has more than {_MOST_OBJECTS} of these objects")
            read += sum(pieces)
            if read >= _MOST_BYTES:
                raise ClusterApiError(f"GET {path}: {self.name} has more than {_MOST_BYTES} bytes of these objects")
            try:
                pages = pages.next(token, clock())
            except EndlessListError as error:
                raise ClusterApiError(f"GET {path}: {self.name}: {error}") from None
            more = [("continue", token)]


class _ClusterAccess:
    """The AccessProvider of a cluster: server, CA and current credential come from its kubeconfig."""

    __slots__ = ("_access", "_credentials", "_name", "_read")

    def __init__(self, name: str, credentials: Credentials) -> None:
        self._name = name
        self._credentials = credentials
        self._read: KubeconfigAccess | None = None
        self._access: Access | None = None
        """The Access that was built from `_read`."""

    async def access(self, *, within_s: float, refused: Credential | None = None) -> Access:
        try:
            async with asyncio.timeout(within_s):
                if refused is None:
                    found = await self._credentials.access()
                else:
                    found = await self._credentials.access_after_401(refused.token.reveal() if refused.token else None)
        except DiscoveryError as error:
            raise TransportError("credential", f"no credential for {self._name}: {error}") from error
        except TimeoutError:
            raise TransportError(
                "credential", f"no credential for {self._name}: the daemon has issued none within {within_s:.3g} s"
            ) from None
        if self._access is None or found is not self._read:
            self._read, self._access = found, _access(found)
        return self._access


@lru_cache(maxsize=16)
def _shared(authorities: str) -> bytes:
    """Return a shared instance for equal CA bundles, which clusters of a fleet have in common, to save memory."""
    return authorities.encode()


def _access(found: KubeconfigAccess) -> Access:
    certificate = None
    if found.certificate is not None:
        certificate = ClientCertificate(chain=found.certificate.encode(), key=Secret(found.key or ""))
    return Access(
        server=found.server,
        authorities=None if found.authorities is None else _shared(found.authorities),
        tls_server_name=found.tls_server_name,
        credential=Credential(token=None if found.token is None else Secret(found.token), certificate=certificate),
        act_as=found.act_as,
    )


class _Cause(msgspec.Struct):
    reason: str = ""


class _StatusDetails(msgspec.Struct):
    causes: list[_Cause] | None = None


class _StatusRefusal(msgspec.Struct):
    details: _StatusDetails | None = None


_MAPPING = msgspec.json.Decoder(dict[str, Any])
_REFUSAL = msgspec.json.Decoder(_StatusRefusal)
# msgspec raises UnicodeError for invalid text and RecursionError for deep nesting.
_UNDECODABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


def _refused(answer: Answer, request: str) -> Exception:
    status = error_status(answer.body, answer.status)
    try:
        details = _REFUSAL.decode(answer.body).details
        causes = tuple(cause.reason for cause in (details and details.causes) or ())
    except _UNDECODABLE:
        causes = ()
    message = f"{answer.status} {status.message.removeprefix(f'{answer.status} ')}"
    if answer.status == 404 and not status.name:
        message += "; check the group, version and plural of the kind, and whether it has that subresource"
    return api_error(
        answer.status,
        status.reason,
        f"{request}: {message}",
        about=status.name,
        causes=causes,
        retry_after_s=retry_after.stated(answer.headers, datetime.now(UTC)),
    )
