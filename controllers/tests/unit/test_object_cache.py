"""The informer's cache: changes, stored fields, and indexes."""

import tracemalloc
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from milo_controllers.conditions import owner_reference
from milo_controllers.errors import NotCached
from milo_controllers.kinds import Kind
from milo_controllers.object_cache import (
    LARGEST_OBJECT,
    CachedObject,
    Change,
    Index,
    ObjectCache,
    OwnerReference,
    changed,
    is_named_by,
    is_terminating,
    object_decoder,
)
from milo_kube.reflect.messages import (
    DeletionReported,
    EventIgnored,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    SourceEvent,
    Unlisted,
)
from milo_kube.reflect.wire import ObjectRemoved, ObjectSeen

decode = msgspec.json.decode


def document(name: str, version: str = "1", *, color: str = "", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": version, **metadata
        },
        "data": {"color": color},
    }  # fmt: skip


def cached(name: str, version: str = "1", *, color: str = "", owner: str = "", uid: str = "") -> CachedObject:
    raw = msgspec.json.encode(document(name, version, color=color))
    owners = (OwnerReference(owner, "owner"),) if owner else ()
    return CachedObject(name, "default", uid or f"uid-{name}", version, raw, owners)


def invalid(name: str, namespace: str) -> CachedObject:
    return CachedObject(name, namespace, "", "", problem="no metadata")


def applied(cache: ObjectCache, *events: SourceEvent[CachedObject]) -> list[Change]:
    return [change for event in events for change in cache.apply(event)]


