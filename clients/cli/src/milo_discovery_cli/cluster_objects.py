"""Reads objects of one cluster: finds out which resources are meant, and requests their pages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http.client import responses
from typing import TYPE_CHECKING, Protocol

import msgspec

from milo_discovery.cluster_api import ClusterApi
from milo_discovery_cli import served_resources
from milo_discovery_cli.object_page import (
    TABLE,
    UNDECODABLE,
    DocumentPage,
    RowPage,
    problem_of,
    read_objects,
    read_rows,
)
from milo_discovery_cli.object_request import ObjectRead, ObjectScope, Wanted
from milo_discovery_cli.served_resources import ServedResource, Version, matching, may_contain
from milo_discovery_cli.usage import did_you_mean
from milo_kube import retry_after
from milo_kube.api_request import JSON, Answer
from milo_kube.http.errors import TransportError
from milo_kube.list_pages import EndlessListError, ListPages
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.wire import error_status

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.model import Cluster
    from milo_kube.api_server import Pools

_PAGE_SIZE = 500
_ATTEMPTS = 5
_LONGEST_DELAY_S = 10.0
_BACKOFF = Backoff()
_GROUPS_AT_ONCE = 8
_LEADER_S = 1.0
"""How long to wait for what another cluster answers before asking one's own."""


class Unanswered(Exception):  # noqa: N818  (`except Unanswered` reads well without the suffix `Error`)
    """A cluster did not answer, or not with what was asked. The message is the cause."""

    is_missing_path = False
    is_missing_object = False


class ClusterUnreachable(Unanswered):
    """A request was not answered in time, or not completely."""


class ErrorAnswer(Unanswered):
    """A cluster answered with an error."""

    def __init__(self, status: int, message: str, *, about: str) -> None:
        """`about`: the name of the object that the error is about; empty if it is about the path."""
        super().__init__(f"{status} {message}".rstrip())
        self.is_missing_path = status == 404 and not about
        self.is_missing_object = status == 404 and bool(about)


class Getter(Protocol):
    """The part of an API server that is used."""

    async def get(
        self, path: str, query: Sequence[tuple[str, str]] = (), *, timeout_s: float, accept: str = JSON
    ) -> Answer: ...


class FoundPage(msgspec.Struct):
    """A page of one resource's objects."""

    place: int
    """The place of the resource among those that were asked for."""
    resource: ServedResource
    page: RowPage | DocumentPage


class Lacking(msgspec.Struct, frozen=True):
    """What a cluster does not have: a resource, or an object."""

    resource: str
    name: str = ""


class FailedRead(msgspec.Struct, frozen=True):
    """A resource or an object that a cluster did not answer with."""

    subject: str
    """What was asked for, as in `configmaps` or `configmaps/settings`."""
    cause: str


@asynccontextmanager
async def opened(client: DiscoveryClient, cluster: Cluster, pools: Pools) -> AsyncIterator[ClusterApi]:
    """Open the API of a cluster, with credentials from the daemon. Raises DiscoveryError if there are none."""
    async with client.api_clients.renewer(lambda: cluster, None, None) as credentials:
        api = ClusterApi(cluster.name, credentials, pools)
        try:
            yield api
        finally:
            await api.aclose()


