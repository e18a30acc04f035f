"""The store's records of objects, and which observations count as newer."""

from collections.abc import Sequence

import pytest

from milo_discoveryd.model.contributions import ContributingObject, ObjectContent, ObservedObject
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.objects import store as module
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_discoveryd.objects.store import ObjectChange, ObjectRecord, ObjectStore
from tests.unit.fleet.fleets import malformed, not_ready, outside, ready

DELETED = ConfirmedDeletion("a", "u1")


def after(*items: ObservedObject | ConfirmedDeletion) -> ObjectStore:
    store = ObjectStore()
    for item in items:
        store.apply_read(item)
    return store


def known(store: ObjectStore, name: str = "a") -> ObjectRecord:
    record = store[name]
    assert record is not None
    return record


def watched(store: ObjectStore, *seen: ObservedObject) -> list[ObjectChange]:
    return store.apply_watched(seen)


# --- changes ---


def test_object_change_has_the_content_before_and_after_the_change() -> None:
    store = after(ready(version="1"))
    seen = ready(version="2", labels={"env": "prod"})
    assert watched(store, seen) == [ObjectChange("a", "u1", "2", ready().target, seen.target, seen)]
    assert watched(store, gone := not_ready(version="3")) == [ObjectChange("a", "u1", "3", seen.target, None, gone)]


def test_object_keeps_equal_content_which_its_cluster_has_as_well() -> None:
    store = after(ready(version="1"))
    before = known(store).content
    (change,) = watched(store, ready(version="2"))
    assert (known(store).version, known(store).content is before, change.after is before) == ("2", True, True)


def test_malformed_object_keeps_its_content() -> None:
    store = after(ready())
    (change,) = watched(store, malformed(uid=""))
    assert (change.before, change.after) == (ready().target, ready().target)
    assert (known(store).state, known(store).message, known(store).uid) == (ObjectState.MALFORMED, "nonsense", "u1")


def test_malformed_object_with_another_uid_has_no_content() -> None:
    (change,) = watched(after(ready()), malformed(uid="u2"))
    assert (change.before, change.after, change.is_replaced) == (ready().target, None, True)


def test_deleted_object_has_no_content() -> None:
    store = after(ready())
    assert store.apply_read(DELETED) == [ObjectChange("a", "u1", "", ready().target, None, DELETED)]
    assert known(store).state is ObjectState.DELETED


@pytest.mark.parametrize("gone", [ConfirmedDeletion("b", "u1"), ConfirmedDeletion("a", "u2")])
def test_deletion_of_an_unknown_object_changes_nothing(gone: ConfirmedDeletion) -> None:
    assert after(ready()).apply_read(gone) == []


def test_repeated_deletion_changes_nothing() -> None:
    assert after(ready(), DELETED).apply_read(DELETED) == []


def test_object_that_is_not_a_cluster_is_stored_under_its_key() -> None:
    seen = ContributingObject("ns/a", "u1", "1", ObjectContent(value="secret"), is_terminating=True)
    store = after(seen)
    assert known(store, "ns/a").content == ObjectContent(value="secret")
    assert store.is_terminating("ns/a")
    assert not store.is_terminating("ns/b")


def test_object_stays_terminating_while_it_is_not_ready() -> None:
    store = after(ready(deletion_requested_at=1.0), not_ready(version="2"))
    assert store.is_terminating("a")
    watched(store, not_ready(version="3", uid="u2"))
    assert not store.is_terminating("a")


# --- established objects ---


@pytest.mark.parametrize(
    ("seen", "established"),
    [
        ([not_ready()], 0),
        ([ready()], 1),
        ([ready(), not_ready()], 1),
        ([ready(), malformed()], 1),
        ([ready(), outside()], 0),
        ([ready(), outside(), not_ready(version="3")], 0),
        ([ready(), not_ready(uid="u2")], 0),
        ([ready(), ready(version="2", uid="u2")], 1),
        ([ready(), DELETED], 0),
    ],
)
def test_object_is_established_once_it_was_ready_under_its_uid(
    seen: Sequence[ObservedObject | ConfirmedDeletion], established: int
) -> None:
    store = after(*seen)
    assert store.established_count == established
    assert store.is_established("a") == bool(established)
    assert not store.is_established("b")