class Untold(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise self

    __repr__ = __str__


def synced(*objects: CachedObject, indexes: Mapping[str, Index] | None = None) -> ObjectCache:
    cache = ObjectCache()
    for name, index in (indexes or {}).items():
        cache.add_index(name, *index)
    applied(cache, ListStarted(), *map(Listed, objects), ListEnded())
    return cache


def names(objects: Any) -> list[str]:
    return sorted(found.name for found in objects)


def test_object_cache_is_synced_at_the_end_of_the_first_list() -> None:
    cache = ObjectCache()
    assert applied(cache, ListStarted(), Listed(cached("a"))) == [Change(None, cached("a"), False)]
    assert not cache.synced
    assert applied(cache, ListEnded()) == []
    assert cache.synced
    assert cache.get("default", "a") == cached("a")
    assert cache.get("other", "a") is None
    assert len(cache) == 1


def test_object_cache_marks_changes_and_deletions_received_by_watch_as_live() -> None:
    cache = synced(cached("a"))
    assert applied(cache, ObjectChanged(cached("a", "2"))) == [Change(cached("a"), cached("a", "2"), True)]
    [deleted] = applied(cache, DeletionReported("a", "uid-a", "default"))
    assert deleted == Change(cached("a", "2"), None, True)
    assert deleted.current == cached("a", "2")
    assert applied(cache, DeletionReported("a", "uid-a", "default")) == []


def test_deletion_of_object_with_another_uid_is_ignored() -> None:
    cache = synced(cached("a", uid="new"))
    assert applied(cache, DeletionReported("a", "old", "default")) == []
    assert len(applied(cache, DeletionReported("a", "", "default"))) == 1


def test_object_cache_relist_reports_only_differences() -> None:
    cache = synced(cached("same"), cached("changed"), cached("deleted"))
    changes = applied(cache, ListStarted(), Listed(cached("same")), Listed(cached("changed", "2")), ListEnded())
    assert changes == [
        Change(cached("changed"), cached("changed", "2"), False),
        Change(cached("deleted"), None, True),
    ]


def test_interrupted_relist_removes_no_object() -> None:
    cache = synced(cached("a"), cached("b"))
    assert applied(cache, ListStarted(), Listed(cached("a")), ListStarted(), Listed(cached("b"))) == []
    assert names(cache.values()) == ["a", "b"]


def test_object_deleted_during_relist_is_removed() -> None:
    cache = synced(cached("a"))
    assert applied(cache, ListStarted(), Listed(cached("a")), Unlisted("a", "default")) == [
        Change(cached("a"), None, False)
    ]
    assert applied(cache, Unlisted("a", "default"), ListEnded(), Unlisted("a", "default")) == []


def test_list_end_without_list_start_removes_no_object() -> None:
    cache = synced(cached("a"))
    assert applied(cache, ListEnded(), EventIgnored("unknown type")) == []
    assert len(cache) == 1


def test_invalid_object_without_a_namespace_removes_none_of_its_name() -> None:
    cache = synced(cached("a"))
    assert applied(cache, ObjectChanged(invalid("a", ""))) == []
    assert applied(cache, ListStarted(), Listed(invalid("a", "")), ListEnded()) == []
    assert cache.get("default", "a") == cached("a")
    assert applied(cache, Listed(invalid("a", ""))) == []


def test_change_to_a_state_that_is_invalid_is_reported_and_the_last_valid_state_stays() -> None:
    """Found by a reader: neither the change nor a deletion request was reconciled, and health showed nothing."""
    cache, wrong = synced(cached("a")), CachedObject("a", "default", "uid-a", "2", problem="too large")
    size, outdated = cache.size, msgspec.structs.replace(cached("a"), problem="too large")
    assert applied(cache, ObjectChanged(wrong)) == [Change(cached("a"), outdated, True)]
    assert applied(cache, ListStarted(), Listed(wrong), ListEnded()) == []
    assert applied(cache, ObjectChanged(wrong)) == [Change(outdated, outdated, True)]
    assert (cache.get("default", "a"), len(cache), cache.problem("default", "a")) == (outdated, 1, "")
    assert (cache.invalid, cache.is_filled) == ("1 of its objects cannot be cached, such as a: too large", True)
    assert cache.size > size
    assert applied(cache, Listed(cached("a"))) == [Change(outdated, cached("a"), False)]
    assert (cache.invalid, cache.size) == ("", size)
    applied(cache, ObjectChanged(wrong))
    assert applied(cache, DeletionReported("a", "uid-a", "default")) == [Change(outdated, None, True)]
    assert (cache.invalid, cache.size) == ("", 0)


@pytest.mark.parametrize("uid", ["uid-a", ""])
def test_object_is_terminating_if_its_invalid_state_is(uid: str) -> None:
    cache = synced(cached("a", color="red"), indexes={"color": Index(lambda found: [found["data"]["color"]], decode)})
    timestamp = "2026-01-01T00:00:00Z"
    wrong = CachedObject("a", "default", uid, "2", problem="too large", deletion=msgspec.json.encode(timestamp))
    [change] = applied(cache, ObjectChanged(wrong))
    assert change.new == cache.get("default", "a")
    assert change.new is not None
    assert is_terminating(change.new) is bool(uid)  # it may be another object that has this name
    expected = document("a", color="red", **({"deletionTimestamp": timestamp} if uid else {}))
    assert msgspec.json.decode(change.new.raw) == expected
    assert names(cache.indexed("color", "red")) == ["a"]


def test_deletion_of_an_object_keeps_an_invalid_one_that_has_its_name_now() -> None:
    cache = synced(CachedObject("a", "default", "new", "2", problem="too large"))
    assert applied(cache, DeletionReported("a", "old", "default")) == []
    assert cache.problem("default", "a") == "too large"


def test_invalid_object_keeps_no_state_of_another_object_that_had_its_name() -> None:
    cache = synced(cached("a", uid="old"))
    recreated = CachedObject("a", "default", "new", "2", problem="too large")
    removed = [Change(cached("a", uid="old"), None, False)]
    assert applied(cache, ListStarted(), Listed(recreated), ListEnded()) == removed
    assert (cache.get("default", "a"), cache.problem("default", "a")) == (None, "too large")
    assert applied(cache, DeletionReported("a", "new", "default")) == []
    assert (len(cache), cache.size) == (0, 0)


def test_invalid_object_is_known_to_exist_until_it_is_deleted_or_valid() -> None:
    wrong = CachedObject("b", "default", "uid-b", "1", problem="no metadata")
    cache = synced(cached("a"), wrong)
    before = cache.size
    assert (cache.get("default", "b"), cache.problem("default", "b")) == (None, "no metadata")
    assert cache.invalid == "1 of its objects cannot be cached, such as b: no metadata"
    assert not cache.is_filled
    assert (cache.problem("default", "a"), cache.problem("default", "c"), len(cache)) == ("", "", 2)
    assert applied(cache, ObjectChanged(wrong), ListStarted(), Listed(cached("a")), Listed(wrong), ListEnded()) == []
    assert (cache.problem("default", "b"), cache.size) == ("no metadata", before)
    applied(cache, ObjectChanged(cached("b", "2")))
    assert (cache.problem("default", "b"), cache.invalid, cache.is_filled) == ("", "", True)
    ends: list[list[SourceEvent[CachedObject]]] = [
        [DeletionReported("c", "uid-c", "default")],
        [ListStarted(), Listed(cached("a")), Listed(cached("b", "2")), ListEnded()],
    ]
    for events in ends:
        before = cache.size
        applied(cache, ObjectChanged(msgspec.structs.replace(wrong, name="c", uid="uid-c")))
        assert cache.problem("default", "c")
        assert applied(cache, *events) == []
        assert (cache.problem("default", "c"), cache.size) == ("", before)


def test_object_cache_lists_objects_of_one_namespace() -> None:
    cache = synced(cached("a"))
    assert names(cache.values("default")) == ["a"]
    assert names(cache.values("other")) == []


def test_owner_index_is_updated_when_objects_change() -> None:
    cache = synced(cached("a", owner="o1"), cached("b", owner="o1"), cached("c"))
    assert names(cache.owned_by("o1")) == ["a", "b"]
    applied(cache, ObjectChanged(cached("a", "2", owner="o2")), ObjectChanged(cached("d", owner="o2")))
    assert (names(cache.owned_by("o1")), names(cache.owned_by("o2"))) == (["b"], ["a", "d"])
    applied(cache, DeletionReported("b", "", "default"))
    assert names(cache.owned_by("o1")) == []


def test_index_is_updated_when_objects_change() -> None:
    color = Index(lambda found: [found["data"]["color"], found["data"]["color"]], msgspec.json.decode)
    cache = synced(cached("a", color="red"), cached("b", color="blue"), indexes={"color": color})
    assert names(cache.indexed("color", "red")) == ["a"]
    applied(cache, ObjectChanged(cached("b", "2", color="red")), ObjectChanged(cached("c", color="blue")))
    assert (names(cache.indexed("color", "red")), names(cache.indexed("color", "blue"))) == (["a", "b"], ["c"])
    applied(cache, DeletionReported("c", "", "default"))
    assert names(cache.indexed("color", "blue")) == []
    with pytest.raises(KeyError, match=r"index 'colour' does not exist \(existing indexes: 'color'\)"):
        cache.indexed("colour", "red")


@pytest.mark.parametrize("is_used_before", [False, True])
def test_object_for_which_an_index_function_returns_a_string_is_missing_only_from_that_index(
    is_used_before: bool,
) -> None:
    """What one tenant wrote failed each read of the index, in all clusters."""
    failed: list[str] = []
    cache = ObjectCache(lambda index, found, error: failed.append(f"{index} of {found.name}: {error}"))
    cache.add_index("color", lambda found: found["data"]["color"].split() if found["data"]["color"] != "odd" else "odd")
    cache.add_index("name", lambda found: [found["metadata"]["name"]])
    if is_used_before:
        assert names(cache.indexed("color", "red")) == []
    applied(cache, ObjectChanged(cached("a", color="odd")), ObjectChanged(cached("b", color="red")))
    assert names(cache.indexed("color", "red")) == ["b"]
    assert failed == ["color of a: the function returned the string 'odd'; return a list: ['odd']"]
    assert names(cache.indexed("name", "a")) == ["a"]


def test_index_function_receives_the_object_decoded_to_its_model() -> None:
    class ConfigMap(msgspec.Struct):
        data: dict[str, str]

    color = Index(lambda found: [found.data["color"]], msgspec.json.Decoder(ConfigMap).decode)
    cache = synced(cached("a", color="red"), indexes={"color": color})
    assert names(cache.indexed("color", "red")) == ["a"]


@pytest.mark.parametrize("is_used_before", [False, True])
def test_object_for_which_an_index_function_fails_is_missing_only_from_that_index(is_used_before: bool) -> None:
    failed: set[tuple[str, str, type[Exception]]] = set()
    cache = ObjectCache(lambda index, found, error: failed.add((index, found.name, type(error))))
    cache.add_index("color", lambda found: [found["data"]["colors"][found["metadata"]["name"]]])
    if is_used_before:
        assert names(cache.indexed("color", "red")) == []
    for name in ("a", "b", "c"):
        content = document(name)
        content["data"] = {"colors": {"a": "red", "c": "red"}}
        seen = msgspec.structs.replace(cached(name), raw=msgspec.json.encode(content))
        assert len(applied(cache, ObjectChanged(seen))) == 1
    for _ in range(2):
        assert names(cache.indexed("color", "red")) == ["a", "c"]
    assert failed == {("color", "b", KeyError)}
    assert len(applied(cache, DeletionReported("b", "", "default"))) == 1


def line(found: dict[str, Any], kind: str = "ADDED") -> bytes:
    return msgspec.json.encode({"type": kind, "object": found})


def decoded(found: dict[str, Any], *, metadata_only: bool = False) -> CachedObject:
    event = object_decoder(metadata_only=metadata_only).line(line(found))
    assert isinstance(event, ObjectSeen)
    return event.observation


def test_decoder_keeps_the_object_and_its_owners() -> None:
    reference = {"uid": "o1", "name": "one", "kind": "Widget", "apiVersion": "example.com/v1"}
    found = document("a", ownerReferences=[reference])
    seen = decoded(found)
    assert (seen.place, seen.uid, seen.version, seen.owners) == (
        ("default", "a"),
        "uid-a",
        "1",
        (OwnerReference("o1", "one", "example.com", "Widget"),),
    )
    assert msgspec.json.decode(seen.raw) == found


@pytest.mark.parametrize(
    ("reference", "raw", "is_named"),
    [
        (OwnerReference("present", "a"), b"{}", True),
        (OwnerReference("former", "a", "example.com", "Widget"), b'{"kind":"Widget"}', True),
        (OwnerReference("former", "a", "example.com", "Widget"), b"{}", True),
        (OwnerReference("former", "a", "example.com", "Widget"), b'{"kind":1}', True),
        (OwnerReference("former", "a", "example.com", "Gadget"), b'{"kind":"Widget"}', False),
        (OwnerReference("former", "a", "example.org", "Widget"), b'{"kind":"Widget"}', False),
    ],
)
def test_reference_is_to_the_object_or_to_a_former_one_of_its_group_and_kind(
    reference: OwnerReference, raw: bytes, is_named: bool
) -> None:
    assert is_named_by(reference, "example.com", CachedObject("a", "", "present", "1", raw)) is is_named


def test_decoder_drops_managed_fields() -> None:
    assert msgspec.json.decode(decoded(document("a", managedFields=[{"manager": "m"}])).raw) == document("a")


def test_metadata_only_decoder_drops_other_fields() -> None:
    seen = decoded(document("a", labels={"x": "y"}), metadata_only=True)
    expected = document("a", labels={"x": "y"})
    del expected["data"]
    assert msgspec.json.decode(seen.raw) == expected


def test_state_of_the_same_version_with_other_content_replaces_the_cached_one() -> None:
    """A server that was restored from a backup gives versions a second time."""
    cache = synced(cached("a", "5", color="red"))
    restored = cached("a", "5", color="blue")
    [change] = applied(cache, ListStarted(), Listed(restored), ListEnded())
    assert (change.new, cache.get("default", "a"), len(cache)) == (restored, restored, 1)
    assert cache.size == synced(restored).size


def test_list_whose_items_have_no_kind_does_not_change_what_the_watch_sent() -> None:
    """API servers send built-in objects with the kind first, and the items of their lists without it."""
    sent = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": document("a")["metadata"]}
    event = object_decoder().line(line(sent))
    assert isinstance(event, ObjectSeen)
    body = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [{"metadata": sent["metadata"]}]}
    [listed] = object_decoder().page(msgspec.json.encode(body))[1]
    assert listed is not None
    assert applied(synced(event.observation), ListStarted(), Listed(listed), ListEnded()) == []


