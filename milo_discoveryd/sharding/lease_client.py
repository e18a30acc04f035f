"""Reads and writes of a group's Leases over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from msgspec.structs import replace

from milo_discoveryd.credentials.kubernetes_api import ApiAnswer, KubernetesApi, refuse
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.sharding import lease_objects
from milo_discoveryd.sharding.lease_objects import LeaseFormatError, LeaseList, LeaseNames
from milo_discoveryd.sharding.leases import Delete, Evict, GroupState, Request, WriteLease, WriteView
from milo_kube.http.errors import TransportError
from milo_kube.list_pages import smaller

TIMEOUT_S = 4.0
"""Timeout of a read or write, short enough to read the Leases and repeat a failed renewal before the fence."""
PAGE = 250
"""The number of Leases that one response has, as far as they fit: a read of most groups is one request."""
PAGE_BYTES = 2 << 20
"""The largest response that is read. An object in etcd has at most 1.5 MiB, and 64 KiB of pending clusters are about
110 KiB of a Lease."""
MAX_PAGES = 250
REQUEST_TIMEOUT_S = TIMEOUT_S - 0.1
"""Timeout of one request: shorter, so that its own problem is reported, such as a credential that it waits for."""
REQUIRED_RULE = "list, create, update and delete on leases.coordination.k8s.io in this namespace"


class LeaseApi(KubernetesApi, Protocol):
    async def get(
        self, path: str, query: Sequence[tuple[str, str]] = (), *, timeout_s: float, limit: int | None = None
    ) -> ApiAnswer: ...

    async def put(self, path: str, body: bytes, *, timeout_s: float) -> ApiAnswer: ...


class ConflictError(Exception):
    """The Lease was modified, created or deleted since it was read."""


class LeaseClient:
    def __init__(self, api: LeaseApi, names: LeaseNames, *, origin: str, wall: Callable[[], float] = time.time) -> None:
        self._api = api
        self._names = names
        self._origin = origin
        self._wall = wall
        self._page_size = PAGE

    @property
    def _whose(self) -> str:
        return f"shard group {self._names.group} in namespace {self._names.namespace}"

    async def read(self) -> GroupState:
        """List the Leases consistently, not from a cache of the API server. Raises BackendError."""
        leases = LeaseList(self._names)
        async with self._failing(f"list the Leases of {self._whose}"):
            size, began = 0, self._page_size
            try:
                size = await self._read_pages(leases)
            finally:
                # Leases that are too large for one page remain so, in most cases: keep the smaller pages, also if no
                # time was left after their size was found. But these may be too many, long after the Leases are
                # smaller again.
                if size <= PAGE_BYTES and (size or self._page_size == began):
                    self._page_size = PAGE
        return leases.group

    async def _read_pages(self, leases: LeaseList) -> int:
        """Return the size of all pages."""
        size, continued = 0, ""
        for _ in range(MAX_PAGES):
            answer = await self._page(continued)
            size += len(answer.body)
            continued = leases.add(answer.body)
            if not continued:
                return size
        self._page_size = PAGE
        raise BackendError(f"{self._origin} listed the Leases of {self._whose} in more than {MAX_PAGES} pages")

    async def _page(self, continued: str) -> ApiAnswer:
        names = self._names
        while True:
            query = [("labelSelector", names.selector), ("limit", str(self._page_size))]
            query += [("continue", continued)] if continued else []
            try:
                answer = await self._api.get(names.collection, query, timeout_s=REQUEST_TIMEOUT_S, limit=PAGE_BYTES)
            except TransportError as error:
                if error.cause != "too_large" or self._page_size == 1:
                    raise
                self._page_size = smaller(self._page_size)
                continue
            if answer.status != 200:
                refuse(self._origin, answer, f"list Leases in namespace {names.namespace}", REQUIRED_RULE)
            return answer

    async def write(self, request: Request) -> str:
        """Write or delete a Lease. Return its new version; empty after a deletion.

        Raises ConflictError and BackendError.
        """
        what = f"write a Lease in namespace {self._names.namespace}"
        async with self._failing(what):
            answer = await self._written(request)
            if answer.status in (404, 409):
                raise ConflictError
            if answer.status not in (200, 201):
                refuse(self._origin, answer, what, REQUIRED_RULE)
            return "" if isinstance(request, Delete) else lease_objects.decode_version(answer.body)

    @asynccontextmanager
    async def _failing(self, what: str) -> AsyncIterator[None]:
        """Raise BackendError for failures within the context, which takes `TIMEOUT_S` at most, with the time in which a
        request waits for its credential."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield
        except TimeoutError:
            raise BackendError(f"{self._origin} did not answer the request to {what} in {TIMEOUT_S:g} s") from None
        except (TransportError, LeaseFormatError) as error:
            raise BackendError(str(error)) from error

    async def _written(self, request: Request) -> ApiAnswer:
        names = self._names
        match request:
            case Delete(lease):
                body = lease_objects.encode_precondition(lease.version)
                return await self._api.delete(names.path(names.member(lease.member)), body, timeout_s=REQUEST_TIMEOUT_S)
            case WriteLease(lease) | Evict(lease):
                return await self._put_or_post(
                    names.member(lease.member),
                    lease.version,
                    lambda over: lease_objects.encode_member(replace(lease, version=over), names, self._wall()),
                )
            case WriteView(view, version):
                return await self._put_or_post(
                    names.view, version, lambda over: lease_objects.encode_view(view, over, names, self._wall())
                )
            case _:
                raise AssertionError(f"not a write: {request}")

    async def _put_or_post(self, name: str, version: str, encode: Callable[[str], bytes]) -> ApiAnswer:
        """Replace this version of a Lease, or create the Lease. `encode` returns it, as a write over a version."""
        body = encode(version)
        if version:
            return await self._api.put(self._names.path(name), body, timeout_s=REQUEST_TIMEOUT_S)
        answer = await self._api.post(self._names.collection, body, timeout_s=REQUEST_TIMEOUT_S)
        if answer.status == 404:
            raise BackendError(
                f"{self._origin} cannot create a Lease in namespace {self._names.namespace} (404): the namespace does "
                "not exist; create it, or set sharding.namespace to the namespace of the pods"
            )
        if answer.status == 409 and (unlabeled := await self._unlabeled(name)):
            return await self._put_or_post(name, unlabeled, encode)
        return answer

    async def _unlabeled(self, name: str) -> str:
        """Return the version of the group's own Lease of this name, if its label was removed; empty if it has the
        label, or is gone. Raises BackendError if it does not belong to the group."""
        query = (("fieldSelector", f"metadata.name={name}"),)
        answer = await self._api.get(self._names.collection, query, timeout_s=REQUEST_TIMEOUT_S)
        found = lease_objects.decode_unlisted(answer.body, self._names) if answer.status == 200 else None
        if found is None or found.group == self._names.group:
            return ""
        if found.is_replaceable:
            return found.version
        whose = f"the shard group {found.group!r}" if found.group else "no shard group"
        restore = "" if found.group else f"restore its label {lease_objects.GROUP_LABEL}, or delete the Lease, or "
        raise BackendError(
            f"Lease {self._names.namespace}/{name} belongs to {whose}, not to {self._names.group!r}: {restore}choose "
            "another sharding.group or sharding.member"
        )
