"""Writes of a request: updates of partial objects, the status, dry runs, and lists from the API server."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from kubernetes.client import V1ConfigMap, V1ObjectMeta

from milo_controllers import AnyKind, ClusterApiError, Conflict, Kind, NotCached, NotFound, Request
from milo_controllers.request import PatchType
from milo_discovery.testing import ControlPlane, MiloSandbox, eventually

from .widgets import DEFINITION, FINALIZER, WIDGETS, reconciling, widget


class Metadata(msgspec.Struct, omit_defaults=True):
    name: str
    resourceVersion: str = ""  # noqa: N815


class Spec(msgspec.Struct, omit_defaults=True):
    size: int = 0
    ports: list[dict[str, int]] | None = None


class Widget(msgspec.Struct):
    metadata: Metadata
    spec: Spec


class ConfigMap(msgspec.Struct):
    metadata: dict[str, Any]
    data: dict[str, str] | None = None


class Unversioned(msgspec.Struct):
    metadata: dict[str, str]
    spec: Spec


async def once(
    plane: ControlPlane,
    act: Callable[[Request[Any]], Coroutine[Any, Any, Any]],
    *,
    kind: AnyKind = WIDGETS,
    **options: Any,
) -> Any:
    """Call the function in one reconcile of the widget `one`, and return its result."""
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def reconcile(request: Request[Any]) -> None:
        if request.name == "one" and not ended.done():
            try:
                ended.set_result(await act(request))
            except Exception as error:  # noqa: BLE001  (raised in the test, and not retried)
                ended.set_exception(error)

    async with reconciling(reconcile, plane, kind=kind, on="generation", **options):
        return await ended


@pytest.mark.parametrize("method", ["update", "apply"])
async def test_written_object_that_exists_needs_a_name(plane: ControlPlane, method: str) -> None:
    async def write(request: Request) -> None:
        await getattr(request, method)("v1/configmaps", {"metadata": {"generateName": "a-", "namespace": "default"}})

    plane.apply(widget("one"))
    with pytest.raises(ValueError, match="configmaps has no metadata"):
        await once(plane, write)


def without_spec(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "spec"}


def labeled(**spec: object) -> dict[str, Any]:
    made = widget("one", **spec)
    made["metadata"] |= {"labels": {"kept": "yes"}, "finalizers": [FINALIZER]}
    return made


@pytest.mark.parametrize("kind", [
    Kind(WIDGETS, Widget),
    Kind(WIDGETS, transform=lambda found: {**found, "spec": {"size": found["spec"]["size"]}}),
])  # fmt: skip
async def test_update_of_a_partial_object_keeps_the_fields_that_it_lacks(plane: ControlPlane, kind: Kind[Any]) -> None:
    async def act(request: Request[Any]) -> Any:
        found = await request.get()
        if isinstance(found, Widget):
            found.spec.size = 2
        else:
            found["spec"]["size"] = 2
        await request.update(kind, found)
        with pytest.raises(Conflict):
            await request.update(kind, found)
        return await request.get()

    plane.create(labeled(size=1, color="red"))
    written = await once(plane, act, kind=kind)
    stored = plane.get(WIDGETS, "one")
    assert stored["spec"] == {"size": 2, "color": "red"}
    assert (stored["metadata"]["labels"], stored["metadata"]["finalizers"]) == ({"kept": "yes"}, [FINALIZER])
    if not isinstance(written, Widget):
        assert written["spec"] == {"size": 2}
    plane.patch(WIDGETS, "one", {"metadata": {"finalizers": None}})


async def test_update_after_a_write_keeps_the_fields_that_the_cache_has_for_another_reader(plane: ControlPlane) -> None:
    async def label(request: Request[Any]) -> None:
        await request.patch(WIDGETS, "one", {"metadata": {"annotations": {"first": "write"}}})
        found = await request.get()
        found["metadata"]["labels"] = {"second": "write"}
        await request.update(request.kind, found)

    plane.create(widget("one", size=1))
    await once(plane, label, kind=Kind(WIDGETS, metadata_only=True), owns=[WIDGETS])
    stored = plane.get(WIDGETS, "one")
    assert (stored["metadata"]["labels"], stored["spec"]) == ({"second": "write"}, {"size": 1})


async def test_update_of_metadata_keeps_the_other_fields_of_a_kind_that_is_cached_whole_too(
    plane: ControlPlane,
) -> None:
    async def label(request: Request[Any]) -> None:
        found = await request.get()
        found["metadata"]["labels"] = {"app": "web", "seen": "yes"}
        await request.update(WIDGETS, found)

    body = widget("one", size=1)
    plane.create({**body, "metadata": {**body["metadata"], "labels": {"app": "web"}}})
    await once(plane, label, kind=Kind(WIDGETS, selector="app=web", metadata_only=True), owns=[WIDGETS])
    stored = plane.get(WIDGETS, "one")
    assert (stored["metadata"]["labels"], stored.get("spec")) == ({"app": "web", "seen": "yes"}, {"size": 1})


@pytest.mark.parametrize("is_written_before", [False, True])
async def test_metadata_alone_is_read_and_updated_of_a_kind_that_is_cached_whole(
    plane: ControlPlane, is_written_before: bool
) -> None:
    only = Kind(WIDGETS, metadata_only=True)

    async def label(request: Request[Any]) -> None:
        if is_written_before:
            await request.patch(WIDGETS, "one", {"metadata": {"annotations": {"first": "write"}}})
        found = await request.get()
        with pytest.raises(NotCached, match="metadata_only"):
            del found["rules"][0]
        found["metadata"]["labels"] = {"a": "b"}
        await request.update(only, found)

    plane.create({**widget("one", size=1), "rules": [{"verbs": ["get"]}]})
    await once(plane, label, kind=only, owns=[WIDGETS])
    stored = plane.get(WIDGETS, "one")
    assert (stored["metadata"]["labels"], stored["rules"]) == ({"a": "b"}, [{"verbs": ["get"]}])


@pytest.mark.parametrize("patch", [
    ConfigMap({"labels": {"a": "b"}}), V1ConfigMap(metadata=V1ObjectMeta(labels={"a": "b"})),
])  # fmt: skip
async def test_patch_that_has_a_type_keeps_the_fields_that_it_does_not_set(plane: ControlPlane, patch: object) -> None:
    plane.create(widget("one"))
    plane.create("v1/configmaps", {"metadata": {"name": "c"}, "data": {"kept": "yes"}})
    await once(plane, lambda request: request.patch("v1/configmaps", "c", patch))
    stored = plane.get("v1/configmaps", "c")
    assert (stored["metadata"]["labels"], stored["data"]) == ({"a": "b"}, {"kept": "yes"})


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("type_", ["merge", "strategic", "json"])
async def test_number_that_json_lacks_is_refused(plane: ControlPlane, number: float, type_: PatchType) -> None:
    """It would be sent as null, which removes the field."""
    patch: Any = {"spec": {"sizes": [1.5, number]}}
    if type_ == "json":
        patch = [{"op": "replace", "path": "/spec/size", "value": number}]
    plane.create(widget("one", size=1))
    with pytest.raises(ValueError, match=r"PATCH .*/one was not sent: .* not JSON compliant"):
        await once(plane, lambda request: request.patch(WIDGETS, "one", patch, type=type_))
    assert plane.get(WIDGETS, "one")["spec"] == {"size": 1}


async def test_object_that_contains_itself_is_refused(plane: ControlPlane) -> None:
    """The search for such numbers did not end, nor did anything else run."""
    patch: dict[str, Any] = {"spec": {"size": 2}}
    patch["spec"]["self"] = patch
    plane.create(widget("one", size=1))
    with pytest.raises(ValueError, match="was not sent: Circular reference"):
        await once(plane, lambda request: request.patch(WIDGETS, "one", patch))


@pytest.mark.parametrize("kind", [Kind(WIDGETS, metadata_only=True), Kind(WIDGETS, transform=without_spec)], ids=str)
async def test_update_of_a_whole_object_replaces_it_although_the_cache_has_only_a_part(
    plane: ControlPlane, kind: Kind[Any]
) -> None:
    async def shrink(request: Request[Any]) -> None:
        whole = await request.read(kind, "one")
        del whole["spec"]["color"]
        written = await request.update(kind, whole)
        del written["spec"]["size"]
        await request.update(kind, written)

    plane.create(widget("one", size=1, color="red", shape="round"))
    await once(plane, shrink, kind=kind)
    assert plane.get(WIDGETS, "one")["spec"] == {"shape": "round"}


@pytest.mark.parametrize("kind", [Kind(WIDGETS, metadata_only=True), Kind(WIDGETS, transform=without_spec)], ids=str)
async def test_update_removes_fields_of_a_whole_object_without_managed_fields(
    plane: ControlPlane, kind: Kind[Any]
) -> None:
    """Not every API server sends managedFields, and an author may remove them."""

    async def shrink(request: Request[Any]) -> None:
        (listed,) = await request.read_list(kind)
        for whole in (await request.read(kind, "one"), listed):
            del whole["metadata"]["managedFields"]
        del whole["spec"]["color"]
        written = await request.update(kind, {**whole, "spec": {**whole["spec"]}})
        del written["metadata"]["managedFields"], written["spec"]["size"]
        await request.update(kind, written)
        found = await request.get()  # of the same object, but only a part
        found["metadata"]["labels"] = {"a": "b"}
        changed = await request.update(kind, found)
        assert await request.update(kind, await request.get()) == changed

    plane.create(widget("one", size=1, color="red", shape="round"))
    await once(plane, shrink, kind=kind)
    assert plane.get(WIDGETS, "one")["spec"] == {"shape": "round"}


async def test_update_of_a_kubernetes_object_changes_and_removes_its_fields(plane: ControlPlane) -> None:
    kind = Kind("v1/configmaps", V1ConfigMap)

    async def act(request: Request[V1ConfigMap]) -> None:
        found = await request.get()
        assert found is not None
        found.data = {"b": "2"}
        found.metadata.labels = None
        await request.update(kind, found)

    metadata = {"name": "one", "labels": {"a": "b"}, "annotations": {"kept": "yes"}}
    plane.create("v1/configmaps", {"metadata": metadata, "data": {"a": "1"}, "binaryData": {"kept": "aGk="}})
    await once(plane, act, kind=kind)
    stored = plane.get("v1/configmaps", "one")
    assert (stored["data"], stored["binaryData"]) == ({"b": "2"}, {"kept": "aGk="})
    assert (stored["metadata"].get("labels"), stored["metadata"]["annotations"]) == (None, {"kept": "yes"})


async def test_update_that_would_remove_unread_fields_is_refused_with_the_remedy(plane: ControlPlane) -> None:
    kind = Kind(WIDGETS, transform=lambda found: {**found, "spec": {"ports": [{"port": 80}]}})

    async def act(request: Request) -> None:
        with pytest.raises(ValueError, match=r"without metadata\.resourceVersion.*call apply or patch"):
            await request.update(WIDGETS, Unversioned(metadata={"name": "one"}, spec=Spec(size=2)))
        found = await request.get()
        assert found is not None
        found["spec"]["ports"] = [{"port": 81}]
        with pytest.raises(ValueError, match=r"spec\.ports is a list.*or call patch"):
            await request.update(kind, found)

    plane.create(widget("one", ports=[{"port": 80, "other": 1}]))
    await once(plane, act, kind=kind)
    assert plane.get(WIDGETS, "one")["spec"]["ports"] == [{"port": 80, "other": 1}]


async def test_status_is_applied_and_updated(plane: ControlPlane) -> None:
    async def act(request: Request) -> None:
        body = {"kind": "Widget", "metadata": {"name": "one"}, "status": {"applied": True}}
        await request.apply(WIDGETS, body, subresource="status")
        found = await request.get()
        assert found is not None
        assert found["status"] == {"applied": True}
        await request.update(WIDGETS, {**found, "spec": {}, "status": {"updated": True}}, subresource="status")
        await request.set_condition("Ready", "True", "Done", observed_generation=7)

    plane.create(widget("one", size=1))
    await once(plane, act)
    stored = plane.get(WIDGETS, "one")
    assert (stored["spec"], stored["status"]["updated"]) == ({"size": 1}, True)
    assert [condition["observedGeneration"] for condition in stored["status"]["conditions"]] == [7]


async def test_status_is_not_written_to_another_object_that_has_the_name_now(plane: ControlPlane) -> None:
    async def act(request: Request) -> None:
        assert await request.get() is not None
        plane.delete(WIDGETS, "one")
        plane.create(widget("one", size=2))
        with pytest.raises(Conflict):
            await request.patch_status({"size": 1})

    plane.create(widget("one", size=1))
    await once(plane, act)
    assert "status" not in plane.get(WIDGETS, "one")


async def test_status_is_merged_into_that_of_an_object_that_has_changed_since(plane: ControlPlane) -> None:
    async def act(request: Request) -> None:
        assert await request.get() is not None
        plane.patch(WIDGETS, "one", {"status": {"size": 1, "by": "another"}}, subresource="status")
        await request.patch_status({"size": 2})

    plane.create(widget("one"))
    await once(plane, act)
    assert plane.get(WIDGETS, "one")["status"] == {"size": 2, "by": "another"}


async def test_status_of_a_kind_without_the_subresource_names_the_definition(milo_sandbox: MiloSandbox) -> None:
    """An API server says that the object does not exist, which is there."""
    (plane,) = milo_sandbox.create_control_planes("no-status")
    version = {name: field for name, field in DEFINITION["spec"]["versions"][0].items() if name != "subresources"}
    plane.install({**DEFINITION, "spec": {**DEFINITION["spec"], "versions": [version]}})
    plane.create(widget("one"))

    async def act(request: Request) -> None:
        body = {"kind": "Widget", "metadata": {"name": "one"}, "status": {}}
        found = await request.get()
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: request.patch_status({"a": 1}),
            lambda: request.set_condition("Ready", "True", "Done"),
            lambda: request.apply(WIDGETS, body, subresource="status"),
            lambda: request.update(WIDGETS, found, subresource="status"),
        ]
        for call in calls:
            with pytest.raises(NotFound, match=r'example\.com "one" not found; .*lacks `subresources: {status: {}}`'):
                await call()
        with pytest.raises(NotFound, match=r'"other" not found$'):
            await request.patch(WIDGETS, "other", {"spec": {}})

    await once(plane, act)


async def test_dry_run_returns_the_result_and_stores_nothing(plane: ControlPlane) -> None:
    async def act(request: Request) -> None:
        body = {"kind": "ConfigMap", "metadata": {"name": "made"}}
        created = await request.create("v1/configmaps", body, dry_run=True)
        assert created["metadata"]["uid"]
        await request.apply("v1/configmaps", body, dry_run=True)
        found = await request.get()
        assert found is not None
        updated = await request.update(WIDGETS, {**found, "spec": {"size": 2}}, dry_run=True)
        patched = await request.patch(WIDGETS, "one", {"spec": {"size": 3}}, dry_run=True)
        assert (updated["spec"], patched["spec"]) == ({"size": 2}, {"size": 3})
        await request.delete(WIDGETS, "one", dry_run=True)
        assert await request.get() == found
        assert request.writes == {}

    plane.create(widget("one", size=1))
    await once(plane, act)
    assert plane.get(WIDGETS, "one")["spec"] == {"size": 1}
    assert plane.find("v1/configmaps", "made") is None


@pytest.mark.parametrize(
    ("limit", "value"),
    [("milo_discovery.cluster_api.RESPONSE_LIMIT", 8_000), ("milo_kube.reflect.wire._MOST_VALUES", 60)],
)
async def test_list_of_large_objects_is_read_in_smaller_pages(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(limit, value)

    async def act(request: Request) -> Any:
        return await request.read_list("v1/configmaps", "default")

    for number in range(7):
        plane.create("v1/configmaps", {"metadata": {"name": f"c{number}"}, "data": {"large": 2_000 * "x"}})
    plane.create(widget("one"))
    found = await once(plane, act)
    assert [one["metadata"]["name"] for one in found] == [f"c{number}" for number in range(7)]


@pytest.mark.parametrize(
    ("limit", "value", "words"), [("_MOST_OBJECTS", 4, "4 of these"), ("_MOST_BYTES", 1_000, "1000 bytes of these")]
)
async def test_list_of_the_api_server_with_too_many_objects_is_an_error(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, words: str
) -> None:
    monkeypatch.setattr("milo_discovery.cluster_api._PAGE", 2)
    monkeypatch.setattr(f"milo_discovery.cluster_api.{limit}", value)

    async def act(request: Request) -> Any:
        with pytest.raises(ClusterApiError, match=f"has more than {words} objects"):
            await request.read_list("v1/configmaps", "default")

    for number in range(5):
        plane.create("v1/configmaps", {"metadata": {"name": f"c{number}"}})
    plane.create(widget("one"))
    await once(plane, act)


@pytest.mark.parametrize("values", [[[] for _ in range(300)], [1] * 300])
async def test_response_with_too_many_values_is_an_error(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, values: list[Any]
) -> None:
    """Found by a reader: one API server whose responses have 700,000 values blocked the event loop for seconds."""
    monkeypatch.setattr("milo_kube.reflect.wire._MOST_VALUES", 100)

    async def act(request: Request) -> Any:
        with pytest.raises(ClusterApiError, match="the response has more than 150000 values"):
            await request.read_list(WIDGETS, "default")

    plane.create({**widget("one"), "values": values})
    await once(plane, act)


async def test_brackets_in_texts_are_no_values(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milo_kube.reflect.wire._MOST_VALUES", 100)

    async def act(request: Request) -> Any:
        return await request.read_list("v1/configmaps", "default")

    plane.create("v1/configmaps", {"metadata": {"name": "many"}, "data": {"brackets": 300 * "[{"}})
    plane.create(widget("one"))
    [found] = await once(plane, act)
    assert found["data"] == {"brackets": 300 * "[{"}


async def test_list_of_the_api_server_needs_no_cache_and_reads_all_pages(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milo_discovery.cluster_api._PAGE", 2)

    async def act(request: Request) -> Any:
        selected = Kind("v1/configmaps", selector="number=1")
        return (
            await request.read_list("v1/configmaps", "default"),
            await request.read_list(selected),
            await request.read_list("v1/configmaps", field_selector="metadata.name=c2"),
            await request.read_list("v1/secrets", selector="none"),
        )

    for number in range(5):
        metadata = {"name": f"c{number}", "labels": {"number": f"{number}"}}
        plane.create("v1/configmaps", {"metadata": metadata})
    plane.create(widget("one"))
    every, selected, named, none = await once(plane, act)
    assert [found["metadata"]["name"] for found in every] == [f"c{number}" for number in range(5)]
    assert {(found["apiVersion"], found["kind"]) for found in every} == {("v1", "ConfigMap")}
    assert [found["metadata"]["name"] for found in (*selected, *named, *none)] == ["c1", "c2"]


async def test_list_of_the_api_server_is_limited_by_the_selectors_of_the_kind_and_of_the_call(
    plane: ControlPlane,
) -> None:
    """Found by a reader: the field selector of a kind was ignored, and a selector of the call replaced the kind's."""

    async def act(request: Request) -> Any:
        named = Kind("v1/configmaps", selector="number=1", field_selector="metadata.name=c1")
        return (
            await request.read_list(Kind("v1/configmaps", field_selector="metadata.name=c2")),
            await request.read_list(named, selector="part=a"),
            await request.read_list(named, selector="part=b", field_selector="metadata.namespace=default"),
            await request.read_list(named, field_selector="metadata.name=c2"),
        )

    for number in range(3):
        labels = {"number": f"{number}", "part": "a"}
        plane.create("v1/configmaps", {"metadata": {"name": f"c{number}", "labels": labels}})
    plane.create(widget("one"))
    found = await once(plane, act)
    assert [[one["metadata"]["name"] for one in objects] for objects in found] == [["c2"], ["c1"], [], []]