@pytest.mark.parametrize("is_listed", [True, False])
def test_metadata_only_object_does_not_have_the_kind_of_the_representation(is_listed: bool) -> None:
    """A reference to an owner of this kind would never lead to a deletion."""
    item = document("a") | {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"}
    decoder, seen = object_decoder(metadata_only=True), decoded(item, metadata_only=True)
    if is_listed:
        body = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": [item]}
        [seen] = decoder.page(msgspec.json.encode(body))[1]
    found = Kind("v1/configmaps", metadata_only=True).decode(seen.raw)
    assert found == {"metadata": document("a")["metadata"]}
    with pytest.raises(NotCached, match="the field 'apiVersion' is not cached"):
        owner_reference(found)


def test_decoder_reports_an_invalid_object() -> None:
    seen = decoded({"metadata": {"name": "a", "namespace": "default", "uid": "u", "ownerReferences": 1}})
    assert (seen.raw, bool(seen.problem), seen.place) == (b"", True, ("default", "a"))


@pytest.mark.parametrize("has_types", [True, False])
def test_list_items_without_kind_get_the_kind_of_their_list(has_types: bool) -> None:
    found = document("a")
    item = found if has_types else {name: found[name] for name in ("metadata", "data")}
    body = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [item, {"metadata": {"name": "b"}}]}
    _, objects = object_decoder(metadata_only=False).page(msgspec.json.encode(body))
    first, second = objects
    assert msgspec.json.decode(first.raw) == found
    assert second.problem


