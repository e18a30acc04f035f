"""Projections keep what their paths name of any object, and skip everything else."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_kube.label_selector import Selector, parse
from milo_objects.projection import ProjectedObject, Projection, SeenObject, is_of_metadata, object_decoder

DOTTED = r"metadata.labels.kubernetes\.io/metadata\.name"
PLACEMENTS = [{"cityCodes": ["DFW"], "name": "x"}, {"name": "y"}, None]
NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {
        "name": "shop",
        "uid": "u1",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"team": "a", "kubernetes.io/metadata.name": "shop"},
        "managedFields": [{"manager": "kubectl"}],
    },
    "spec": {
        "finalizers": ["kubernetes"],
        "placements": PLACEMENTS,
    },
    "status": {"phase": "Active"},
}


def fields(paths: list[str], found: Any = NAMESPACE) -> dict[str, Any]:
    return Projection(paths).of(json.dumps(found).encode()).fields


def changed(**parts: Any) -> dict[str, Any]:
    return {**NAMESPACE, **parts}


@pytest.mark.parametrize(
    ("paths", "kept"),
    [
        ([], {}),
        (["status.phase"], {"status": {"phase": "Active"}}),
        (["status"], {"status": {"phase": "Active"}}),
        (["status.phase", "status"], {"status": {"phase": "Active"}}),
        (["status", "status.phase"], {"status": {"phase": "Active"}}),
        (["metadata.labels"], {"metadata": {"labels": NAMESPACE["metadata"]["labels"]}}),  # type: ignore[index]
        ([DOTTED], {"metadata": {"labels": {"kubernetes.io/metadata.name": "shop"}}}),
        (["metadata.annotations"], {}),
        (["spec.absent.deeper", "status.phase"], {"status": {"phase": "Active"}}),
        (["spec.placements[*].cityCodes"], {"spec": {"placements": [{"cityCodes": ["DFW"]}, {}, None]}}),
        (["spec.placements[*].cityCodes", "spec.placements[*].name"], {"spec": {"placements": PLACEMENTS}}),
        (["spec.finalizers[*]"], {"spec": {"finalizers": ["kubernetes"]}}),
    ],
)  # fmt: skip
def test_projection_has_named_fields_at_their_places(paths: list[str], kept: dict[str, Any]) -> None:
    assert fields(paths) == kept


@pytest.mark.parametrize("value", [b'"\xff"', b"1e999", b"1" * 5000, b'{"\xff":1}'])
@pytest.mark.parametrize("paths", [["data"], ["data", "spec.a.b"]], ids=["strictly", "loosely"])
def test_fields_that_cannot_be_decoded_are_refused_at_once(value: bytes, paths: list[str]) -> None:
    """Readers of all clusters decode them later."""
    decoder = object_decoder(paths, Selector())
    found = decoder.object(b'{"metadata":{"name":"a","uid":"u"},"spec":[],"data":{"a":%s}}' % value)
    assert found is not None
    assert found.problem
    assert found.projected is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T05:04:05+02:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
    ],
)
def test_times_can_be_compared(text: str, expected: datetime | None) -> None:
    raw = {"metadata": {"name": "a", "creationTimestamp": text, "deletionTimestamp": text}}
    found = Projection([]).of(json.dumps(raw).encode())
    assert (found.created_at, found.deletion_requested_at) == (expected, expected)


def test_projection_has_identity_of_every_object() -> None:
    found = Projection([]).of(json.dumps(NAMESPACE).encode())

    assert (found.namespace, found.name, found.uid, found.version, found.generation) == ("", "shop", "u1", "7", 2)
    assert found.place == ("", "shop")
    assert found.created_at is not None
    assert found.created_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert found.deletion_requested_at is None


@pytest.mark.parametrize(
    ("paths", "differs"),
    [
        (["spec.placements[*].cityCodes"], changed(spec="text")),
        (["spec.placements[*].cityCodes"], changed(spec={"placements": {"cityCodes": 1}})),
        (["spec.placements.cityCodes"], changed(spec={"placements": [1]})),
        (["status.phase"], changed(status=[])),
        (["status.phase"], changed(metadata={"name": "shop", "creationTimestamp": "soon"})),
        (["status.phase"], changed(metadata={"name": "shop", "generation": "two"})),
    ],
)
def test_field_of_another_type_than_its_path_says_is_absent(paths: list[str], differs: dict[str, Any]) -> None:
    found = Projection(paths).of(json.dumps(differs).encode())

    assert found.name == "shop"
    assert found.fields in ({}, {"status": {"phase": "Active"}})


def test_elements_of_other_types_keep_places_of_others() -> None:
    placements = [{"cityCodes": ["DFW"]}, 4, None, {"name": "y"}]

    kept = fields(["spec.placements[*].cityCodes"], changed(spec={"placements": placements}))

    assert kept == {"spec": {"placements": [{"cityCodes": ["DFW"]}, {}, None, {}]}}


def test_field_of_another_type_changes_nothing_else() -> None:
    whole, loose = (Projection(["status.phase", "spec.placements[*].cityCodes", "extra.a"]) for _ in range(2))
    text = json.dumps({"extra": {}, **NAMESPACE}, indent=1)
    assert whole.of(text.encode()).content == loose.of(f" {text}".replace('"extra": {}', '"extra": 1').encode()).content


@pytest.mark.parametrize("element", ["1", "[]", "{}", '{"b":[1]}', '{"b":[{},{}]}', "null"])
@pytest.mark.parametrize("first", ["", "1,"], ids=["strictly", "loosely"])
def test_object_with_too_many_elements_is_invalid(element: str, first: str) -> None:
    """Each element took some microseconds: an API server stopped the event loop for seconds."""
    decoder = object_decoder(["spec.a[*].b[*].c"], Selector())
    text = '{"metadata":{"name":"x","uid":"u"},"spec":{"a":[%s%s]}}'
    many = decoder.object((text % (first, ",".join([element] * 20_001))).encode())
    assert many is not None
    assert many.problem == "more than 20000 elements in the lists of its paths"
    few = decoder.object((text % (first, ",".join([element] * 6_000))).encode())
    assert few is not None
    assert not few.problem


@pytest.mark.parametrize("found", [{}, {"metadata": None}, {"metadata": {"name": 4}}])
def test_object_without_name_is_not_projected(found: dict[str, Any]) -> None:
    with pytest.raises(msgspec.DecodeError):
        fields(["status.phase"], found)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ([""], "is not the path of a field"),
        (["a..b"], "is not the path of a field"),
        (["a."], "is not the path of a field"),
        (["a[0]"], "is not the path of a field"),
        (["[*].a"], "is not the path of a field"),
        (["metadata"], "changes with each write: name its fields"),
        (["metadata.resourceVersion"], "is kept of every object: leave it out"),
        (["a.b", "a[*].c"], r"'a\[\*\].c': one path has it as an object, and another one as a list"),
        (["a[*].c", "a.b"], "'a.b': one path has it as an object, and another one as a list"),
    ],
)
def test_unusable_path_is_refused_with_its_remedy(paths: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Projection(paths)


def test_fields_that_are_not_named_are_skipped_undecoded() -> None:
    unreadable = b'{"metadata":{"name":"shop"},"spec":{"size":1e999999},"status":{"phase":"Active","n":[1e999999]}}'
    with pytest.raises(msgspec.ValidationError, match="out of range"):
        msgspec.json.decode(unreadable)

    assert Projection(["status.phase"]).of(unreadable).fields == {"status": {"phase": "Active"}}


def test_paths_of_metadata_are_told_apart() -> None:
    assert is_of_metadata("metadata.labels")
    assert is_of_metadata("metadata")
    assert not is_of_metadata("metadatas.labels")


# --- equality ---


def test_change_of_fields_that_are_not_named_leaves_objects_equal() -> None:
    projection = Projection(["status.phase"])
    metadata = {**NAMESPACE["metadata"], "resourceVersion": "8", "generation": 3}  # type: ignore[dict-item]
    before = projection.of(json.dumps(NAMESPACE).encode())

    assert projection.of(json.dumps(changed(metadata=metadata, spec={})).encode()).equals(before)


@pytest.mark.parametrize(
    "differs",
    [
        changed(status={"phase": "Terminating"}),
        changed(metadata={**NAMESPACE["metadata"], "uid": "u2"}),  # type: ignore[dict-item]
        changed(metadata={**NAMESPACE["metadata"], "deletionTimestamp": "2026-02-02T03:04:05Z"}),  # type: ignore[dict-item]
        changed(metadata={**NAMESPACE["metadata"], "creationTimestamp": "2026-02-02T03:04:05Z"}),  # type: ignore[dict-item]
    ],
)
def test_change_of_named_field_or_identity_makes_objects_differ(differs: dict[str, Any]) -> None:
    projection = Projection(["status.phase"])

    assert not projection.of(json.dumps(differs).encode()).equals(projection.of(json.dumps(NAMESPACE).encode()))


# --- the decoder ---


def seen(found: dict[str, Any], selector: str = "", paths: tuple[str, ...] = ()) -> SeenObject | None:
    return object_decoder(paths, parse(selector)).object(json.dumps(found).encode())


@pytest.mark.parametrize(
    ("selector", "is_selected"),
    [("", True), ("team=a", True), ("team", True), ("!team", False), ("team in (b)", False)],
)
def test_decoder_tells_objects_outside_of_selector(selector: str, is_selected: bool) -> None:
    found = seen(NAMESPACE, selector)

    assert found is not None
    assert (found.name, found.uid, found.version, found.problem) == ("shop", "u1", "7", "")
    assert (found.projected is not None) is is_selected


def test_decoder_evaluates_selector_on_object_without_labels() -> None:
    found = seen({"metadata": {"name": "bare"}}, "!team")

    assert found is not None
    assert found.projected is not None


@pytest.mark.parametrize("names", [{"name": "n" * 1025}, {"name": "a", "namespace": "n" * 1024}], ids=range(2))
def test_object_with_a_very_long_name_has_a_problem(names: dict[str, str]) -> None:
    found = seen({"metadata": {"uid": "u", "resourceVersion": "1", **names}})

    assert found is not None
    assert (found.uid, found.projected) == ("u", None)
    assert found.problem == "its name and namespace take more than 1024 bytes"
    assert len(found.name + found.namespace) < 256


def test_decoder_names_malformed_object_with_its_namespace() -> None:
    found = seen({"metadata": {"name": "shop", "namespace": "web", "uid": "u", "labels": {"team": 4}}}, "team=a")

    assert found is not None
    assert (found.namespace, found.name, found.uid, found.projected) == ("web", "shop", "u", None)
    assert "Expected `str`" in found.problem


# --- any object ---

KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
PATHS = st.lists(
    st.lists(KEYS, min_size=1, max_size=4).flatmap(
        lambda keys: st.tuples(*(st.sampled_from([key, f"{key}[*]"]) for key in keys)).map(".".join)
    ),
    max_size=4,
)


def expected(paths: list[list[str]], value: Any) -> Any:
    """Return the named parts of a value by the definition of a projection; None if it has none of them."""
    if [] in paths:
        return value
    if any(path[0] == "*" for path in paths):
        if not isinstance(value, list):
            return None
        rest = [path[1:] for path in paths]
        return [None if element is None else _or_empty(expected(rest, element)) for element in value]
    if not isinstance(value, dict):
        return None
    kept = {
        key: part
        for key in {path[0] for path in paths}
        if key in value
        for part in [expected([path[1:] for path in paths if path[0] == key], value[key])]
        if part is not None or [key] in paths
    }
    return kept or None


def _or_empty(found: Any) -> Any:
    return {} if found is None else found


@given(PATHS, VALUES)
def test_projection_of_any_value_is_what_its_paths_define(paths: list[str], value: Any) -> None:
    steps = [path.replace("[*]", ".*").split(".") for path in paths]
    for path in steps:
        while path[-1] == "*":
            path.pop()
    try:
        projection = Projection([f"top.{path}" for path in paths])
    except ValueError as error:
        assert "one path has it as an object" in str(error)  # noqa: PT017
        return
    raw = json.dumps({"metadata": {"name": "x"}, "top": value, "more": value}).encode()

    found = projection.of(raw).fields

    assert found == (expected([["top", *path] for path in steps], {"top": value}) or {})
    assert projection.of(raw).equals(projection.of(json.dumps({"top": value, "metadata": {"name": "x"}}).encode()))


@pytest.mark.parametrize("content", [b'{"a":1}', b'{"a":"' + b"x" * 100 + b'"}'], ids=["short", "long"])
def test_object_with_a_digest_can_be_compared(content: bytes) -> None:
    found = ProjectedObject("", "a", "u", content)
    digested = found.digested()
    assert len(digested.content) < 100
    assert digested.digested() == digested
    assert found.equals(digested)
    assert digested.equals(found)
    assert not digested.equals(ProjectedObject("", "a", "u", content.replace(b"a", b"b")))
