"""Lists of published objects."""

import asyncio
import hashlib
import math
import tracemalloc
from typing import Any, cast
from unittest.mock import Mock

import msgspec
import pytest

from milo_discovery.api_errors import Unreachable, api_error
from milo_discovery.cluster_api import ClusterApi
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_kube.api_request import Answer
from milo_kube.api_server import Pools
from milo_kube.http.client import Client
from milo_kube.list_pages import MAX_PAGES
from milo_publishing import api_server
from milo_publishing.api_server import PublishedObjects
from milo_publishing.errors import PermitEnded, TargetRefused, TargetUnavailable
from milo_publishing.objects import (
    CLUSTER,
    CLUSTER_UID,
    FIELDS,
    FILTER,
    GROUP,
    INCARNATION,
    Identity,
    PublishedResource,
)
from milo_publishing.records import DeleteObject, ReadObject

ALL = {f"n{at}" for at in range(2000)}.__contains__
ANNOTATIONS = (CLUSTER, CLUSTER_UID, INCARNATION, GROUP, FILTER, FIELDS)
SECRETS = PublishedResource(api_version="v1", plural="secrets", kind="Secret")


class EndlessApi:
    """A server that continues every list, or says of every second page that its list has expired."""

    def __init__(self, *, expires: bool) -> None:
        self.asked = 0
        self._expires = expires

    async def receive(self, method: str, path: str, query: Any, body: Any, **_: Any) -> bytes:
        self.asked += 1
        if self._expires and "continue" in dict(query):
            raise api_error(410, "Expired", "too old")
        return b'{"metadata": {"continue": "more"}, "items": []}'


async def test_endless_list_of_published_objects_is_an_error() -> None:
    api = EndlessApi(expires=False)
    objects = PublishedObjects(cast(ClusterApi, api), SECRETS, "hub")
    with pytest.raises(TargetUnavailable, match="the list did not end in 2000 pages"):
        await objects.list(Identity(publication="secrets", publisher="shop"), ALL)
    assert api.asked == MAX_PAGES


async def test_list_of_published_objects_ends_at_a_number_of_objects() -> None:
    """Found by a reader: all was kept in memory, up to 2,000 pages."""
    pages = []

    class EverMore:
        async def receive(self, *_: Any, **__: Any) -> bytes:
            pages.append(1)
            item = {"metadata": {"name": "a", "uid": "1", "resourceVersion": "1"}}
            return msgspec.json.encode({"metadata": {"continue": "more"}, "items": [item] * 500})

    objects = PublishedObjects(cast(ClusterApi, EverMore()), SECRETS, "hub")
    with pytest.raises(TargetUnavailable, match="the list has more than 100000 objects"):
        await objects.list(Identity(publication="secrets", publisher="shop"), ALL)
    assert len(pages) == 200


def stuffed(at: int, **fields: Any) -> dict[str, Any]:
    """An object to which another client has added whatever the API server takes."""
    metadata = {
        "name": f"n{at}",
        "uid": f"u{at}",
        "resourceVersion": "1",
        "labels": {f"example.com/{key}": "a" for key in range(9_000)},
        "annotations": {f"example.com/{key}": "a" * 500 for key in range(500)} | {CLUSTER: "a" * 200_000},
        "managedFields": [{"manager": f"{key}"} for key in range(9_000)],
        "finalizers": ["example.com/a"] * 9_000,
        "deletionTimestamp": "now",
    }
    return {
        "metadata": metadata,
        "data": {"config": "a" * 700_000, **{f"{key}": "" for key in range(80_000)}, **fields},
    }


@pytest.mark.parametrize("is_wanted", [True, False])
async def test_listed_objects_take_little_memory_whatever_another_client_adds_to_them(*, is_wanted: bool) -> None:
    """Found by an attacker: a list of 40 such objects took more than the memory of the manifest."""
    page = msgspec.json.encode({"items": [stuffed(at, server="b") for at in range(4)]})

    class Stuffed:
        async def receive(self, *_: Any, **__: Any) -> bytes:
            return page

    objects = PublishedObjects(cast(ClusterApi, Stuffed()), SECRETS, "hub")
    tracemalloc.start()
    try:
        found = await objects.list(Identity(publication="secrets", publisher="shop"), lambda _: is_wanted)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < (1_500_000 if is_wanted else 100_000)  # of objects of engaged clusters, what may be compared
    assert peak < 4_000_000
    assert [one.document for one in found] == [
        {
            "metadata": {"name": f"n{at}", "annotations": {CLUSTER: "a" * 200_000}},
            "data": {"config": {"sha256": hashlib.sha256(b"a" * 700_000).hexdigest()}, "server": "b"},
        }
        if is_wanted
        else {}
        for at in range(4)
    ]