def test_list_item_that_is_nested_too_deeply_takes_no_kind_from_other_items() -> None:
    deep = '{"metadata":{"name":"b"},"data":' + "[" * 5_000 + "]" * 5_000 + "}"
    item = {name: document("a")[name] for name in ("metadata", "data")}
    items = [msgspec.Raw(deep.encode()), item]
    body = {"apiVersion": "v1", "items": items, "kind": "ConfigMapList", "metadata": {}}
    first, second = object_decoder(metadata_only=False).page(msgspec.json.encode(body))[1]
    assert (first.name, first.problem) == ("b", "nested too deeply")
    assert msgspec.json.decode(second.raw) == document("a")


@pytest.mark.parametrize("kind", [5, None])
def test_list_item_whose_kind_is_not_a_string_does_not_affect_other_items(kind: Any) -> None:
    body = {"kind": kind, "metadata": {}, "items": [{**document("a"), "kind": kind}, document("b")]}
    page = msgspec.json.encode(body)
    first, second = object_decoder(metadata_only=False).page(page)[1]
    assert (first.name, bool(first.problem)) == ("a", True)
    assert msgspec.json.decode(second.raw) == document("b")


def test_decoder_caches_what_transform_returns() -> None:
    decoder = object_decoder(transform=lambda found: {key: found[key] for key in ("metadata", "kind")})
    event = decoder.line(line(document("a")))
    assert isinstance(event, ObjectSeen)
    assert msgspec.json.decode(event.observation.raw).keys() == {"metadata", "kind"}


