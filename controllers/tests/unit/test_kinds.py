"""Kinds: names, paths and decoding."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic
import pytest
from kubernetes.client import V1ConfigMap, V1ObjectMeta, V1OwnerReference

from milo_controllers.errors import NotCached
from milo_controllers.kinds import Kind, document, kind_of, retyped


class Widget(msgspec.Struct):
    kind: str
    size: int = 0


def test_path_of_a_kind_in_a_named_group_begins_with_apis() -> None:
    kind = Kind("example.com/v1/widgets")
    assert kind.api_version == "example.com/v1"
    assert kind.collection() == "/apis/example.com/v1/widgets"
    assert kind.path("w", "ns", "status") == "/apis/example.com/v1/namespaces/ns/widgets/w/status"
    assert repr(kind) == "Kind('example.com/v1/widgets')"


def test_path_of_a_kind_in_the_core_group_begins_with_api() -> None:
    kind = kind_of("v1/configmaps")
    assert (kind.api_version, kind.path("x", "ns")) == ("v1", "/api/v1/namespaces/ns/configmaps/x")
    assert kind_of(kind) is kind


@pytest.mark.parametrize("resource", ["widgets", "example.com/widgets", "a/v1/b/c", "example.com/v1/", "v1/Widgets"])
def test_invalid_kind_is_refused(resource: str) -> None:
    with pytest.raises(ValueError, match="GROUP/VERSION/PLURAL"):
        Kind(resource)


@pytest.mark.parametrize("given", [None, 5, ["v1/secrets"]])
def test_kind_that_is_not_a_string_is_refused(given: Any) -> None:
    for kind_from in (Kind, kind_of):
        with pytest.raises(ValueError, match="does not name a resource: write GROUP/VERSION/PLURAL"):
            kind_from(given)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a?b", "a%2e"])
def test_object_name_that_would_change_the_request_path_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="no request is sent for the name"):
        Kind("v1/configmaps").path(name, "ns")


def test_kind_decodes_objects_to_its_model() -> None:
    raw = b'{"kind": "ConfigMap", "size": 3, "metadata": {"name": "x"}}'
    assert Kind("v1/configmaps").decode(raw)["size"] == 3
    assert Kind("v1/widgets", Widget).decode(raw) == Widget("ConfigMap", 3)
    typed = Kind("v1/configmaps", V1ConfigMap).decode(raw)
    assert typed.metadata.name == "x"


def test_request_bodies_that_are_models_are_converted_to_dictionaries() -> None:
    plain: dict[str, Any] = {"kind": "ConfigMap"}
    assert document(plain) is plain
    assert document(Widget("Widget", 1)) == {"kind": "Widget", "size": 1}
    reference = V1OwnerReference(api_version="v1", kind="Widget", name="w", uid="u")
    typed = V1ConfigMap(kind="ConfigMap", metadata=V1ObjectMeta(name="x", owner_references=[reference]))
    assert document(typed) == {
        "kind": "ConfigMap",
        "metadata": {
            "name": "x",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Widget", "name": "w", "uid": "u"}],
        },
    }


@dataclass
class Sized:
    kind: str


@dataclass
class Limited:
    spec: Widget | None = None
    limits: list[Sized | None] | None = None
    extra: dict[str, Any] | None = None


def test_fields_of_typed_bodies_that_are_none_are_left_out_and_null_of_a_dict_is_kept() -> None:
    """Found by a reader: null in a merge patch or an apply removes what the type merely does not set."""
    assert document(Limited()) == {}
    assert document(Limited(limits=[Sized("a")], extra={"a": 1})) == {"limits": [{"kind": "a"}], "extra": {"a": 1}}
    given = {"spec": None}
    assert document(given) == {"spec": None}


class Validated(pydantic.BaseModel):
    kind: str
    api_version: str | None = pydantic.Field(None, alias="apiVersion")


class Opaque:
    pass


@dataclass
class OfOpaque:
    field: Opaque


def test_kind_decodes_to_dataclasses_pydantic_models_and_mappings() -> None:
    raw = b'{"kind": "Widget"}'
    assert Kind("v1/widgets", Sized).decode(raw) == Sized("Widget")
    assert Kind("v1/widgets", dict[str, str]).decode(raw) == {"kind": "Widget"}
    decoded = Kind("v1/widgets", Validated).decode(raw)
    assert document(decoded) == {"kind": "Widget"}
    assert Kind("v1/widgets", Validated).document(raw) == {"kind": "Widget"}
    assert document(Validated(kind="Widget", apiVersion="v1")) == {"kind": "Widget", "apiVersion": "v1"}


def test_error_of_an_object_with_very_many_invalid_values_is_short() -> None:
    """Found by a reader: its text of 26 MB blocked the event loop at each retry, and was a line of the log."""

    class Numbers(pydantic.BaseModel):
        values: list[int]

    kind = Kind("v1/widgets", Numbers)
    with pytest.raises(ValueError, match=r"^120000 values are not valid$"):
        kind.decode(msgspec.json.encode({"values": ["x"] * 120_000}))
    with pytest.raises(ValueError, match=r"values\.1\n  Input should be a valid integer"):
        kind.decode(b'{"values": [1, "x"]}')


@pytest.mark.parametrize(
    ("model", "why"),
    [(str, "it has no fields"), (Opaque, "it has no fields"), (OfOpaque, "field has the type Opaque"), (5, "")],
)
def test_undecodable_model_type_is_rejected(model: Any, why: str) -> None:
    with pytest.raises(TypeError, match=f"v1/widgets: .*{why}"):
        Kind("v1/widgets", model)


def test_metadata_only_object_raises_for_fields_that_are_not_cached() -> None:
    kind = Kind("v1/widgets", metadata_only=True)
    found = kind.decode(b'{"apiVersion": "v1", "metadata": {"name": "a", "labels": {"a": "b"}}, "spec": {}}')
    metadata = {"name": "a", "labels": {"a": "b"}}
    assert (found["metadata"], found.get("metadata"), found.get("kind")) == (metadata, metadata, None)
    for read in (
        lambda: found["status"], lambda: found.get("spec"), lambda: "spec" in found, lambda: found.pop("spec", None)
    ):  # fmt: skip
        with pytest.raises(NotCached, match="metadata_only"):
            read()
    assert ("metadata" in found, "kind" in found, found.pop("kind", "")) == (True, False, "")
    assert found.pop("apiVersion") == "v1"
    assert kind.document(b"{}") == {}
    with pytest.raises(ValueError, match="metadata_only=True"):
        Kind("v1/widgets", Sized, metadata_only=True)  # type: ignore[call-overload]


def test_kind_with_an_invalid_label_selector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"v1/pods: the label selector 'app in web': expected '\('"):
        Kind("v1/pods", selector="app in web")


def test_kinds_with_different_cache_options_have_different_keys() -> None:
    kind = Kind("v1/pods", selector="app=web", field_selector="spec.nodeName=n", namespace="ns")
    assert str(kind.key) == "v1/pods (ns, app=web, spec.nodeName=n)"
    assert str(Kind("v1/pods").key) == "v1/pods"
    assert kind.key != Kind("v1/pods").key


def test_cached_part_of_an_object_is_what_its_cache_keeps() -> None:
    whole = {"metadata": {"name": "a", "managedFields": [{}]}, "spec": {"size": 1}}
    assert Kind("v1/widgets").cached_part(whole) == {"metadata": {"name": "a"}, "spec": {"size": 1}}
    assert Kind("v1/widgets", metadata_only=True).cached_part(whole) == {"metadata": {"name": "a"}}
    shrunk = Kind("v1/widgets", transform=lambda found: {**found, "spec": {}})
    assert shrunk.cached_part(whole) == {"metadata": {"name": "a"}, "spec": {}}
    marks = {"generation": 2, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    named = Kind("v1/widgets", transform=lambda found: {"metadata": {"name": found["metadata"].pop("name")}})
    assert named.cached_part({"metadata": {"name": "a", "labels": {}, **marks}}) == {"metadata": {"name": "a", **marks}}
    assert [kind.is_partial for kind in (Kind("v1/widgets"), shrunk)] == [False, True]


def test_retyped_object_has_the_fields_of_the_type() -> None:
    assert retyped(Kind("v1/widgets"), Widget, {"kind": "Widget", "size": 2, "color": "red"}) == document(
        Widget("Widget", 2)
    )