class Pages:
    """A server with objects in pages of the size that is asked for. `annotation`: the value of each annotation."""

    def __init__(self, count: int, annotation: str) -> None:
        self._count, self._annotation = count, annotation

    async def receive(self, _method: str, _path: str, query: Any, _body: Any, **_: Any) -> bytes:
        first, size = int(dict(query).get("continue", 0)), int(dict(query)["limit"])
        until = min(first + size, self._count)
        items = [{"metadata": self._metadata(at)} for at in range(first, until)]
        return msgspec.json.encode(
            {"metadata": {"continue": str(until) if until < self._count else ""}, "items": items}
        )

    def _metadata(self, at: int) -> dict[str, Any]:
        annotations = {key: f"{at}{key[-9:]}{self._annotation}" for key in ANNOTATIONS}
        labels = Identity(publication="secrets", publisher="shop").labels()
        metadata = {"name": f"n{at}", "uid": f"u{at}", "resourceVersion": "1", "labels": labels}
        finalizers = {"deletionTimestamp": "now", "finalizers": [f"example.com/{at}{'a' * 200}"] * 20}
        return {**metadata, **finalizers, "annotations": annotations}


@pytest.mark.parametrize("annotation", ["", "x" * 4_090, "x" * 4_000 + "\N{GRINNING FACE}"])
async def test_what_identifies_an_object_takes_little_memory(annotation: str) -> None:
    """Found by an attacker: 3,600 objects with the labels of a publisher took more than the memory of the manifest."""
    objects = PublishedObjects(cast(ClusterApi, Pages(1000, annotation)), SECRETS, "hub")
    tracemalloc.start()
    try:
        found = await objects.list(Identity(publication="secrets", publisher="shop"), lambda _: False)
        kept, _ = tracemalloc.get_traced_memory()
        observed = {one.name: one for one in found}
        again = await objects.list(Identity(publication="secrets", publisher="shop"), lambda _: False, observed.get)
        both, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_700 * len(found)
    assert both - kept < 200 * len(found)  # unchanged objects are held once
    assert again == found


async def test_list_of_published_objects_ends_at_the_memory_of_what_identifies_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_server, "_MOST_IDENTIFYING", 1 << 20)
    objects = PublishedObjects(cast(ClusterApi, Pages(10_000, "")), SECRETS, "hub")
    of = Identity(publication="secrets", publisher="shop")
    with pytest.raises(TargetUnavailable, match="the names and annotations of the list take over 1 MiB"):
        await objects.list(of, lambda _: False)
    assert len(await objects.list(of, lambda _: True)) == 10_000  # the daemon engages no more clusters than it may


async def test_list_keeps_the_contents_of_some_objects() -> None:
    item = {"metadata": {"uid": "1", "resourceVersion": "1"}, "data": {"server": "a" * 500_000}}
    pages = iter(range(10))

    class Large:
        async def receive(self, *_: Any, **__: Any) -> bytes:
            page = next(pages)
            items = [{**item, "metadata": {**item["metadata"], "name": f"n{page * 10 + at}"}} for at in range(10)]
            return msgspec.json.encode({"metadata": {"continue": "more" if page < 9 else ""}, "items": items})

    objects = PublishedObjects(cast(ClusterApi, Large()), SECRETS, "hub")
    found = await objects.list(Identity(publication="secrets", publisher="shop"), ALL)
    assert sum(one.content is not None for one in found) == 67


async def test_list_of_published_objects_that_expires_twice_is_repeated_later() -> None:
    api = EndlessApi(expires=True)
    objects = PublishedObjects(cast(ClusterApi, api), SECRETS, "hub")
    with pytest.raises(TargetUnavailable, match="too old"):
        await objects.list(Identity(publication="secrets", publisher="shop"), ALL)
    assert api.asked == 4


class LargeObjects:
    """A server of objects, of which the first are large: more than 20 of them are too large for one response."""

    def __init__(self, count: int = 60, large: int = 60) -> None:
        self.sizes: list[int] = []
        self.count, self.large = count, large

    async def receive(self, method: str, path: str, query: Any, body: Any, **_: Any) -> bytes:
        size, first = int(dict(query)["limit"]), int(dict(query).get("continue", 0))
        self.sizes.append(size)
        if size > 20 and first < self.large:
            raise Unreachable("too_large", "more bytes than are read")
        items = [
            {"metadata": {"name": f"n{at}", "uid": f"u{at}", "resourceVersion": "1"}}
            for at in range(first, min(first + size, self.count))
        ]
        metadata = {"continue": f"{first + size}" if first + size < self.count else ""}
        return msgspec.json.encode({"metadata": metadata, "items": items})