# --- stale observations ---


@pytest.mark.parametrize(
    "late", [ready(version="9"), not_ready(version="9"), malformed(version="9"), ready(version="9", uid="u0")]
)
def test_stale_observation_is_discarded(late: ObservedObject) -> None:
    store = after(ready(version="10"))
    assert watched(store, late) == []
    assert store.outdated == 1
    assert known(store) == known(after(ready(version="10")))


def test_observation_after_confirmed_deletion_is_discarded() -> None:
    store = after(ready(version="10"), DELETED)
    assert watched(store, ready(version="10")) == []
    assert store.outdated == 1
    assert watched(store, ready(version="11", uid="u2")) != []


def test_only_an_observation_of_a_newer_version_is_new_to_the_store() -> None:
    store = after(ready(version="10"))
    watched(store, ready(version="10"))
    assert store.outdated == 0
    assert not store.is_news(ready(version="10"))
    assert not store.is_news(ready(version="9"))
    assert store.is_news(ready(version="11"))


@pytest.mark.parametrize(("known_version", "seen"), [("10", "2x"), ("x", "9"), ("", "9"), ("10", ""), ("10", "²")])
def test_opaque_versions_are_ordered_by_arrival(known_version: str, seen: str) -> None:
    assert watched(after(ready(version=known_version)), not_ready(version=seen)) != []


def test_version_of_thousands_of_digits_is_opaque() -> None:
    long = "9" * 5000
    assert watched(after(ready(version=long)), not_ready(version=long[1:])) != []


def test_consistent_read_of_an_older_version_is_applied() -> None:
    assert after(ready(version="100")).apply_read(not_ready(version="50")) != []


# --- lists ---


def test_present_names_exclude_deleted_objects_and_those_outside_selector() -> None:
    store = after(
        ready("a"),
        not_ready("b"),
        malformed("c"),
        outside("d"),
        ready("e"),
        ConfirmedDeletion("e", "u1"),
    )
    assert list(store.present()) == [("a", "u1"), ("b", "u1"), ("c", "u1")]
    assert [*store.missing_from({"a": "u1"})] == [("b", "u1"), ("c", "u1")]
    assert [*store.missing_from(dict.fromkeys("abcde"))] == []


def test_observation_with_different_uid_or_version_would_change_the_store() -> None:
    store = after(ready(version="10"))
    assert not store.would_change(ready(version="10"))
    assert store.would_change(ready(version="9"))
    assert store.would_change(ready(version="10", uid="u2"))
    assert store.would_change(ready("b"))


@pytest.mark.parametrize(
    "listed", [not_ready(version="10"), malformed(version="10"), ready(version="10", suspended=True)]
)
def test_observation_of_another_state_at_the_same_version_would_change_the_store(listed: ObservedObject) -> None:
    assert after(ready(version="10")).would_change(listed)


@pytest.mark.parametrize("left", [DELETED, outside(version="10")])
def test_observation_of_object_that_was_deleted_or_outside_selector_would_change_the_store(
    left: ObservedObject | ConfirmedDeletion,
) -> None:
    assert after(ready(version="10"), left).would_change(ready(version="10"))


@pytest.mark.parametrize("left", [DELETED, outside(version="11")])
def test_older_version_is_applied_for_object_absent_from_the_last_list(
    left: ObservedObject | ConfirmedDeletion,
) -> None:
    store = after(ready(version="10"), left)
    store.end_list()
    assert watched(store, ready(version="5")) != []


def test_older_version_is_applied_for_object_that_a_restored_server_lacks() -> None:
    store = after(ready(version="10"))
    store.set_version("a", "")
    assert watched(store, ready(version="5")) != []


def test_number_of_remembered_absent_objects_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGETTABLE_RECORDS_KEPT", 2)
    store = after(outside("b"), ready("a"), DELETED, outside("c"))
    assert store["b"] is None
    assert [name for name, _ in store.items()] == ["a", "c"]
    watched(store, ready("a", "5", "u2"), outside("d"))
    assert store["a"] is not None
    assert store["c"] is not None
