"""Paths of resources, and keys of their objects."""

import pytest

from milo_discoveryd.model.resource import NAMES, ObjectKeys, Resource, WatchedCollection

DEPLOYMENTS = Resource("apps", "v1", "deployments", namespaced=True)
NAMESPACED = ObjectKeys(namespaced=True)
PREFIXED = ObjectKeys(prefix="milo#")
BOTH = ObjectKeys(namespaced=True, prefix="milo#")


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        (Resource("", "v1", "nodes"), "/api/v1/nodes"),
        (DEPLOYMENTS, "/apis/apps/v1/deployments"),
        (
            Resource("apps", "v1", "deployments", namespaced=True, namespace="a"),
            "/apis/apps/v1/namespaces/a/deployments",
        ),
    ],
)
def test_resource_collection_path_contains_group_and_namespace(resource: Resource, path: str) -> None:
    assert resource.path == path


def test_resource_object_path_contains_its_namespace() -> None:
    assert DEPLOYMENTS.object_path("a", "b") == "/apis/apps/v1/namespaces/a/deployments/b"
    assert Resource("", "v1", "nodes").object_path("", "b") == "/api/v1/nodes/b"


@pytest.mark.parametrize(
    ("keys", "key", "parts"),
    [
        (NAMES, "b", ("", "b")),
        (NAMESPACED, "a/b", ("a", "b")),
        (PREFIXED, "milo#b", ("", "b")),
        (BOTH, "milo#a/b", ("a", "b")),
    ],
)
def test_object_key_contains_source_namespace_and_name(keys: ObjectKeys, key: str, parts: tuple[str, str]) -> None:
    assert keys.key(*parts) == key
    assert keys.split(key) == parts


def test_object_key_without_a_name_is_empty() -> None:
    assert BOTH.key("a", "") == ""


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("a-b.c", True),
        ("a?b", False),
        ("..", False),
        ("a/b", False),
        ("", False),
        ("x" * 253, True),
        ("x" * 254, False),
    ],
)
def test_reading_an_object_requires_a_name_valid_in_a_path(name: str, readable: bool) -> None:
    assert NAMES.can_be_read(name) is readable
    assert NAMESPACED.can_be_read(f"a/{name}") is readable
    assert not NAMESPACED.can_be_read(f"../{name}")


def test_resource_query_contains_configured_selectors() -> None:
    assert DEPLOYMENTS.query == []
    selected = Resource("", "v1", "nodes", label_selector="a=b", field_selector="metadata.name=c")
    assert selected.query == [("labelSelector", "a=b"), ("fieldSelector", "metadata.name=c")]


def test_query_for_an_object_keeps_the_configured_field_selector() -> None:
    watched = WatchedCollection(Resource("", "v1", "nodes", field_selector="spec.unschedulable=false"), NAMES)
    assert watched.query_for("b") == [("fieldSelector", "metadata.name=b,spec.unschedulable=false")]