async def test_large_objects_are_listed_in_smaller_pages() -> None:
    api = LargeObjects()
    objects = PublishedObjects(cast(ClusterApi, api), SECRETS, "hub")
    found = await objects.list(Identity(publication="secrets", publisher="shop"), ALL)
    assert [one.name for one in found] == [f"n{at}" for at in range(60)]
    assert api.sizes == [500, 100, 20, 20, 20]


async def test_objects_after_the_large_ones_are_listed_in_larger_pages() -> None:
    api = LargeObjects(1000, large=100)
    objects = PublishedObjects(cast(ClusterApi, api), SECRETS, "hub")
    assert len(await objects.list(Identity(publication="secrets", publisher="shop"), ALL)) == 1000
    assert api.sizes == [500, 100, *[20] * 5, *[100] * 5, 500]


class StuffedApi(ClusterApi):
    """The API of a server of three objects, to one of which another client has added a value that has no schema."""

    def __init__(self, value: str, padding: int = 0) -> None:
        self.name, self._tracer = "the target", None
        self._items = [self._item("alpha", "[]"), self._item("beta", value), self._item("gamma", "[]", padding)]

    @staticmethod
    def _item(name: str, value: str, padding: int = 0) -> bytes:
        metadata = {"name": name, "uid": f"{name}-1", "resourceVersion": "1", "annotations": {CLUSTER: name}}
        providers = f'[{{"name":"milo","cluster":{{"server":"a"}}}},{{"name":"other","cluster":{value}}}]'
        status = f'{{"padding":"{"a" * padding}","accessProviders":{providers}}}'
        return b'{"metadata":%s,"status":%s}' % (msgspec.json.encode(metadata), status.encode())

    async def request(self, method: str, path: str, query: Any, *_: Any, **__: Any) -> Answer:
        if path.endswith("/beta"):
            return Answer(200, {}, self._items[1])
        size, first = int(dict(query)["limit"]), int(dict(query).get("continue", 0))
        metadata = {"continue": f"{first + size}" if first + size < 3 else ""}
        items = b",".join(self._items[first : first + size])
        return Answer(200, {}, b'{"metadata":%s,"items":[%s]}' % (msgspec.json.encode(metadata), items))


@pytest.mark.parametrize("padding", [0, 3 << 20])
@pytest.mark.parametrize("value", ["[" * 9_000 + "]" * 9_000, '{"a":' * 9_000 + "1" + "}" * 9_000])
async def test_deeply_nested_object_affects_no_others_and_is_compared(value: str, padding: int) -> None:
    """Found by a reader: after a restart nothing was published because of one such object."""
    objects = PublishedObjects(StuffedApi(value, padding), SECRETS, "hub")
    found = await objects.list(Identity(publication="secrets", publisher="shop"), lambda _: True)
    assert [one.cluster for one in found] == ["alpha", "beta", "gamma"]
    read = await objects.perform(ReadObject("beta"))
    assert read is not None
    for one in (found[1], read):
        assert one.document["status"]["accessProviders"][0] == {"name": "milo", "cluster": {"server": "a"}}


async def test_object_of_many_lists_and_maps_affects_no_others() -> None:
    value = f"[{','.join(['[]'] * 470_000)}]"  # what fits into an object
    objects = PublishedObjects(StuffedApi(value), SECRETS, "hub")
    tracemalloc.start()
    try:
        found = await objects.list(Identity(publication="secrets", publisher="shop"), lambda _: True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.cluster for one in found] == ["alpha", "beta", "gamma"]
    assert peak < 12_000_000


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, TargetUnavailable), (408, TargetUnavailable), (429, TargetUnavailable), (403, TargetRefused)],
)
async def test_request_is_repeated_after_an_answer_that_says_nothing_about_its_object(
    status: int, error: type[Exception]
) -> None:
    class Refusing:
        async def receive(self, *_: Any, **__: Any) -> bytes:
            raise api_error(status, "", "refused")

    with pytest.raises(error, match="refused"):
        await PublishedObjects(cast(ClusterApi, Refusing()), SECRETS, "hub").perform(ReadObject("alpha"))


