"""What a reconcile knows of its object after its own writes."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from milo_controllers.kinds import Document, Kind
from milo_controllers.object_cache import CachedObject, ObjectCache
from milo_controllers.own_object import UNWRITTEN, Deleted, OwnObject, Written, after_deletion, after_write
from milo_controllers.own_writes import OwnWrites, Write
from milo_controllers.request import Request
from milo_controllers.work_queue import ObjectKey, Work
from milo_discovery.api_errors import Conflict, NotFound
from milo_kube.reflect.messages import ListEnded, ObjectChanged

METADATA = {"name": "d", "namespace": "default", "uid": "u", "resourceVersion": "1", "finalizers": ["others"]}
DEPLOYMENT: Document = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": METADATA, "spec": {"replicas": 1}}
CHILD: Document = {"kind": "Secret", "metadata": {"name": "child"}}
SCALE = {
    "apiVersion": "autoscaling/v1",
    "kind": "Scale",
    "metadata": {**METADATA, "finalizers": None, "resourceVersion": "2"},
}
TERMINATING = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
STATUS = {"apiVersion": "v1", "kind": "Status", "status": "Success", "details": {"uid": "u"}}


class FakeApi:
    """An API server with one Deployment."""

    def __init__(self) -> None:
        self.stored: Document = DEPLOYMENT
        self.patches: list[Any] = []
        self.deletions: list[Any] = []
        self.response_to_delete: Document = STATUS

    async def send(self, method: str, path: str, query: object = (), body: Any = None, **_: object) -> Document:
        match method:
            case "DELETE":
                self.deletions.append(body)
                return self.response_to_delete
            case "PATCH":
                self.patches.append(body)
                if path.endswith("/scale"):
                    self.stored = {
                        **DEPLOYMENT,
                        "metadata": {**METADATA, "resourceVersion": "2"},
                        "spec": {"replicas": 5},
                    }
                    return SCALE
        return self.stored


def request_to(api: FakeApi) -> Request[Document]:
    view: Any = SimpleNamespace(
        cluster=SimpleNamespace(name="shop"),
        cached=lambda *_: CachedObject("d", "default", "u", "1", msgspec.json.encode(DEPLOYMENT)),
        decoded=lambda *_: DEPLOYMENT,
        document=lambda *_: DEPLOYMENT,
        is_partial=lambda _: False,
        partial_kind=lambda _: None,
        list=lambda *_, **__: iter(()),
    )
    kind, cache = Kind("apps/v1/deployments"), ObjectCache()
    informers = {kind.key: SimpleNamespace(key=kind.key, cache=cache)}
    member: Any = SimpleNamespace(
        api=api, view=view, loop=None, events=SimpleNamespace(), informers=informers, own_writes=OwnWrites()
    )
    cache.apply(ObjectChanged(view.cached()))
    cache.apply(ListEnded())
    work = Work(ObjectKey("shop", 1, "default", "d"), 0.0, 0)
    return Request(kind, work, member, clusters=view, field_manager="m")


def replace_object(request: Request, api: FakeApi) -> None:
    """Delete the Deployment, and create another one of its name."""
    api.stored = another = {**DEPLOYMENT, "metadata": {**METADATA, "uid": "another", "resourceVersion": "9"}}
    cached = CachedObject("d", "default", "another", "9", msgspec.json.encode(another))
    request._member.view.cached = lambda *_: cached  # type: ignore[method-assign]
    request._member.view.document = lambda *_: another  # type: ignore[method-assign]


async def test_response_of_another_subresource_does_not_become_the_object() -> None:
    api = FakeApi()
    request = request_to(api)
    await request.patch("apps/v1/deployments", "d", {"spec": {"replicas": 5}}, subresource="scale")
    found = await request.get()
    assert found is not None
    assert (found["kind"], found["spec"]) == ("Deployment", {"replicas": 5})
    await request.ensure_finalizer("mine")
    assert api.patches[-1]["metadata"]["finalizers"] == ["others", "mine"]


@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "conflict"])
async def test_finalizer_of_an_object_whose_deletion_was_requested_after_get_is_a_conflict(is_cached: bool) -> None:
    """Found by a reader: what the finalizer was for was created, and no call saw that the object terminates."""

    class ConflictingApi(FakeApi):
        async def send(self, method: str, path: str, query: object = (), body: Any = None, **more: object) -> Document:
            if method == "PATCH":
                raise Conflict(409, "Conflict", "the object has been modified")
            return await super().send(method, path, query, body, **more)

    api = ConflictingApi()
    request = request_to(api)
    await request.get()
    terminating = {**DEPLOYMENT, "metadata": {**METADATA, **TERMINATING, "resourceVersion": "2"}}
    api.stored = terminating
    if is_cached:
        request._member.view.document = lambda *_: terminating  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="its deletion was requested since `get` returned it"):
        await request.ensure_finalizer("mine")
    assert not await request.ensure_finalizer("others")


async def test_terminating_object_gets_no_finalizer() -> None:
    request = request_to(FakeApi())
    terminating = {**DEPLOYMENT, "metadata": {**METADATA, **TERMINATING}}
    request._member.view.cached = lambda *_: CachedObject(  # type: ignore[method-assign]
        "d", "default", "u", "1", msgspec.json.encode(terminating)
    )
    request._member.view.document = lambda *_: terminating  # type: ignore[method-assign]
    assert not await request.ensure_finalizer("mine")
    await request.get()
    assert not await request.ensure_finalizer("mine")


@pytest.mark.parametrize(
    ("response", "is_found"),
    [
        (STATUS, False),
        ({**DEPLOYMENT, "metadata": {**METADATA, "finalizers": []}}, False),
        ({**DEPLOYMENT, "metadata": {**METADATA, "deletionTimestamp": "2026-01-01T00:00:00Z"}}, True),
    ],
)
async def test_object_that_the_reconcile_deleted_is_found_only_while_it_is_terminating(
    response: Document, is_found: bool
) -> None:
    api = FakeApi()
    api.response_to_delete = response
    request = request_to(api)
    await request.delete("apps/v1/deployments", "d", uid="u", resource_version="1", propagation="Orphan")
    assert ((await request.get()) is not None) == is_found
    assert api.deletions == [
        {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Orphan",
            "preconditions": {"uid": "u", "resourceVersion": "1"},
        }
    ]


@pytest.mark.parametrize(
    ("response", "is_left"),
    [
        ({"metadata": {**TERMINATING, "finalizers": ["others"]}}, True),
        ({"metadata": {**TERMINATING, "deletionGracePeriodSeconds": 30}}, True),
        ({"metadata": {**TERMINATING, "deletionGracePeriodSeconds": 0}}, False),
        ({"apiVersion": "v1", "kind": "Namespace", "metadata": TERMINATING, "spec": {"finalizers": ["f"]}}, True),
        ({"apiVersion": "v1", "kind": "Namespace", "metadata": TERMINATING, "spec": {}}, False),
        ({"apiVersion": "v1", "kind": "Widget", "metadata": TERMINATING, "spec": {"finalizers": ["f"]}}, False),
    ],
)
def test_terminating_object_is_left_while_it_waits_for_finalizers_or_its_grace_period(
    response: Document, is_left: bool
) -> None:
    expected: tuple[OwnObject, OwnObject] = (Deleted(), Deleted(response))
    assert (after_deletion(response), after_write("", response)) == ((Written(response),) * 2 if is_left else expected)


async def test_object_whose_last_finalizer_the_reconcile_removed_is_gone() -> None:
    api = FakeApi()
    request = request_to(api)
    recorded: list[Document] = []

    async def record(regarding: Document, *_: object) -> None:
        recorded.append(regarding)

    request._member.events.record = record  # type: ignore[method-assign]
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, **TERMINATING, "finalizers": [], "resourceVersion": "2"}}
    assert await request.remove_finalizer("others")
    assert await request.get() is None
    assert not await request.remove_finalizer("others")
    # The cache never has this version.
    assert list(request.writes.values()) == [Write("apps/v1/deployments", ("default", "d"), "u", "")]
    await request.event("Cleaned", "it is gone")
    assert recorded == [api.stored]


def recorded_events(request: Request[Document]) -> list[str]:
    """Return the UIDs of the objects of which events are recorded from now on, and `lost` for each that is not."""
    uids: list[str] = []

    async def record(regarding: Document, *_: object) -> None:
        uids.append(regarding["metadata"]["uid"])

    request._member.events.record = record  # type: ignore[method-assign]
    request._member.events.lost = lambda *_: uids.append("lost")  # type: ignore[method-assign]
    return uids


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (STATUS, "u"),
        ({**STATUS, "details": None}, "u"),
        (NotFound(404, "NotFound", "there is none"), "u"),
        ({**DEPLOYMENT, "metadata": {**METADATA, "finalizers": []}}, "u"),
        ({**STATUS, "details": {"uid": "another"}}, "lost"),
    ],
    ids=["status", "status-without-uid", "not-found", "object", "another"],
)
async def test_event_of_the_object_is_recorded_after_its_deletion(
    response: Document | Exception, expected: str
) -> None:
    class DeletingApi(FakeApi):
        async def send(self, method: str, path: str, query: object = (), body: Any = None, **_: object) -> Document:
            if method == "GET" or isinstance(response, Exception):
                raise NotFound(404, "NotFound", "there is none")
            return response

    request = request_to(DeletingApi())
    uids = recorded_events(request)
    assert await request.get() is not None
    await request.delete("apps/v1/deployments", "d")
    await request.event("Expired", "it was deleted")
    await request.delete("apps/v1/deployments", "d")
    await request.event("Expired", "it was deleted again")
    assert uids == [expected] * 2
    assert await request.get() is None


@pytest.mark.parametrize("part", [{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"}, {}])
async def test_event_of_a_deleted_object_whose_kind_is_not_cached_is_lost(part: Document) -> None:
    request = request_to(FakeApi())
    uids = recorded_events(request)
    request._member.view.document = lambda *_: {**part, "metadata": METADATA}  # type: ignore[method-assign]
    await request.delete("apps/v1/deployments", "d")
    await request.event("Expired", "it was deleted")
    assert uids == ["lost"]


async def test_object_whose_deletion_is_answered_without_uid_is_read_again_and_the_cached_one_recorded() -> None:
    """The caches still had the object when it was reconciled next, and it was found."""
    api = FakeApi()
    api.response_to_delete = {**STATUS, "details": {"name": "d"}}
    request = request_to(api)
    await request.delete("apps/v1/deployments", "d")
    assert list(request.writes.values()) == [Write("apps/v1/deployments", ("default", "d"), "u", "")]
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, **TERMINATING}}
    assert await request.get() == api.stored


async def test_deletion_is_recorded_with_the_write_before_it() -> None:
    api = FakeApi()
    request = request_to(api)
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, "resourceVersion": "2"}}
    await request.patch_status({"ready": True})
    await request.delete("apps/v1/deployments", "d")
    assert list(request.writes.values()) == [Write("apps/v1/deployments", ("default", "d"), "u", "", before="2")]


async def test_nothing_is_changed_of_another_object_that_the_cache_has_under_the_name_by_now() -> None:
    api = FakeApi()
    request = request_to(api)
    assert await request.get() is not None
    await request.patch_status({"ready": True})
    assert api.patches == [{"status": {"ready": True}, "metadata": {"resourceVersion": "1", "uid": "u"}}]
    request._own = Written({**DEPLOYMENT, "metadata": {**METADATA, "uid": "another"}})
    with pytest.raises(Conflict, match="another object has this name since `get` returned it"):
        await request.patch_status({"ready": True})
    assert len(api.patches) == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda request: request.create("v1/secrets", CHILD, owned=True),
        lambda request: request.apply("v1/secrets", CHILD, owned=True),
        lambda request: request.owner_reference(),
        lambda request: request.ensure_finalizer("others"),
        lambda request: asyncio.to_thread(lambda: list(request.list("v1/secrets", owned=True))),
    ],
    ids=["create", "apply", "owner_reference", "ensure_finalizer", "list"],
)
@pytest.mark.parametrize("is_partial", [True, False])
async def test_another_object_that_has_the_name_by_now_owns_nothing(
    act: Callable[[Request], Awaitable[object]], *, is_partial: bool
) -> None:
    api = FakeApi()
    request = request_to(api)
    assert await request.get() is not None
    replace_object(request, api)
    request._member.view.is_partial = lambda _: is_partial  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="another object has this name since `get` returned it"):
        await act(request)
    assert api.patches == []
    assert await request.get() is not None
    await act(request)


async def test_object_that_the_reconcile_deleted_and_created_again_owns_what_it_creates_next() -> None:
    api = FakeApi()
    request = request_to(api)
    assert await request.get() is not None
    await request.delete("apps/v1/deployments", "d")
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, "uid": "another", "resourceVersion": "9"}}
    await request.create("apps/v1/deployments", DEPLOYMENT)
    assert (await request.owner_reference())["uid"] == "another"


async def test_event_of_another_object_that_has_the_name_by_now_is_lost() -> None:
    api = FakeApi()
    request = request_to(api)
    lost: list[str] = []
    request._member.events.lost = lambda reason, _name, error: lost.append(f"{reason}: {error}")  # type: ignore[method-assign]
    assert await request.get() is not None
    replace_object(request, api)
    await request.event("Paid", "the invoice of the former one")
    [told] = lost
    assert "Paid: " in told
    assert "another object has this name since `get` returned it" in told


async def test_finalizer_of_another_object_is_kept_if_transform_leaves_out_the_uid() -> None:
    api = FakeApi()
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, "uid": "another"}}
    request = request_to(api)
    left = msgspec.json.encode({"metadata": {"name": "d", "finalizers": ["others"]}})
    request.kind = Kind("apps/v1/deployments", transform=lambda found: found)
    request._member.view.is_partial = lambda _: True  # type: ignore[method-assign]
    request._member.view.cached = lambda *_: CachedObject("d", "default", "u", "1", left)  # type: ignore[method-assign]
    assert await request.get() is not None
    with pytest.raises(Conflict, match="another object has this name since `get` returned it"):
        await request.remove_finalizer("others")
    assert api.patches == []


async def test_owned_objects_are_listed_if_transform_leaves_out_the_uid() -> None:
    request = request_to(FakeApi())
    request._member.view.document = lambda *_: {"metadata": {"name": "d"}}  # type: ignore[method-assign]
    request._member.view.list = lambda *_, owner, **__: iter([owner])  # type: ignore[method-assign]
    assert list(request.list("v1/configmaps", owned=True)) == ["u"]
    await request.patch("apps/v1/deployments", "d", {"spec": {}})
    assert list(request.list("v1/configmaps", owned=True)) == ["u"]
    await request.delete("apps/v1/deployments", "d")
    with pytest.raises(NotFound):
        request.list("v1/configmaps", owned=True)


@pytest.mark.parametrize("is_partial", [True, False])
async def test_get_returns_what_the_reconcile_wrote_until_the_cache_has_a_newer_state(*, is_partial: bool) -> None:
    api = FakeApi()
    request = request_to(api)
    [informer] = request._member.informers.values()
    view: Any = request._member.view
    view.is_partial = lambda _: is_partial
    view.decoded = lambda _, raw: msgspec.json.decode(raw)
    view.cached = lambda _, name, namespace: informer.cache.get(namespace, name)

    async def size_after(cached: str | None) -> tuple[int | None, bool]:
        """Return the size that `get` returns, and whether it is from the cache."""
        if cached is not None:
            document = {**DEPLOYMENT, "metadata": {**METADATA, "resourceVersion": cached}, "spec": {"replicas": 9}}
            informer.cache.apply(
                ObjectChanged(CachedObject("d", "default", "u", cached, msgspec.json.encode(document)))
            )
        found = await request.get()
        return (found and found["spec"]["replicas"]), request._own == UNWRITTEN

    assert await size_after(None) == (1, True)
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, "resourceVersion": "3"}, "spec": {"replicas": 5}}
    await request.patch("apps/v1/deployments", "d", {"spec": {"replicas": 5}})
    assert await size_after(None) == (5, False)
    assert await size_after("2") == (5, False)
    # What was written is kept if the cache has only a part of it: its next use need not read it.
    assert await size_after("3") == ((5, False) if is_partial else (9, True))
    assert await size_after("4") == (9, True)


async def test_get_returns_what_is_no_valid_object_until_the_end_of_the_reconcile() -> None:
    api = FakeApi()
    request = request_to(api)
    api.stored = {**DEPLOYMENT, "metadata": {"name": "d", "uid": "u"}, "spec": {"replicas": 5}}
    await request.patch("apps/v1/deployments", "d", {"spec": {"replicas": 5}})
    request._own = Written(api.stored)
    assert await request.get() == api.stored


async def test_get_with_a_kind_or_a_name_alone_is_refused() -> None:
    request = request_to(FakeApi())
    for kind, name in (("v1/secrets", None), (None, "name")):
        with pytest.raises(TypeError, match="pass a kind and a name, or neither"):
            await request.get(kind, name)  # type: ignore[call-overload]


async def test_unknown_propagation_is_refused() -> None:
    with pytest.raises(ValueError, match='write "Background", "Foreground" or "Orphan"'):
        await request_to(FakeApi()).delete("apps/v1/deployments", "d", propagation="foreground")  # type: ignore[arg-type]


async def test_deeply_nested_object_is_read_after_a_write() -> None:
    """Python copied what a write returned value by value: an object of 8 MiB blocked the event loop for seconds."""
    api = FakeApi()
    nested: Document = {}
    for _ in range(700):
        nested = {"in": nested}
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, "resourceVersion": "2"}, "spec": nested}
    request = request_to(api)
    written = await request.patch("apps/v1/deployments", "d", {"spec": {}})
    written["spec"]["in"] = None
    found = await request.get()
    assert found is not None
    assert msgspec.json.encode(found["spec"]) == b'{"in":' * 700 + b"{}" + b"}" * 700


NEXT: Document = {**DEPLOYMENT, "metadata": {**METADATA, "uid": "next", "resourceVersion": "9"}}


async def _without_last_finalizer(request: Request[Document], api: FakeApi) -> None:
    api.stored = {**DEPLOYMENT, "metadata": {**METADATA, **TERMINATING, "finalizers": [], "resourceVersion": "2"}}
    assert await request.remove_finalizer("others")


async def _deleted_with_grace(request: Request[Document], api: FakeApi) -> None:
    waits = {"finalizers": [], "deletionGracePeriodSeconds": 1}
    api.response_to_delete = {**DEPLOYMENT, "metadata": {**METADATA, **TERMINATING, **waits}}
    await request.delete("apps/v1/deployments", "d")


async def _deleted_by_another(_: Request[Document], __: FakeApi) -> None:
    pass


@pytest.mark.parametrize("end", [_without_last_finalizer, _deleted_with_grace, _deleted_by_another])
async def test_object_that_a_reconcile_creates_again_owns_what_it_creates(
    end: Callable[[Request[Document], FakeApi], Awaitable[None]],
) -> None:
    api = FakeApi()
    request = request_to(api)
    assert await request.get() is not None
    await end(request, api)
    api.stored = NEXT
    await request.create("apps/v1/deployments", DEPLOYMENT)
    assert (await request.owner_reference())["uid"] == "next"
    await request.create("v1/secrets", CHILD, owned=True)


async def test_another_object_that_is_created_is_not_the_reconciled_one() -> None:
    api = FakeApi()
    request = request_to(api)
    assert await request.get() is not None
    api.stored = {**NEXT, "metadata": {**NEXT["metadata"], "name": "other"}}
    await request.create("apps/v1/deployments", {**DEPLOYMENT, "metadata": {"name": "other"}})
    await request.create("apps/v1/deployments", DEPLOYMENT, dry_run=True)
    assert (await request.owner_reference())["uid"] == "u"


@pytest.mark.parametrize("is_last_deletion", [False, True])
async def test_newest_of_writes_that_overlap_counts_whatever_the_order_of_their_responses(
    is_last_deletion: bool,
) -> None:
    versions, may_answer = iter("23"), {version: asyncio.Event() for version in "23"}

    class SlowApi(FakeApi):
        async def send(self, method: str, path: str, query: object = (), body: Any = None, **_: object) -> Document:
            version = next(versions)
            is_ending = {**TERMINATING, "finalizers": []} if is_last_deletion and version == "3" else {}
            answer = {**DEPLOYMENT, "metadata": {**METADATA, "resourceVersion": version, **is_ending}}
            await may_answer[version].wait()
            return answer

    request = request_to(SlowApi())
    async with asyncio.TaskGroup() as tasks:
        for version in "23":
            tasks.create_task(request.patch("apps/v1/deployments", "d", {"spec": {"replicas": int(version)}}))
        for version in "32":
            may_answer[version].set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    found, [write] = await request.get(), request.writes.values()
    if is_last_deletion:
        assert (found, write.version) == (None, "")
    else:
        assert found is not None
        assert (found["metadata"]["resourceVersion"], write.version) == ("3", "3")


async def test_object_that_was_written_while_it_was_read_is_as_it_was_written() -> None:
    may_answer = asyncio.Event()

    class SlowApi(FakeApi):
        async def send(self, method: str, path: str, *arguments: Any, **options: Any) -> Document:
            answer = await super().send(method, path, *arguments, **options)
            if method == "GET":
                await may_answer.wait()
            elif not path.endswith("/scale"):
                answer = {**answer, "metadata": {**METADATA, "resourceVersion": "3"}}
            return answer

    request = request_to(SlowApi())
    await request.patch("apps/v1/deployments", "d", {"spec": {"replicas": 5}}, subresource="scale")
    reading = asyncio.create_task(request.get())
    await asyncio.sleep(0)
    await request.patch("apps/v1/deployments", "d", {"metadata": {"labels": {}}})
    may_answer.set()
    await reading
    found = await request.get()
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "3"
