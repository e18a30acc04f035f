"""Writes to the store: validation, and what each write changes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_sandbox import patches
from milo_sandbox.admission import Part, Preconditions
from milo_sandbox.refusals import RefusalError
from milo_sandbox.resources import CONFIG_MAPS, NAMESPACES, PROJECTS
from milo_sandbox.store import Store


def project(name: str = "alpha", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}, "spec": {"ownerRef": {"kind": "Organization", "name": "acme"}}}


def ready(status: str = "True") -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": status,
        "reason": "Test",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def merge(store: Store, patch: dict[str, Any], *, name: str = "alpha", part: Part = Part.MAIN) -> dict[str, Any]:
    return store.modify(PROJECTS, name, lambda it: patches.merge(it, patch), part=part).document()


def refused(error: pytest.ExceptionInfo[RefusalError]) -> tuple[int, str]:
    return error.value.code, error.value.reason


def test_created_project_has_server_fields_and_no_status(store: Store) -> None:
    store.create(PROJECTS, project() | {"status": {"conditions": [ready()]}})
    found = store.read(PROJECTS, "alpha")
    uid = found["metadata"].pop("uid")
    assert len(uid) == 36
    assert found == {
        "apiVersion": "resourcemanager.miloapis.com/v1alpha1",
        "kind": "Project",
        "metadata": {
            "name": "alpha",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "generation": 1,
            "resourceVersion": "2",
        },
        "spec": {"ownerRef": {"kind": "Organization", "name": "acme"}},
    }


def test_noop_write_keeps_the_resource_version(store: Store) -> None:
    store.create(PROJECTS, project(labels={"a": "b"}))
    before = store.version
    notified: list[int] = []
    store.listen(lambda: notified.append(store.version))
    merge(store, {"metadata": {"labels": {"a": "b"}}})
    merge(store, {"metadata": {"uid": None, "creationTimestamp": "2000-01-01T00:00:00Z", "generation": 7}})
    assert (store.version, notified) == (before, [])


def test_finalizer_cannot_be_added_during_deletion(store: Store) -> None:
    store.create(PROJECTS, project(finalizers=["example.com/hold"]))
    store.delete(PROJECTS, "alpha")
    with pytest.raises(RefusalError, match="no new finalizers") as error:
        merge(store, {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}})
    assert refused(error) == (422, "Invalid")


def test_custom_resource_update_requires_a_resource_version(store: Store) -> None:
    store.create(PROJECTS, project())
    with pytest.raises(RefusalError, match="must be specified for an update") as error:
        store.replace(PROJECTS, "alpha", project())
    assert refused(error) == (422, "Invalid")
    store.create(NAMESPACES, {"metadata": {"name": "default"}})
    store.create(CONFIG_MAPS, {"metadata": {"name": "one"}, "data": {"a": "1"}}, namespace="default")
    replaced = store.replace(CONFIG_MAPS, "one", {"metadata": {"name": "one"}, "data": {"b": "2"}}, namespace="default")
    assert replaced.document()["data"] == {"b": "2"}


def test_deletion_checks_preconditions(store: Store) -> None:
    record = store.create(PROJECTS, project())
    for wrong in (Preconditions(uid="another"), Preconditions(version="1")):
        with pytest.raises(RefusalError, match="Precondition failed") as error:
            store.delete(PROJECTS, "alpha", preconditions=wrong)
        assert refused(error) == (409, "Conflict")
    assert store.delete(PROJECTS, "alpha", preconditions=Preconditions(record.uid, str(record.version)))[1]


def test_dry_run_writes_nothing(store: Store) -> None:
    before = store.version
    assert store.create(PROJECTS, project(), dry_run=True).name == "alpha"
    assert store.version == before
    assert store[PROJECTS].get("alpha") is None


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (project("Alpha"), "metadata.name"),
        (project("../evil"), "metadata.name"),
        (project("a" * 254), "metadata.name"),
        (project(""), "metadata.name"),
        (project(labels={"a b": "c"}), "metadata.labels"),
        (project(labels={"a": "b c"}), "metadata.labels"),
        (project(labels={"a": 1}), "metadata.labels.a"),
        (project(labels=[]), "metadata.labels"),
        (project(annotations={"a": None}), "metadata.annotations.a"),
        (project(annotations={"a": "x" * 300_000}), "metadata.annotations"),
        (project(finalizers=["no spaces"]), "metadata.finalizers"),
        ({"metadata": {"name": "alpha"}}, "spec"),
        ({"metadata": {"name": "alpha"}, "spec": {}}, "spec.ownerRef"),
        ({"metadata": {"name": "alpha"}, "spec": {"ownerRef": {"kind": "Person", "name": "x"}}}, "spec.ownerRef.kind"),
    ],
)
def test_validation_errors_name_the_field(store: Store, document: dict[str, Any], field: str) -> None:
    with pytest.raises(RefusalError) as error:
        store.create(PROJECTS, document)
    assert refused(error) == (422, "Invalid")
    assert field in [cause.field for cause in error.value.causes]


def test_unknown_fields_are_pruned_or_refused(store: Store) -> None:
    document = project() | {"bogus": 1}
    with pytest.raises(RefusalError, match='unknown field "bogus"') as error:
        store.create(PROJECTS, document, strict=True)
    assert refused(error) == (400, "BadRequest")
    store.create(PROJECTS, document)
    assert "bogus" not in store.read(PROJECTS, "alpha")


def test_generate_name_creates_different_names(store: Store) -> None:
    document = project() | {"metadata": {"generateName": "p-"}}
    assert store.create(PROJECTS, document).name != store.create(PROJECTS, document).name


def test_object_whose_kind_name_or_namespace_does_not_match_the_request_is_refused(store: Store) -> None:
    with pytest.raises(RefusalError, match="must be Project") as error:
        store.create(PROJECTS, project() | {"kind": "Pod"})
    assert refused(error) == (422, "Invalid")
    for wrong in ({"apiVersion": "v1"}, {"metadata": {"name": "a", "namespace": "b"}}):
        with pytest.raises(RefusalError, match="does not match") as error:
            store.create(PROJECTS, project() | wrong)
        assert refused(error) == (400, "BadRequest")
    store.create(PROJECTS, project())
    with pytest.raises(RefusalError, match="does not match the name"):
        merge(store, {"metadata": {"name": "beta"}})


def test_object_requires_its_namespace_and_is_deleted_with_it(store: Store) -> None:
    with pytest.raises(RefusalError, match='namespaces "work" not found'):
        store.create(CONFIG_MAPS, {"metadata": {"name": "one"}}, namespace="work")
    store.create(NAMESPACES, {"metadata": {"name": "work"}})
    store.create(CONFIG_MAPS, {"metadata": {"name": "one"}}, namespace="work")
    store.delete(NAMESPACES, "work")
    assert len(store[CONFIG_MAPS]) == 0


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_field = st.sampled_from(
    ("apiVersion", "kind", "metadata", "spec", "status", "name", "generateName", "labels", "annotations", "finalizers",
     "ownerRef", "conditions", "suspensions", "type", "uid", "resourceVersion", "namespace", "deletionTimestamp")
)  # fmt: skip
_nearly = st.recursive(
    _json,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_field, inner, max_size=4),
    max_leaves=12,
)


@given(created=_nearly, patch=_nearly, part=st.sampled_from(Part))
def test_arbitrary_writes_to_the_store_are_applied_or_refused(created: Any, patch: Any, part: Part) -> None:
    store = Store([PROJECTS])
    store.create(PROJECTS, project())
    for write in (
        lambda: store.create(PROJECTS, {**project("beta"), **(created if isinstance(created, dict) else {})}),
        lambda: store.modify(PROJECTS, "alpha", lambda it: patches.merge(it, patch), part=part),
        lambda: store.modify(PROJECTS, "alpha", lambda it: patch, part=part),
    ):
        before = store.snapshot()
        try:
            write()
        except RefusalError:
            assert store.snapshot() == before
    for record in store[PROJECTS]:
        assert record.document()["metadata"]["name"] == record.name