def test_transform_receives_kind_and_api_version_of_a_list_that_omits_them() -> None:
    """It raised KeyError for each object, and none was reconciled."""
    decoder = object_decoder(transform=lambda found: {key: found[key] for key in ("apiVersion", "kind", "metadata")})
    item = {name: document("a")[name] for name in ("metadata", "data")}
    body = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [item]}
    [found] = decoder.page(msgspec.json.encode(body))[1]
    assert found is not None
    assert found.problem == ""
    assert decoder.line(line(document("a"))) == ObjectSeen(found)


def test_transform_that_raises_an_error_without_a_text_affects_only_its_object() -> None:
    def fail(_: object) -> dict[str, Any]:
        raise Untold

    found = document("a")
    body = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [found]}
    [listed] = object_decoder(transform=fail).page(msgspec.json.encode(body))[1]
    assert listed is not None
    assert listed.problem == "transform= raised Untold: Untold"
    assert object_decoder(transform=fail).line(line(found)) == ObjectSeen(listed)


def test_decoder_keeps_the_deletion_of_an_object_that_transform_drops() -> None:
    """Found by a reader: terminating objects of a project that is being deleted were never reconciled, and the project
    never gone."""
    decoder = object_decoder(transform=lambda found: {**found, "metadata": {"name": found["metadata"]["name"]}})
    for found in (document("a"), document("a", deletionTimestamp="2026-01-01T00:00:00Z")):
        event = decoder.line(line(found))
        assert isinstance(event, ObjectSeen)
        assert is_terminating(event.observation) == ("deletionTimestamp" in found["metadata"])


