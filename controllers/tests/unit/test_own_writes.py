"""Own writes that caches do not contain yet."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest

from milo_controllers import own_writes, write_holds
from milo_controllers.kinds import CacheKey
from milo_controllers.object_cache import CachedObject, ObjectCache
from milo_controllers.own_writes import OwnWrites, Write, is_seen, matches
from milo_controllers.work_queue import ObjectKey
from milo_controllers.write_holds import WriteHolds
from milo_kube.reflect.messages import DeletionReported, ListEnded, ObjectChanged

RESOURCE = "v1/widgets"


class Informer(NamedTuple):
    key: CacheKey
    cache: ObjectCache


def informer(**options: str) -> Informer:
    found = Informer(CacheKey(RESOURCE, **options), ObjectCache())
    found.cache.apply(ListEnded())
    return found


def written(name: str = "a", version: str = "5", *, uid: str = "u", **labels: str) -> Write:
    metadata: dict[str, Any] = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": version}
    if labels:
        metadata["labels"] = labels
    found = Write.of_response(RESOURCE, {"metadata": metadata})
    assert found is not None
    return found


def put(
    informer: Informer, version: str, *, name: str = "a", uid: str = "u", settling: OwnWrites | None = None
) -> None:
    raw = msgspec.json.encode({})
    for change in informer.cache.apply(ObjectChanged(CachedObject(name, "ns", uid, version, raw))):
        if settling is not None:
            settling.changed(informer, change)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"metadata": {"name": "a"}},
        {"kind": "Status", "metadata": {}},
        {"metadata": {"name": "a", "resourceVersion": 5}},
        {"metadata": {"name": "a", "resourceVersion": ""}},
        {"metadata": {"name": "a", "resourceVersion": "5", "uid": []}},
        {"metadata": {"name": "a", "resourceVersion": "5", "labels": {"a": []}}},
    ],
)
def test_response_that_is_no_valid_object_is_not_recorded_as_a_write(answer: dict[str, Any]) -> None:
    assert Write.of_response(RESOURCE, answer) is None


def test_write_is_seen_when_the_cache_has_its_version_or_a_newer_version() -> None:
    cache = informer()
    assert not is_seen(written(), cache)
    for version, seen in (("4", False), ("5", True), ("10", True)):
        put(cache, version)
        assert is_seen(written(), cache) is seen


def test_write_with_an_opaque_version_is_seen_when_the_cache_has_that_version() -> None:
    cache = informer()
    for version, seen in (("x", False), ("y", True)):
        put(cache, version)
        assert is_seen(written(version="y"), cache) is seen


def test_write_is_seen_after_the_written_object_was_replaced() -> None:
    cache = informer()
    put(cache, "4", uid="former")
    assert not is_seen(written(), cache)
    put(cache, "9", uid="next")
    assert is_seen(written(), cache)


def test_own_deletion_is_observed_when_the_object_is_absent_or_replaced() -> None:
    cache, deletion = informer(), Write(RESOURCE, ("ns", "a"), "u", "")
    assert is_seen(deletion, cache)
    put(cache, "5")
    assert not is_seen(deletion, cache)
    put(cache, "6", uid="next")
    assert is_seen(deletion, cache)


@pytest.mark.parametrize("selector", ["", "app=web"])
def test_own_deletion_of_what_a_cache_has_not_received_yet_is_awaited(selector: str) -> None:
    own, cache, settled = OwnWrites(), informer(selector=selector), list[str]()
    changed = written(version="6", app="web")
    deletion = Write.of_deletion(RESOURCE, ("ns", "a"), "", Write.of_deletion(RESOURCE, ("ns", "a"), "u", changed))
    unmatched = Write.of_deletion(RESOURCE, ("ns", "a"), "u", written(version="6"))
    assert own.hold([deletion], [cache], lambda: settled.append("a"))
    assert (own.hold([unmatched], [cache], list) is None) is bool(selector)
    put(cache, "5", settling=own)
    assert not settled
    for change in cache.cache.apply(DeletionReported("a", "u", "ns")):
        own.changed(cache, change)
    assert settled == ["a"]
    assert Write.of_deletion(RESOURCE, ("ns", "a"), "another", changed) == Write(RESOURCE, ("ns", "a"), "another", "")


@pytest.mark.parametrize("selector", ["", "app=web"])
def test_own_deletion_that_a_cache_has_received_is_not_awaited(selector: str) -> None:
    own, cache = OwnWrites(), informer(selector=selector)
    own.reconcile_began()
    put(cache, "5", settling=own)
    for change in cache.cache.apply(DeletionReported("a", "u", "ns")):
        own.changed(cache, change)
    deletion = Write.of_deletion(RESOURCE, ("ns", "a"), "u", written(version="5", app="web"))
    assert own.hold([deletion], [cache], list) is None


def test_write_whose_state_the_cache_refuses_is_not_awaited_and_the_cache_is_not_past_it() -> None:
    own, cache, settled = OwnWrites(), informer(), list[str]()
    put(cache, "4")
    assert own.hold([written()], [cache], lambda: settled.append("a"))
    for uid, version, expected in (("u", "4", []), ("", "5", []), ("u", "5", ["a"])):
        refused = CachedObject("a", "ns", uid, version, problem="transform= raised")
        for change in cache.cache.apply(ObjectChanged(refused)):
            own.changed(cache, change)
        assert settled == expected
    assert not own.is_past(written(), cache)
    put(cache, "5", settling=own)
    assert own.is_past(written(), cache)


@pytest.mark.parametrize(("version", "is_past"), [("opaque", False), ("4", False), ("6", True)])
def test_cache_with_another_object_is_past_a_write_if_that_is_newer(version: str, *, is_past: bool) -> None:
    writes, cache = OwnWrites(), informer()
    put(cache, version, uid="another")
    assert writes.is_past(written(), cache) is is_past


@pytest.mark.parametrize("selector", ["", "app=web"])
def test_cache_is_past_a_write_once_it_has_its_version_or_its_deletion(selector: str) -> None:
    writes, cache = OwnWrites(), informer(selector=selector)
    writes.reconcile_began()
    assert not writes.is_past(written(app="web"), cache)
    for version, is_past in (("4", False), ("5", True), ("6", True)):
        put(cache, version, settling=writes)
        assert writes.is_past(written(app="web"), cache) is is_past
    for change in cache.cache.apply(DeletionReported("a", "u", "ns")):
        writes.changed(cache, change)
    assert writes.is_past(written(app="web"), cache) is (not selector)
    cache.cache.clear()
    assert not writes.is_past(written(app="web"), cache)
    put(cache, "7")
    assert not writes.is_past(written(app="web"), cache)


def test_write_is_not_awaited_in_caches_that_do_not_select_the_object() -> None:
    assert is_seen(written(), informer(namespace="other"))
    assert is_seen(written(), informer(selector="app=web"))
    assert not is_seen(written(app="web"), informer(selector="app=web", namespace="ns"))
    assert is_seen(written(), Informer(CacheKey("v1/other"), ObjectCache()))
    assert is_seen(written(), Informer(CacheKey(RESOURCE), ObjectCache()))  # not listed yet


@pytest.mark.parametrize(
    ("selector", "is_awaited"),
    [
        ("metadata.name=a", True), ("metadata.name==a", True), ("metadata.name!=a", False),
        ("metadata.name=b", False), ("metadata.name!=b", True), ("spec.x=y,metadata.name!=a", False),
        ("metadata.name=a,spec.x=y", True), ("spec.x=1", True), ("metadata.name.x=a", True), ("metadata.name", True),
        (r"metadata.name=b\,a", True), ("metadata.name=a,", True), ("spec.flag=a=b", False),
        ("spec.none=y", False), ("status.none=y", False), ("spec.null.none=y", False), ("spec.none=", True),
        ("spec.none!=", False), ("spec.none!=y", True), ("spec.none=false", True), ("spec.none=0", True),
        ("none=y", True), ("status.successful=1", True), ("spec.host=a", True),
    ],
)  # fmt: skip
def test_write_is_awaited_in_caches_whose_field_selector_may_select_the_object(
    selector: str, *, is_awaited: bool
) -> None:
    """Found by a reader: no write was, and an object was reconciled again without the child that it had created."""
    cache = informer(field_selector=selector)
    found = {"metadata": {"name": "a", "resourceVersion": "5"}, "spec": {"x": 1, "flag": "a", "null": None}}
    write = Write.of_response(RESOURCE, found, [cache.key, CacheKey("v1/other", field_selector="metadata.name!=a")])
    assert write is not None
    assert is_seen(write, cache) is not is_awaited


def test_object_that_leaves_a_field_selector_and_comes_back_is_awaited() -> None:
    own, cache = OwnWrites(), informer(field_selector="spec.x=y")
    settled: list[bool] = []
    put(cache, "4")
    assert own.hold([written()], [cache], lambda: settled.append(True))
    [change] = cache.cache.apply(DeletionReported("a", "u", "ns"))
    own.changed(cache, change)
    assert settled == []
    put(cache, "5", settling=own)
    assert settled == [True]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", True), ("a", True), ("c", False), ("!a", False), ("! c", True), ("a=b", True), ("a == b", True),
        ("a!=b", False), ("c!=b", True), ("a in (x, b)", True), ("a notin (x,b)", False), ("c notin (x)", True),
        ("a=b,example.com/d=e", True), ("a=b, c", False), ("a>5", False),
    ],
)  # fmt: skip
def test_selector_matches_labels(selector: str, expected: bool) -> None:
    assert matches(selector, (("a", "b"), ("example.com/d", "e"))) is expected


def test_held_object_is_released_when_every_cache_has_every_write() -> None:
    own, first, second = OwnWrites(), informer(), informer(namespace="ns")
    settled: list[bool] = []
    assert own.hold([written(), written("b")], [first, second], lambda: settled.append(True))
    assert own
    put(first, "4", settling=own)
    put(first, "5", settling=own)
    put(second, "5", settling=own)
    put(first, "5", name="b", settling=own)
    assert settled == []
    put(second, "6", name="b", settling=own)
    assert settled == [True]
    assert not own
    put(second, "7", name="b", settling=own)
    assert settled == [True]


def test_held_object_is_released_when_an_object_that_its_reconcile_wrote_is_deleted() -> None:
    own, cache = OwnWrites(), informer()
    settled: list[bool] = []
    put(cache, "4")
    assert own.hold([written()], [cache], lambda: settled.append(True))
    [change] = cache.cache.apply(DeletionReported("a", "u", "ns"))
    own.changed(cache, change)
    assert settled == [True]


def test_writes_of_a_reconcile_that_makes_thousands_are_settled_in_linear_time() -> None:
    own, cache = OwnWrites(), informer()
    settled: list[bool] = []
    names = [str(number) for number in range(5_000)]
    assert own.hold([written(name) for name in names], [cache], lambda: settled.append(True))
    began = time.process_time()
    for name in names:
        assert not settled
        put(cache, "5", name=name, settling=own)
    assert time.process_time() - began < 1.0
    assert settled == [True]
    assert not own


def test_object_is_held_while_only_the_predecessor_of_what_its_reconcile_created_is_gone() -> None:
    own, cache = OwnWrites(), informer()
    settled: list[bool] = []
    put(cache, "4", uid="former")
    assert own.hold([written()], [cache], lambda: settled.append(True))
    [change] = cache.cache.apply(DeletionReported("a", "former", "ns"))
    own.changed(cache, change)
    assert settled == []
    put(cache, "5", settling=own)
    assert settled == [True]


@pytest.mark.parametrize(
    ("deleted", "deleted_at", "write", "is_held"),
    [
        ("u", "5", written(), False),  # the write was seen, and then the deletion
        ("u", "4", written(), False),  # one event for both, as when a write removes the last finalizer
        ("former", "4", written(), True),
        ("next", "8", written(), False),
        ("former", "x", written(version="y"), True),
    ],
)
def test_write_is_not_awaited_after_a_newer_deletion_during_the_reconcile(
    deleted: str, deleted_at: str, write: Write, is_held: bool
) -> None:
    own, cache = OwnWrites(), informer()
    own.reconcile_began()
    put(cache, deleted_at, uid=deleted)
    for change in cache.cache.apply(DeletionReported("a", deleted, "ns")):
        own.changed(cache, change)
    assert (own.hold([write], [cache], list) is not None) is is_held
    own.reconcile_ended()
    own.clear()
    assert not own


def test_write_after_which_the_selector_matches_the_object_again_is_awaited() -> None:
    own, cache = OwnWrites(), informer(selector="app=web")
    own.reconcile_began()
    put(cache, "4")
    for change in cache.cache.apply(DeletionReported("a", "u", "ns")):
        own.changed(cache, change)
    assert not own.hold([written(version="4", app="web")], [cache], list)
    assert own.hold([written(app="web")], [cache], list)


def test_recorded_deletions_are_discarded_when_the_last_reconcile_ends() -> None:
    own, cache = OwnWrites(), informer()
    own.reconcile_began()
    put(cache, "5")
    for change in cache.cache.apply(DeletionReported("a", "u", "ns")):
        own.changed(cache, change)
    own.reconcile_ended()
    assert not own
    assert own.hold([written()], [cache], list)


def test_recorded_deletions_are_kept_until_the_last_running_reconcile_ends() -> None:
    own, cache = OwnWrites(), informer()
    own.reconcile_began()
    own.reconcile_began()
    put(cache, "5")
    for change in cache.cache.apply(DeletionReported("a", "u", "ns")):
        own.changed(cache, change)
    own.reconcile_ended()
    assert not own.hold([written()], [cache], list)


def test_oldest_recorded_deletion_is_evicted_beyond_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_writes, "_MAX_DELETIONS", 1)
    own, cache = OwnWrites(), informer()
    own.reconcile_began()
    for name in ("a", "b"):
        put(cache, "5", name=name)
        for change in cache.cache.apply(DeletionReported(name, "u", "ns")):
            own.changed(cache, change)
    assert own.hold([written("a")], [cache], list)
    assert not own.hold([written("b")], [cache], list)


def test_object_is_not_held_if_caches_already_contain_the_writes_of_its_reconcile() -> None:
    own, cache = OwnWrites(), informer()
    put(cache, "5")
    assert not own.hold([written()], [cache], list)
    settled: list[str] = []
    own.hold([written("b"), written("c")], [cache], lambda: settled.append("a"))
    own.clear()
    assert not own
    assert settled == ["a"]  # its timer would keep the caches of a disengaged cluster


async def test_write_that_a_cache_received_too_late_does_not_end_a_later_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    own, cache, key = OwnWrites(), informer(), ObjectKey("c", 1, "ns", "a")
    member = SimpleNamespace(own_writes=own, informers={cache.key: cache})
    released: list[ObjectKey] = []
    holds = WriteHolds("widgets", released.append)
    monkeypatch.setattr(write_holds, "WITHIN_S", 0.01)
    now = asyncio.get_running_loop().time()
    assert holds.hold(member, key, [written(version="5")], now)
    await asyncio.sleep(0.05)
    assert released == [key]
    assert not own
    monkeypatch.setattr(write_holds, "WITHIN_S", 60.0)
    assert holds.hold(member, key, [written(version="7")], now)
    put(cache, "5", settling=own)
    assert released == [key]
    put(cache, "7", settling=own)
    assert released == [key, key]


def test_writes_are_looked_for_in_the_caches_of_their_kind_only() -> None:
    own, cache, others = OwnWrites(), informer(), [Informer(CacheKey(f"v1/k{n}"), ObjectCache()) for n in range(30)]
    writes = [written(str(number)) for number in range(50_000)]
    began = time.process_time()
    held = own.hold(writes, [cache, *others], list)
    assert held
    own.give_up(held)
    assert time.process_time() - began < 1.0
    assert not own


def test_write_that_one_reconcile_stops_awaiting_is_still_awaited_by_another() -> None:
    own, cache, settled = OwnWrites(), informer(), list[str]()
    given_up = own.hold([written()], [cache], lambda: settled.append("given up"))
    assert given_up
    assert own.hold([written()], [cache], lambda: settled.append("awaited"))
    own.give_up(given_up)
    put(cache, "5", settling=own)
    assert settled == ["awaited"]


@pytest.mark.parametrize(
    ("one", "other", "is_newer"),
    [
        (written(version="6"), written(version="5"), True),
        (written(version="5"), written(version="6"), False),
        (written(version="6", uid="another"), written(version="5"), False),
        (written()._replace(version=""), written(version="5"), True),
        (written(uid="")._replace(version=""), written(uid=""), False),
    ],
)
def test_write_is_newer_if_it_has_a_later_version_of_the_same_object_or_has_deleted_it(
    one: Write, other: Write, is_newer: bool
) -> None:
    assert one.is_newer(other) is is_newer