async def test_deletion_with_a_precondition_deletes_no_other_object(plane: ControlPlane) -> None:
    async def act(request: Request) -> None:
        for precondition in ({"uid": "another"}, {"resource_version": "1"}):
            with pytest.raises(Conflict):
                await request.delete(WIDGETS, "one", **precondition)  # type: ignore[arg-type]
        await request.create("v1/configmaps", {"kind": "ConfigMap", "metadata": {"name": "orphan"}}, owned=True)
        await request.delete(WIDGETS, "one", propagation="Orphan")

    plane.create(widget("one"))
    await once(plane, act)
    await eventually(lambda: plane.find(WIDGETS, "one") is None)
    assert plane.get("v1/configmaps", "orphan")["metadata"].get("ownerReferences") is None


async def test_finalizers_of_others_are_kept_if_the_cache_lacks_them(plane: ControlPlane) -> None:
    """Found by a reader: the patch replaced the list by what was cached of it, and nothing was ever removed from it."""
    kept = ("name", "namespace", "uid", "resourceVersion")
    small = Kind(WIDGETS, transform=lambda found: {"metadata": {key: found["metadata"][key] for key in kept}})
    plane.create(WIDGETS, labeled(size=1))

    async def add_and_remove(request: Request[Any]) -> tuple[bool, Any, bool]:
        is_added = await request.ensure_finalizer("example.com/own")
        added = plane.get(WIDGETS, "one")["metadata"]["finalizers"]
        return is_added, added, await request.ensure_finalizer("example.com/own")

    assert await once(plane, add_and_remove, kind=small) == (True, [FINALIZER, "example.com/own"], False)
    assert await once(plane, lambda request: request.remove_finalizer("example.com/own"), kind=small)
    assert plane.get(WIDGETS, "one")["metadata"]["finalizers"] == [FINALIZER]
    plane.patch(WIDGETS, "one", {"metadata": {"finalizers": None}})


async def test_change_of_what_a_write_returned_is_not_taken_for_what_is_stored(plane: ControlPlane) -> None:
    """Found by a reader: the finalizer was not removed, and the condition not set."""
    plane.create(labeled())
    condition = {"type": "Ready", "status": "True", "reason": "Applied", "message": "", "observedGeneration": 1}

    async def act(request: Request) -> tuple[bool, bool]:
        written = await request.patch(WIDGETS, "one", {"metadata": {"labels": {"kept": "no"}}})
        written["metadata"]["finalizers"].remove(FINALIZER)
        written["status"] = {"conditions": [condition]}
        is_set = await request.set_condition("Ready", "True", "Applied", observed_generation=1)
        return is_set, await request.remove_finalizer(FINALIZER)

    assert await once(plane, act) == (True, True)
    found = plane.get(WIDGETS, "one")
    assert "finalizers" not in found["metadata"] or not found["metadata"]["finalizers"]
    assert [one["type"] for one in found["status"]["conditions"]] == ["Ready"]