def test_change_of_an_object_whose_generation_transform_drops_is_one_of_the_generation_if_it_changed() -> None:
    decoder = object_decoder(transform=lambda found: {**found, "metadata": {"name": found["metadata"]["name"]}})
    states = []
    for generation in (1, 1, 2):
        event = decoder.line(line(document("a", generation=generation)))
        assert isinstance(event, ObjectSeen)
        states.append(event.observation)
    assert not changed("generation", Change(states[0], states[1], True))
    assert changed("generation", Change(states[1], states[2], True))


@pytest.mark.parametrize(
    ("deletion", "kept"),
    [("2026-01-01T00:00:00Z", b'"2026-01-01T00:00:00Z"'), (None, b""), (5, b""), ("x" * 100, b"")],
)
@pytest.mark.parametrize("reason", ["transform", "owners", "many owners", "kind", "nesting"])
def test_decoder_keeps_the_deletion_of_an_object_that_cannot_be_cached(deletion: Any, kept: bytes, reason: str) -> None:
    decoder = object_decoder(transform=(lambda found: found["spec"]) if reason == "transform" else None)
    owners: Any = {"owners": 5, "many owners": [{"uid": "u", "name": "n"}] * 3_000}.get(reason)
    found = document("a", deletionTimestamp=deletion, ownerReferences=owners)
    found["kind"] = 5 if reason == "kind" else ""
    if reason == "nesting":
        found["data"] = msgspec.Raw(b"[" * 5_000 + b"]" * 5_000)
    body = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [found]}
    [seen] = decoder.page(msgspec.json.encode(body))[1]
    assert seen is not None
    assert seen.problem
    assert (seen.uid, seen.deletion) == ("uid-a", kept)


def test_decoder_reports_an_object_for_which_transform_raises() -> None:
    event = object_decoder(transform=lambda found: found["spec"]).line(line(document("a")))
    assert isinstance(event, ObjectSeen)
    assert event.observation.problem == "transform= raised KeyError: 'spec'"


def test_decoder_reports_an_object_for_which_transform_does_not_return_a_dict() -> None:
    event = object_decoder(transform=lambda found: found.update(spec={})).line(line(document("a")))  # type: ignore[arg-type,func-returns-value]
    assert isinstance(event, ObjectSeen)
    assert event.observation.problem == "transform= returned None, not a dict"


def test_decoder_reports_an_object_that_transform_returns_without_metadata() -> None:
    event = object_decoder(transform=lambda found: {"kind": found["kind"]}).line(line(document("a")))
    assert isinstance(event, ObjectSeen)
    assert event.observation.problem == "transform= returned the object without its metadata"


@pytest.mark.parametrize("more", ["", "\N{ROCKET}".rjust(500, "n")], ids=["ascii", "wide"])
def test_memory_of_owners_is_counted(more: str) -> None:
    def owned(number: int) -> CachedObject:
        owners = tuple(
            OwnerReference(
                f"{number}-{owner}".ljust(36),
                f"owner-{number}{more}",
                f"example-{number}{more}",
                f"Owner{owner}{number}{more}",
            )
            for owner in range(10)
        )
        return msgspec.structs.replace(cached(str(number)), owners=owners)

    tracemalloc.start()
    try:
        cache = synced(*map(owned, range(1000)))
        assert list(cache.owned_by("")) == []
        assert tracemalloc.get_traced_memory()[0] < 1.2 * cache.size
    finally:
        tracemalloc.stop()


def test_result_of_transform_is_shortened_in_its_problem() -> None:
    event = object_decoder(transform=lambda found: [found]).line(line(document("a", color="x" * 10_000)))  # type: ignore[arg-type,list-item,return-value]
    assert isinstance(event, ObjectSeen)
    assert len(event.observation.problem) == 300


