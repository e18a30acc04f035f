"""The objects of one resource in the target API server: lists, and the requests of the records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus

import msgspec

from milo_discovery.api_errors import ApiError, NotServed, Unreachable
from milo_discovery.cluster_api import APPLY_PATCH, ClusterApi
from milo_discovery.credentials import AsyncRenewer
from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.local_kubeconfig import LocalSource, issue
from milo_kube.api_request import JSON
from milo_kube.api_server import Pools
from milo_kube.list_pages import EndlessListError, ListPages, PageSize
from milo_kube.reflect.wire import cut
from milo_publishing.errors import TargetRefused, TargetUnavailable
from milo_publishing.objects import (
    MANAGER,
    UNDECODABLE,
    Document,
    Identity,
    ObservedObject,
    PublishedResource,
    is_finalizing,
)
from milo_publishing.records import Apply, Create, DeleteObject, ReadObject

_TIMEOUT_S = 20.0
_PAGE_SIZE = 500
_MOST_OBJECTS = 100_000
_MOST_HELD = 32 << 20
"""Maximum bytes that a list keeps of what is compared: more than those of 5,000 kubeconfigs. Other objects are read one
by one."""
_MOST_IDENTIFYING = 64 << 20
"""Maximum bytes that identify the objects of a list whose clusters are not engaged: more than those of 100,000 that
publishers have written."""
_OF_ALL = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
"""Statuses below 500 that say nothing about the object: the request is repeated."""
_UNSENT = frozenset({"dns", "connect", "tls"})
"""Causes for which no request was sent. Each other one may be of one object, such as a webhook that does not answer."""


class _PageMetadata(msgspec.Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _RecordPage(msgspec.Struct):
    items: list[msgspec.Raw] | None = None
    metadata: _PageMetadata = msgspec.field(default_factory=_PageMetadata)


_PAGE = msgspec.json.Decoder(_RecordPage)
"""Built at import, since the first use of a type by two threads at once crashes msgspec."""


class PublishedObjects:
    """The objects of one resource in a namespace."""

    def __init__(self, api: ClusterApi, resource: PublishedResource, namespace: str) -> None:
        self._api = api
        self._collection = resource.path(namespace)

    async def list(
        self,
        identity: Identity,
        is_wanted: Callable[[str], bool],
        observed: Callable[[str], ObservedObject | None] = lambda _: None,
    ) -> list[ObservedObject]:
        """Return all objects with the labels of a publisher; of those that are not wanted, by their name, only the
        metadata, and those that are `observed` if they are unchanged."""
        items: list[ObservedObject] = []
        token, size, clock = "", PageSize(_PAGE_SIZE), asyncio.get_running_loop().time
        pages, has_expired, held, identifying = ListPages(clock()), False, 0, 0
        while True:
            query = {"labelSelector": identity.selector(), "limit": str(size.objects)}
            query |= {"continue": token} if token else {}
            try:
                page = await self._call("GET", self._collection, query)
                found, token = self._page(page, is_wanted, observed, held)
            except TargetRefused as error:
                if error.status != HTTPStatus.GONE or not token:
                    raise
                if has_expired:
                    raise TargetUnavailable(str(error), is_answer=True) from error
                # The continue token expired: list again from the start.
                items, token, has_expired, held, identifying = [], "", True, 0, 0
                continue
            except TargetUnavailable as error:
                if not error.is_too_large or not size.shrink():
                    raise
                continue
            items.extend(found)
            held += sum(len(one.content or b"") for one in found)
            identifying += sum(one.memory for one in found if not is_wanted(one.name))
            if identifying > _MOST_IDENTIFYING:
                most = f"{_MOST_IDENTIFYING >> 20} MiB"
                raise TargetUnavailable(f"{self._collection}: the names and annotations of the list take over {most}")
            if not token:
                return items
            size.page_fitted()
            if len(items) >= _MOST_OBJECTS:
                raise TargetUnavailable(f"{self._collection}: the list has more than {_MOST_OBJECTS} objects")
            try:
                pages = pages.next(token, clock())
            except EndlessListError as error:
                raise TargetUnavailable(f"{self._collection}: {error}") from None

    def _page(
        self,
        page: bytes,
        is_wanted: Callable[[str], bool],
        observed: Callable[[str], ObservedObject | None],
        held: int,
    ) -> tuple[Sequence[ObservedObject], str]:
        """Return the objects of a page, and the token of the next one. `held`: how many bytes were kept of others."""
        try:
            try:
                answer = _PAGE.decode(page)
            except RecursionError:  # one object must not affect the others
                answer = _PAGE.decode(cut(page))
        except UNDECODABLE as error:
            is_too_large = isinstance(error, RecursionError)  # for `cut`
            message = f"{self._collection}: the response is not a list: {error}"
            raise TargetUnavailable(message, is_too_large=is_too_large) from None
        found = []
        for item in answer.items or ():
            one = ObservedObject.of(item)
            size, former = len(one.content or b""), observed(one.name)
            if is_wanted(one.name):
                is_kept = held + size <= _MOST_HELD
                held += size if is_kept else 0
                found.append(one if is_kept else one.without_content())
            elif former is not None and former.version == one.version:
                found.append(former)  # so that it is held once
            else:
                found.append(one.without_content())
        return found, answer.metadata.continue_

    async def perform(
        self, request: ReadObject | Create | Apply | DeleteObject, sending: Callable[[], None] = lambda: None
    ) -> ObservedObject | None:
        """Return the object as the request has found or left it; None if it does not exist.

        `sending` is called when a deletion is about to be sent; an error that it raises prevents that.
        """
        try:
            match request:
                case ReadObject(name):
                    return ObservedObject.of(await self._call("GET", f"{self._collection}/{name}"))
                case Create(body):
                    written = await self._call("POST", self._collection, {"fieldManager": MANAGER}, body)
                    return ObservedObject.of(written)
                case Apply():
                    return await self._apply(request)
                case DeleteObject():
                    return await self._delete(request, sending)
        except TargetRefused as error:
            if error.status != HTTPStatus.NOT_FOUND or not isinstance(request, ReadObject | DeleteObject):
                raise
            return None

    async def _apply(self, request: Apply) -> ObservedObject | None:
        """Apply by server-side apply, with force. The metadata comes last: it says that the object is complete."""
        found, version = None, request.resource_version
        for part, subresource in ((request.status, "/status"), (request.body, "")):
            if part is not None:
                metadata = {**part["metadata"], "uid": request.uid, "resourceVersion": version}
                path = f"{self._collection}/{metadata['name']}{subresource}"
                query = {"fieldManager": MANAGER, "force": "true"}
                changed = {**part, "metadata": metadata}
                found = ObservedObject.of(await self._call("PATCH", path, query, changed, content_type=APPLY_PATCH))
                version = found.resource_version
        return found

    async def _delete(self, request: DeleteObject, sending: Callable[[], None]) -> ObservedObject | None:
        preconditions = {"preconditions": {"uid": request.uid, "resourceVersion": request.resource_version}}
        clock, path = asyncio.get_running_loop().time, f"{self._collection}/{request.name}"
        left_s = min(_TIMEOUT_S, request.until - clock())
        try:
            answer = await self._call("DELETE", path, {}, preconditions, timeout_s=left_s, sending=sending)
        except TargetUnavailable as error:
            if error.is_unsent and clock() >= request.until:
                # No outage, which would delay all other objects: their requests may wait longer.
                raise TargetUnavailable(str(error)) from error
            raise
        # A Status, or the object if it waits for its finalizers.
        return ObservedObject.of(answer) if is_finalizing(answer) else None

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        *,
        content_type: str = JSON,
        timeout_s: float = _TIMEOUT_S,
        sending: Callable[[], None] = lambda: None,
    ) -> bytes:
        parameters = tuple((query or {}).items())
        try:
            return await self._api.receive(
                method,
                path,
                parameters,
                body,
                content_type=content_type,
                timeout_s=timeout_s,
                sending=sending,
            )
        except UnusableKubeconfig as error:
            raise TargetUnavailable(str(error), is_unsent=True) from error
        except Unreachable as error:
            is_unsent, is_too_large = error.cause in _UNSENT, error.cause == "too_large"
            raise TargetUnavailable(str(error), is_unsent=is_unsent, is_too_large=is_too_large) from error
        except ApiError as error:
            message = str(error)
            is_of_all = error.status in _OF_ALL or isinstance(error, NotServed)
            if is_of_all or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                seconds = error.retry_after_s
                stated = None if seconds is None else timedelta(seconds=seconds)
                raise TargetUnavailable(message, stated, is_answer=True) from error
            raise TargetRefused(message, error.status) from error


@asynccontextmanager
async def open_api_server(
    source: LocalSource, resource: PublishedResource, namespace: str
) -> AsyncIterator[PublishedObjects]:
    """Yield the API of the objects in a namespace. Credentials are renewed. Raises UnusableKubeconfig."""
    proxy = (await asyncio.to_thread(source.read)).proxy
    credentials = AsyncRenewer("target", lambda: issue("target", source))
    # Idle connections are kept only briefly: a write on a connection that the server has closed fails, and is not
    # retried.
    pools = Pools(user_agent="milo-discovery-publish", idle_s=5.0)
    api = ClusterApi("the target", credentials, pools, proxy=proxy)
    try:
        yield PublishedObjects(api, resource, namespace)
    finally:
        await api.aclose()
        await credentials.close()