class KnownResources:
    """The resources that names mean, as found in the clusters that were asked first: most clusters serve the same.

    So the others are asked only for the resources of that version and of the core group, and for all if the name means
    something else there: no cluster decides what is read from others, such as their Secrets.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._known: dict[str, ServedResource] = {}
        self._leading: dict[str, asyncio.Event] = {}
        self.names: frozenset[str] = frozenset()
        """The names of the resources that some cluster serves, for suggestions."""

    def suggestion(self, name: str) -> str:
        """Return a suggestion to append to an error about a name; empty if a cluster serves the resource."""
        return "" if name in self._known else did_you_mean(name.lower().partition(".")[0], self.names)

    async def find(self, name: str, api: Getter) -> tuple[ServedResource, ...]:
        """Return the resources that a name means, if possible without asking this cluster. Raises Unanswered."""
        leading = self._leading.get(name)
        if name not in self._known and leading is not None:
            try:
                async with asyncio.timeout(_LEADER_S):
                    await leading.wait()
            except TimeoutError:
                pass
        if name in self._known and (found := await self._found_here(name, self._known[name], api)):
            return (found,)
        ended = self._leading.setdefault(name, asyncio.Event())
        try:
            return await self.find_in(name, api)
        finally:
            ended.set()

    async def _found_here(self, name: str, known: ServedResource, api: Getter) -> ServedResource | None:
        """Return the resource that a name means in this cluster, if it is of the version that another one serves."""
        versions = [Version("", "v1"), Version(known.group, known.version)]
        served, _ = await _resources_of(api, [*dict.fromkeys(versions)], self._timeout_s)
        found = [*matching(name, served)]
        return found[0] if len(found) == 1 and found[0].full_name == known.full_name else None

    async def find_in(self, name: str, api: Getter) -> tuple[ServedResource, ...]:
        """Return the resources that a name means in this cluster; none if it is not served. Raises Unanswered."""
        served = await discovered(api, name, self._timeout_s)
        self.names |= {each.plural for each in served}
        found = matching(name, served)
        if len(found) == 1:
            self._known.setdefault(name, found[0])
        return found


class ClusterReader:
    """Reads the wanted objects of one cluster."""

    def __init__(
        self, api: Getter, cluster: str, scope: ObjectScope, known: KnownResources, *, accept: str, timeout_s: float
    ) -> None:
        self._api = api
        self._cluster = cluster
        self._scope = scope
        self._known = known
        self._accept = accept
        self._timeout_s = timeout_s

    async def read(self, wanted: Sequence[Wanted]) -> AsyncIterator[FoundPage | Lacking | FailedRead]:
        """Yield the objects in pages, what the cluster does not have, and what it did not answer with.

        Raises ClusterUnreachable and DiscoveryError.
        """
        places = ((name, each.names) for each in wanted for name in each.resources)
        done: set[ObjectRead] = set()  # what several names mean, such as cm and configmaps, is read once
        for place, (name, names) in enumerate(places):
            try:
                async for found in self._named(place, name, names, done):
                    yield found
            except ClusterUnreachable:
                raise
            except Unanswered as error:
                yield FailedRead(name, str(error))

    async def _named(
        self, place: int, name: str, names: Sequence[str], done: set[ObjectRead]
    ) -> AsyncIterator[FoundPage | Lacking | FailedRead]:
        resources = await self._known.find(name, self._api)
        try:
            for resource in resources:
                async for found in self._objects(place, resource, names, done):
                    yield found
        except ErrorAnswer as refused:
            if not refused.is_missing_path:
                raise
            # Another cluster serves this resource, or this one serves it in another version.
            others = [each for each in await self._known.find_in(name, self._api) if each not in resources]
            for resource in others:
                async for found in self._objects(place, resource, names, done):
                    yield found
            resources = tuple(others)
        if not resources:
            yield Lacking(name)

    async def _objects(
        self, place: int, resource: ServedResource, names: Sequence[str], done: set[ObjectRead]
    ) -> AsyncIterator[FoundPage | Lacking | FailedRead]:
        for read in self._scope.reads(resource, names):
            if read in done:
                continue
            done.add(read)
            count = 0
            try:
                async for page in self._pages(read, resource):
                    count += page.count
                    yield FoundPage(place, resource, page)
            except Unanswered as error:
                if error.is_missing_path:
                    raise
                if read.is_list or not error.is_missing_object:
                    yield FailedRead(f"{resource.full_name}/{read.name}".rstrip("/"), str(error))
                    if isinstance(error, ClusterUnreachable):
                        return  # each other name would take as long
                    continue
            if not count and read.name:
                yield Lacking(resource.full_name, read.name)

    async def _pages(self, read: ObjectRead, resource: ServedResource) -> AsyncIterator[RowPage | DocumentPage]:
        clock = asyncio.get_running_loop().time
        limit, token, pages = _PAGE_SIZE, "", ListPages(clock())
        while True:
            paging = [("limit", str(limit)), *([("continue", token)] if token else [])] if read.is_list else []
            try:
                answer = await requested(self._api, read.path, [*read.query, *paging], self._accept, self._timeout_s)
            except TooLargeError as error:
                if not read.is_list or limit == 1:
                    raise Unanswered(str(error)) from None
                limit = max(1, limit // 10)
                continue
            # The version of a list expires. What such an answer contains continues with the rest as it is now.
            token = _continued(answer.body) if answer.status == 410 else ""
            if not token:
                _require_ok(answer)
                try:
                    page = self._decoded(answer.body, read, resource)
                except UNDECODABLE as error:
                    raise Unanswered(f"GET {read.path}: {problem_of(error)}") from error
                yield page
                token = page.continue_token
            if not token:
                return
            try:
                pages = pages.next(token, clock())
            except EndlessListError as error:
                raise Unanswered(f"GET {read.path}: {error}") from None

    def _decoded(self, body: bytes, read: ObjectRead, resource: ServedResource) -> RowPage | DocumentPage:
        if self._accept == TABLE:
            return read_rows(body, datetime.now(UTC), is_list=read.is_list)
        return read_objects(body, resource, self._cluster, is_list=read.is_list)


async def discovered(api: Getter, name: str, timeout_s: float) -> list[ServedResource]:
    """Return the resources that a cluster serves, as far as the name can mean them. Raises Unanswered."""
    found = await asyncio.gather(*(_root(api, path, timeout_s) for path in ("/api", "/apis")))
    roots = [root for root in found if root is not None]
    if not roots:
        raise Unanswered("404 for /api and /apis: no API is served at its address")
    served = [resource for resources, _ in roots for resource in resources]
    unread = [version for _, versions in roots for version in versions if may_contain(name, version)]
    core = [version for version in unread if not version.group]
    problem: Unanswered | None = None
    for versions in (core, [version for version in unread if version.group]):
        resources, failure = await _resources_of(api, versions, timeout_s)
        served += resources
        problem = problem or failure
        if matching(name, served):
            return served
    if problem is not None:
        raise problem
    return served


async def _root(api: Getter, path: str, timeout_s: float) -> tuple[list[ServedResource], list[Version]] | None:
    answer = await _small(api, path, served_resources.AGGREGATED, timeout_s)
    if answer.status == 404:
        return None  # some servers have no resources of the core group
    _require_ok(answer)
    try:
        return served_resources.read_root(answer.body)
    except UNDECODABLE as error:
        raise Unanswered(f"GET {path}: {problem_of(error)}") from error


async def _resources_of(
    api: Getter, versions: Sequence[Version], timeout_s: float
) -> tuple[list[ServedResource], Unanswered | None]:
    """Return the resources of some versions, in their order, and a failure to read one of them."""
    turns, count = asyncio.Semaphore(_GROUPS_AT_ONCE), 0

    async def read(version: Version) -> list[ServedResource] | Unanswered:
        nonlocal count
        try:
            async with turns:
                answer = await _small(api, version.path, JSON, timeout_s)
            _require_ok(answer)
            found = served_resources.read_resources(answer.body, version)
        except Unanswered as unanswered:
            return unanswered
        except UNDECODABLE as error:
            return Unanswered(f"GET {version.path}: {problem_of(error)}")
        count += len(found)
        if count > served_resources.MOST_RESOURCES:
            return Unanswered(f"it serves more than {served_resources.MOST_RESOURCES} resources")
        return found

    results = await asyncio.gather(*map(read, versions))
    lists = [result for result in results if not isinstance(result, Unanswered)]
    failures = [result for result in results if isinstance(result, Unanswered)]
    return [resource for found in lists for resource in found], failures[0] if failures else None


class TooLargeError(Exception):
    """A response is larger than is accepted."""


async def _small(api: Getter, path: str, accept: str, timeout_s: float) -> Answer:
    try:
        return await requested(api, path, (), accept, timeout_s)
    except TooLargeError as error:
        raise Unanswered(str(error)) from None


async def requested(api: Getter, path: str, query: Sequence[tuple[str, str]], accept: str, timeout_s: float) -> Answer:
    """Send a request, again if the server is overloaded. Raises Unanswered and TooLargeError."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            answer = await api.get(path, query, timeout_s=timeout_s, accept=accept)
        except TransportError as error:
            if error.cause == "too_large":
                raise TooLargeError(str(error)) from error
            raise ClusterUnreachable(str(error)) from error
        if answer.status != 429 or attempt == _ATTEMPTS:
            break
        stated = retry_after.stated(answer.headers, datetime.now(UTC))
        own = _BACKOFF.delay(attempt, random.random)
        await asyncio.sleep(retry_after.delay_s(own, stated, at_most_s=_LONGEST_DELAY_S))
    return answer


def _require_ok(answer: Answer) -> None:
    """Raise ErrorAnswer unless the answer is a success."""
    if not 200 <= answer.status < 300:
        status = error_status(answer.body, answer.status)
        message = status.message.removeprefix(f"{answer.status} ") or responses.get(answer.status, "")
        raise ErrorAnswer(answer.status, message, about=status.name)


class _ExpiredMeta(msgspec.Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _Expired(msgspec.Struct):
    metadata: _ExpiredMeta


_EXPIRED = msgspec.json.Decoder(_Expired)


def _continued(body: bytes) -> str:
    """Return the token with which an expired list can be continued; empty if there is none."""
    try:
        return _EXPIRED.decode(body).metadata.continue_
    except UNDECODABLE:
        return ""
