"""Arbitrary data from an API server: the daemon continues, and clients receive what they can decode."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milo_discovery import EventType
from milo_discoveryd.sources.kind import SourceKind
from tests.tooling.fuzz import chain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(("9" * 5000, "a?b#c", "..", "%2e", "9999-12-31T23:59:59Z", "-", "True")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
PATHS = (
    ("metadata",),
    *(("metadata", field) for field in ("name", "uid", "resourceVersion", "labels", "annotations")),
    *(("metadata", field) for field in ("deletionTimestamp", "creationTimestamp", "namespace", "ownerReferences")),
    ("metadata", "labels", "meta.datumapis.com/project-uid"),
    ("metadata", "annotations", "example.com/a"),
    ("spec",),
    ("spec", "ownerRef"),
    ("spec", "ownerRef", "kind"),
    ("spec", "ownerRef", "name"),
    ("spec", "host"),
    ("spec", "port"),
    ("spec", "consumerProjectRef"),
    ("spec", "consumerProjectRef", "name"),
    ("spec", "suspended"),
    ("status",),
    ("status", "phase"),
    ("status", "serviceName"),
    ("status", "conditions"),
    *(("status", "conditions", 0, field) for field in ("type", "status", "message", "reason", "lastTransitionTime")),
)


def document(name: str = "alpha") -> dict[str, Any]:
    """Return an object that every mode engages: each mode reads its own fields of the object."""
    conditions = [{"type": kind, "status": "True", "message": "m"} for kind in ("Ready", "ControlPlaneReady")]
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "7",
            "labels": {"env": "prod"},
            "annotations": {"example.com/a": "b"},
        },
        "spec": {
            "ownerRef": {"kind": "Organization", "name": "acme"},
            "host": f"{name}.example.com",  # clusters have different addresses
            "port": 6443,
            "consumerProjectRef": {"name": name},
        },
        "status": {"conditions": conditions, "phase": "Active", "serviceName": chain.SERVICE},
    }


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    made: Any = document()
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return made  # type: ignore[no-any-return]


def _with(made: Any, path: tuple[str | int, ...], text: str) -> dict[str, Any]:
    """Put the text at a path; where a list or a mapping is expected, into a condition's message and a label."""
    *outer, last = path
    inner = made
    for step in outer:
        inner = inner[step]
    match inner.get(last) if isinstance(inner, dict) else inner[last]:
        case dict() as mapping if last in ("labels", "annotations"):
            mapping["example.com/large"] = text
        case dict() | list():
            made["status"]["conditions"][-1]["message"] = text
        case _:
            inner[last] = text
    return made  # type: ignore[no-any-return]


def lines(kind: str, *documents: dict[str, Any]) -> bytes:
    return b"\n".join(msgspec.json.encode({"type": kind, "object": value}) for value in documents)


@pytest.mark.parametrize("mode", chain.KINDS, ids=lambda mode: type(mode).__name__)
@pytest.mark.parametrize("streaming", [True, False])
def test_objects_of_the_fuzz_tests_are_engaged_and_disengaged_if_they_are_valid(
    mode: SourceKind, streaming: bool
) -> None:
    """Valid data is served. Otherwise, the tests with invalid data would prove nothing."""
    found = msgspec.json.encode(document())
    page = msgspec.json.encode({"metadata": {"resourceVersion": "9"}, "items": [document(), document("beta")]})
    listed = lines("ADDED", document(), document("beta"))
    outcome = chain.run(chain.Script(listed, lines("DELETED", document()), found, page), mode, streaming=streaming)
    assert {(event.type, event.cluster.name) for event in outcome.events} == {
        (kind, name) for kind in (EventType.ENGAGED, EventType.DISENGAGED) for name in ("alpha", "beta")
    }
    assert outcome.engaged == []


@pytest.mark.parametrize("mode", chain.KINDS, ids=lambda mode: type(mode).__name__)
@settings(max_examples=60)
@given(path=st.sampled_from(PATHS), value=JSON, streaming=st.booleans(), where=st.integers(0, 2))
def test_object_with_an_arbitrary_field_does_not_affect_other_objects(
    mode: SourceKind, path: tuple[str | int, ...], value: Any, streaming: bool, where: int
) -> None:
    odd, sound = changed(path, value), document("beta")
    listed = lines("ADDED", *((odd, sound) if where == 0 else (document(), sound)))
    watched = lines("MODIFIED", odd) if where == 1 else lines("DELETED", odd)
    page = {"metadata": {"resourceVersion": "9"}, "items": [odd, sound]}
    script = chain.Script(listed, watched, msgspec.json.encode(odd), msgspec.json.encode(page))
    outcome = chain.run(script, mode, streaming=streaming)
    assert "beta" in {event.cluster.name for event in outcome.events}
    for event in outcome.events:
        assert event.cluster.endpoint.startswith("https://")


@pytest.mark.parametrize("mode", chain.KINDS, ids=lambda mode: type(mode).__name__)
@pytest.mark.parametrize("field", [*PATHS, ("status", "conditions", 1, "message")], ids=str)
def test_field_of_five_megabytes_does_not_affect_other_objects(mode: SourceKind, field: tuple[str | int, ...]) -> None:
    large = "x" * 5_000_000
    odd = document()
    odd["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    odd["status"]["conditions"].append({"type": "ResourceCleanup", "status": "False", "message": "m"})
    listed = lines("ADDED", _with(odd, field, large), document("beta"))
    outcome = chain.run(chain.Script(listed), mode)
    assert "beta" in {event.cluster.name for event in outcome.events}


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=40), min_size=4, max_size=4), st.booleans())
def test_daemon_survives_arbitrary_bytes_from_an_api_server(parts: list[bytes], streaming: bool) -> None:
    listed, watched, found, page = parts
    chain.run(chain.Script(listed, watched, found, page), chain.KINDS[0], streaming=streaming)


def test_daemon_survives_resource_version_of_5000_digits_and_object_name_invalid_in_paths() -> None:
    for odd in (changed(("metadata", "resourceVersion"), "9" * 5000), changed(("metadata", "name"), "a?b#c")):
        script = chain.Script(lines("ADDED", odd, document("beta")), lines("DELETED", odd), b"", None)
        outcome = chain.run(script, chain.KINDS[1])
        assert "beta" in {event.cluster.name for event in outcome.events}