def test_objects_that_a_list_lacks_are_removed_one_after_another() -> None:
    cache = synced(*(cached(name) for name in "abc"), invalid("d", "default"))
    cache.apply(ListStarted())
    cache.apply(Listed(cached("b")))
    changes = iter(cache.apply(ListEnded()))
    assert len(cache) == 4
    assert next(changes).current.name == "a"
    assert len(cache) == 3
    assert [change.current.name for change in changes] == ["c"]
    assert [found.name for found in cache.values()] == ["b"]
    assert len(cache) == 1


def test_namespaces_of_any_length_take_no_memory_once_their_objects_are_deleted() -> None:
    decoder, cache = object_decoder(), ObjectCache()
    tracemalloc.start()
    try:
        for number in range(100):
            namespace = f"{number}{'n' * 100_000}"
            found = document("a", namespace=namespace)
            event, deleted = decoder.line(line(found)), decoder.line(line(found, "DELETED"))
            assert isinstance(event, ObjectSeen)
            assert isinstance(deleted, ObjectRemoved)
            deletion = DeletionReported(deleted.name, deleted.uid, deleted.namespace)
            assert applied(cache, ObjectChanged(event.observation), deletion) == []
            assert (len(cache), cache.size) == (0, 0)
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "found",
    [
        document("n" * 1025, uid="u"),
        document("n" * 1025, uid="u", ownerReferences=5),
        document("n", namespace="n" * 1024),
    ],
    ids=range(3),
)
def test_object_with_a_very_long_name_is_reported_and_in_no_queue(found: dict[str, Any]) -> None:
    """RBAC, for example, accepts a name of any length for a role."""
    metadata, listed = found["metadata"], ObjectCache()
    _, objects = object_decoder().page(msgspec.json.encode({"kind": "List", "metadata": {}, "items": [found]}))
    event = object_decoder().line(line(found))
    assert isinstance(event, ObjectSeen)
    for seen in (event.observation, *objects):
        assert seen is not None
        assert applied(listed, ListStarted(), Listed(seen), ListEnded()) == []
        assert listed.problem(metadata["namespace"], metadata["name"]) == seen.problem
        assert listed.invalid == f"1 of its objects cannot be cached, such as {seen.name}: {seen.problem}"
        assert seen.problem == "its name and namespace take more than 1024 bytes"
        assert metadata["name"].startswith(seen.name.partition("%")[0])
        assert not listed.is_filled


def test_decoder_reports_an_object_that_is_larger_than_any_api_server_stores() -> None:
    event = object_decoder().line(line(document("a", color="x" * LARGEST_OBJECT)))
    assert isinstance(event, ObjectSeen)
    assert (event.observation.raw, event.observation.problem) == (b"", f"it is larger than {LARGEST_OBJECT} bytes")


def test_decoder_reports_an_object_with_very_many_owners() -> None:
    """Each event of a tenant's API server with a mebibyte of them blocked the event loop for most of a second."""
    owners = [{"uid": "u", "name": "n"}] * 3_000
    event = object_decoder().line(line(document("a", ownerReferences=owners)))
    assert isinstance(event, ObjectSeen)
    problem = "its ownerReferences are larger than 65536 bytes"
    assert (event.observation.raw, event.observation.problem) == (b"", problem)


def test_cache_counts_the_bytes_of_its_objects() -> None:
    cache = ObjectCache()
    cache.add_index("name", lambda found: [found["metadata"]["name"]])
    one, other = cached("a"), cached("a", "2", color="a longer color")
    sizes = []
    for event in (ObjectChanged(one), ObjectChanged(other), DeletionReported("a", "", "default"), ObjectChanged(one)):
        cache.apply(event)
        sizes.append(cache.size)
    assert sizes == [sizes[0], sizes[0] + len(other.raw) - len(one.raw), 0, sizes[0]]
    assert sizes[0] > len(one.raw)
    cache.apply(ListEnded())
    assert list(cache.indexed("name", "a"))
    cache.clear()
    assert (cache.size, cache.synced, len(cache), list(cache.indexed("name", "a"))) == (0, False, 0, [])