@pytest.mark.parametrize("given", [ReadObject("alpha"), DeleteObject("alpha", "1", "2", math.inf)])
@pytest.mark.parametrize(("about", "is_gone"), [("alpha", True), ("", False)])
async def test_object_is_gone_only_if_an_answer_names_it(
    given: ReadObject | DeleteObject, about: str, is_gone: bool
) -> None:
    """A server that does not serve the kind at present, or a proxy, answers 404 too."""

    class Missing:
        async def receive(self, *_: Any, **__: Any) -> bytes:
            raise api_error(404, "", "404 page not found", about=about)

    objects = PublishedObjects(cast(ClusterApi, Missing()), SECRETS, "hub")
    if is_gone:
        assert await objects.perform(given) is None
    else:
        with pytest.raises(TargetUnavailable, match="404 page not found") as unavailable:
            await objects.perform(given)
        assert unavailable.value.is_answer


class NoCredentials:
    """Credentials that are never issued."""

    async def access(self) -> KubeconfigAccess:
        return cast(KubeconfigAccess, await asyncio.Event().wait())

    async def access_after_401(self, _: str | None) -> KubeconfigAccess:
        raise AssertionError

    def require_present(self, server: str) -> None:
        return None


async def test_deletion_is_given_up_when_its_permit_ends() -> None:
    api = ClusterApi("the target", NoCredentials(), Pools(user_agent="test"))
    until = asyncio.get_running_loop().time() + 0.05
    with pytest.raises(TargetUnavailable, match="no credential for the target") as given_up:
        await PublishedObjects(api, SECRETS, "hub").perform(DeleteObject("alpha", "1", "2", until))
    assert (given_up.value.is_unsent, given_up.value.is_answer) == (False, False), (
        "an outage would delay the other objects, whose requests may wait for longer"
    )
    with pytest.raises(TargetUnavailable, match="no credential for the target"):
        await PublishedObjects(api, SECRETS, "hub").perform(DeleteObject("alpha", "1", "2", until))


class LateCredentials:
    """Credentials that are issued while a request waits for them."""

    async def access(self) -> KubeconfigAccess:
        await asyncio.sleep(0)
        return KubeconfigAccess(server="https://127.0.0.1:1", token="t")

    async def access_after_401(self, _: str | None) -> KubeconfigAccess:
        raise AssertionError

    def require_present(self, server: str) -> None:
        return None


async def test_deletion_that_is_not_permitted_anymore_when_it_can_be_sent_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise PermitEnded("the cluster is engaged")

    async def connected(*_: Any) -> Any:
        connection = Mock(requests=0, is_usable=False)
        connection.send.side_effect = AssertionError
        return connection

    monkeypatch.setattr(Client, "_connection", connected)
    api = ClusterApi("the target", LateCredentials(), Pools(user_agent="test"))
    until = asyncio.get_running_loop().time() + 5.0
    with pytest.raises(PermitEnded):
        await PublishedObjects(api, SECRETS, "hub").perform(DeleteObject("alpha", "1", "2", until), refuse)


class AnsweringApi:
    """A server that answers each request with a document."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer

    async def receive(self, *_: Any, **__: Any) -> bytes:
        return msgspec.json.encode(self._answer)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        "text",
        {"name": "a"},
        {"name": 1, "uid": "2", "resourceVersion": "3"},
        {"name": "a", "uid": "2", "resourceVersion": "3", "labels": ["a"]},
        {"name": "a", "uid": "2", "resourceVersion": "3", "annotations": {CLUSTER: 1}},
        {"name": "a", "uid": "2", "resourceVersion": "3", "finalizers": 1},
    ],
)
async def test_answer_without_the_metadata_of_an_object_is_an_error(metadata: Any) -> None:
    objects = PublishedObjects(cast(ClusterApi, AnsweringApi({"metadata": metadata})), SECRETS, "hub")
    with pytest.raises(TargetUnavailable, match="answered without an object's"):
        await objects.perform(ReadObject("a"))


@pytest.mark.parametrize("answer", [{"items": 1}, {"metadata": []}, {"metadata": {"continue": 1}}])
async def test_answer_that_is_no_list_is_an_error(answer: dict[str, Any]) -> None:
    objects = PublishedObjects(cast(ClusterApi, AnsweringApi(answer)), SECRETS, "hub")
    with pytest.raises(TargetUnavailable, match="is not a list"):
        await objects.list(Identity(publication="secrets", publisher="shop"), ALL)


@pytest.mark.parametrize("metadata", [None, [], "text"])
async def test_deletion_may_be_answered_with_anything(metadata: Any) -> None:
    objects = PublishedObjects(cast(ClusterApi, AnsweringApi({"metadata": metadata})), SECRETS, "hub")
    assert await objects.perform(DeleteObject("alpha", "1", "2", asyncio.get_running_loop().time() + 5.0)) is None
