"""Kinds: names, paths and decoding."""

from typing import Any

import msgspec
import pytest
from kubernetes.client import V1ConfigMap, V1ObjectMeta, V1OwnerReference

from milo_discovery.controllers.kinds import Kind, document, kind_of


class Widget(msgspec.Struct):
    kind: str
    size: int = 0


def test_kind_of_named_group_has_apis_paths() -> None:
    kind = Kind("example.com/v1/widgets")
    assert kind.api_version == "example.com/v1"
    assert kind.collection() == "/apis/example.com/v1/widgets"
    assert kind.path("w", "ns", "status") == "/apis/example.com/v1/namespaces/ns/widgets/w/status"
    assert repr(kind) == "Kind('example.com/v1/widgets')"


def test_kind_of_core_group_has_api_paths() -> None:
    kind = kind_of("v1/configmaps")
    assert (kind.api_version, kind.path("x", "ns")) == ("v1", "/api/v1/namespaces/ns/configmaps/x")
    assert kind_of(kind) is kind


@pytest.mark.parametrize("resource", ["widgets", "example.com/widgets", "a/v1/b/c", "example.com/v1/", "v1/Widgets"])
def test_invalid_kind_is_refused(resource: str) -> None:
    with pytest.raises(ValueError, match="GROUP/VERSION/PLURAL"):
        Kind(resource)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a?b", "a%2e"])
def test_object_name_that_would_change_the_request_path_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        Kind("v1/configmaps").path(name, "ns")


def test_kind_decodes_objects_to_its_model() -> None:
    raw = b'{"kind": "ConfigMap", "size": 3, "metadata": {"name": "x"}}'
    assert Kind("v1/configmaps").decode(raw)["size"] == 3
    assert Kind("v1/widgets", Widget).decode(raw) == Widget("ConfigMap", 3)
    typed = Kind("v1/configmaps", V1ConfigMap).decode(raw)
    assert typed.metadata.name == "x"


def test_bodies_of_all_models_are_converted_to_dictionaries() -> None:
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