def test_cache_counts_the_values_of_its_indexes() -> None:
    """Thirty objects with 100,000 values each took 384 MiB, of which 27 were counted."""
    sizes, color = [], Index(lambda found: found["data"]["color"].split(), msgspec.json.decode)
    for cache in (synced(), synced(indexes={"color": color})):
        for content in ("a", "a b c d e", "a b c", "a"):
            applied(cache, ObjectChanged(cached("a", content, color=content)))
            sizes.append(cache.size)
        applied(cache, ObjectChanged(cached("a", "5", color="a b c")), DeletionReported("a", "", "default"))
        assert cache.size == 0
    assert [after - before for before, after in zip(sizes[:4], sizes[4:], strict=True)] == [0, 3 * 128, 128, 0]


def test_object_is_decoded_for_an_index_when_it_is_put_in() -> None:
    """All objects of a cluster together blocked the event loop for up to ten seconds, when an index was first used."""
    indexed: list[str] = []
    name = Index(lambda found: indexed.append(found["metadata"]["name"]) or [], msgspec.json.decode)
    cache = synced(cached("a"), cached("b"), indexes={"name": name})
    assert indexed == ["a", "b"]
    assert names(cache.indexed("name", "a")) == []
    assert indexed == ["a", "b"]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ({}, {}, {"generation"}),  # a kind without a generation
        ({"generation": 1}, {"generation": 1}, set()),
        ({"generation": 1}, {"generation": 2}, {"generation"}),
        ({"generation": 1}, {"generation": 1, "labels": {"a": "b"}}, {"labels"}),
        ({"generation": 1, "annotations": {"a": "b"}}, {"generation": 1}, {"annotations"}),
        ({"generation": 1, "labels": {"a": "b", "c": "d"}}, {"generation": 1, "labels": {"c": "d", "a": "b"}}, set()),
        (
            {"generation": 1},
            {"generation": 1, "deletionTimestamp": "2026-01-01T00:00:00Z"},
            {"generation", "labels", "annotations"},
        ),
    ],
)
def test_generation_label_and_annotation_changes_are_detected(
    old: dict[str, Any], new: dict[str, Any], parts: set[str]
) -> None:
    change = Change(decoded(document("a", **old)), decoded(document("a", "2", **new)), True)
    assert {part for part in ("generation", "labels", "annotations") if changed(part, change)} == parts  # type: ignore[arg-type]


def test_creation_deletion_and_replacement_count_as_generation_changes() -> None:
    one, other = cached("a"), cached("a", uid="other")
    for change in (Change(None, one, True), Change(one, None, True), Change(one, other, True)):
        assert changed("generation", change)


def test_index_function_that_reads_other_state_leaves_no_stale_entries() -> None:
    group = ["first"]
    cache = synced(cached("a"), cached("b"), indexes={"group": Index(lambda _: list(group), msgspec.json.decode)})
    assert len(list(cache.indexed("group", "first"))) == 2
    group[0] = "second"
    applied(cache, ObjectChanged(cached("a", "2")), DeletionReported("b", "uid-b", "default"))
    assert list(cache.indexed("group", "first")) == []
    assert [found.version for found in cache.indexed("group", "second")] == ["2"]


def test_object_with_two_references_to_one_owner_is_removed_from_the_index_of_owners() -> None:
    twice = OwnerReference("owner", "owner")
    found = cached("a")
    cache = synced(CachedObject(found.name, found.namespace, found.uid, found.version, found.raw, (twice, twice)))
    assert cache.places() == {("default", "a")}
    assert names(cache.owned_by("owner")) == ["a"]
    applied(cache, DeletionReported("a", "uid-a", "default"))
    assert names(cache.owned_by("owner")) == []
    assert cache.places() == frozenset()


@pytest.mark.parametrize(
    ("metadata", "terminating"),
    [(b"{}", False), (b'{"deletionTimestamp":null}', False), (b'{"deletionTimestamp":"2026-01-01T00:00:00Z"}', True)],
)
def test_object_is_terminating_if_its_deletion_was_requested(metadata: bytes, *, terminating: bool) -> None:
    found = CachedObject("a", "default", "uid", "1", b'{"metadata":' + metadata + b"}")
    assert is_terminating(found) is terminating
