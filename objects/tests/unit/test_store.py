"""The store applies changes of present scopes, finds objects by indexes, and says what is missing."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from milo_objects.projection import ProjectedObject
from milo_objects.scope import (
    Change,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    Forbidden,
    Gone,
    ObjectChanged,
    ObjectGone,
    OverBudget,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    Stale,
    Synced,
)
from milo_objects.store import FoundObject, Index, Store

NAMESPACES, PODS = "v1/namespaces", "v1/pods"
T1, T2, T3 = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3))
ALPHA, BETA = FleetCluster(name="alpha", incarnation="1", uid="a"), FleetCluster(name="beta", incarnation="2", uid="b")
IN_ALPHA, IN_BETA = Scope("alpha", "1", NAMESPACES), Scope("beta", "2", NAMESPACES)


def found(name: str, uid: str = "", content: bytes = b"{}", namespace: str = "") -> ProjectedObject:
    return ProjectedObject(namespace, name, uid or f"uid-{name}", content)


def by_uid(given: ProjectedObject) -> list[str]:
    return [given.uid]


class Recorder:
    """A store, and the changes that it passed on."""

    def __init__(self, *changes: Change, indexes: dict[str, Any] | None = None) -> None:
        self.seen: list[Change] = []
        self.failures: list[tuple[str, FoundObject, Exception]] = []
        self.store = Store(
            [NAMESPACES, PODS],
            {"uid": by_uid} if indexes is None else indexes,
            T1,
            changed=self.seen.append,
            index_failed=lambda *failure: self.failures.append(failure),
        )
        self.apply(*changes)

    def apply(self, *changes: Change) -> list[Change]:
        """Apply changes; return those that were passed on."""
        before = len(self.seen)
        for change in changes:
            self.store.apply(change)
        return self.seen[before:]


BEGUN = (ClusterChanged(ALPHA), ScopeChanged(IN_ALPHA, Pending(T1)))


def names(objects: Iterable[FoundObject]) -> list[tuple[str, str]]:
    return [(each.cluster.name, each.object.name) for each in objects]


def test_objects_are_found_with_their_clusters() -> None:
    store = Recorder(
        *BEGUN,
        ClusterChanged(BETA),
        ScopeChanged(IN_BETA, Pending(T1)),
        ObjectChanged(IN_ALPHA, found("shop", "u1")),
        ObjectChanged(IN_BETA, found("shop", "u2")),
    ).store

    assert store.find("uid", "u2") == [FoundObject(BETA, NAMESPACES, found("shop", "u2"))]
    assert store.find("uid", "u3") == []
    assert store.get("alpha", NAMESPACES, "shop") == found("shop", "u1")
    assert store.get("alpha", NAMESPACES, "other") is None
    assert store.get("gamma", NAMESPACES, "shop") is None
    assert names(store.list(NAMESPACES)) == [("alpha", "shop"), ("beta", "shop")]
    assert names(store.list(NAMESPACES, "beta")) == [("beta", "shop")]
    assert names(store.list(NAMESPACES, "gamma")) == names(store.list(PODS)) == []
    assert len(store) == 2
    assert dict(store.clusters) == {"alpha": ALPHA, "beta": BETA}


@pytest.mark.parametrize("call", ["view", "list", "get"])
def test_kind_that_is_not_followed_is_an_error(call: str) -> None:
    store = Recorder().store
    arguments = ("alpha", "v1/secrets", "x") if call == "get" else ("v1/secrets",)
    with pytest.raises(KeyError, match=r"v1/secrets is not followed \(followed kinds: v1/namespaces, v1/pods\)"):
        list(getattr(store, call)(*arguments))


def test_unknown_index_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"index 'name' does not exist \(existing indexes: 'uid'\)"):
        Recorder().store.find("name", "x")
    with pytest.raises(KeyError, match="existing indexes: none"):
        Recorder(indexes={}).store.find("name", "x")
    with pytest.raises(KeyError, match="v1/secrets is not followed"):
        Recorder(indexes={"uid": Index("v1/secrets", by_uid)})


def test_index_of_one_kind_has_no_objects_of_others() -> None:
    pods = Scope("alpha", "1", PODS)
    recorder = Recorder(
        *BEGUN,
        ScopeChanged(pods, Pending(T1)),
        ObjectChanged(IN_ALPHA, found("shop", "u")),
        ObjectChanged(pods, found("shop", "u")),
        indexes={"pods": Index(PODS, by_uid), "all": by_uid},
    )

    assert [each.resource for each in recorder.store.find("pods", "u")] == [PODS]
    assert [each.resource for each in recorder.store.find("all", "u")] == [NAMESPACES, PODS]


def test_object_for_which_index_fails_is_missing_from_that_index_only() -> None:
    def phase(given: ProjectedObject) -> list[str]:
        return [given.fields["status"]["phase"]]

    recorder = Recorder(*BEGUN, indexes={"phase": phase, "uid": by_uid})
    recorder.apply(
        ObjectChanged(IN_ALPHA, found("bare", "u1")),
        ObjectChanged(IN_ALPHA, found("shop", "u2", b'{"status":{"phase":"Active"}}')),
    )

    assert [(name, each.object.name) for name, each, _ in recorder.failures] == [("phase", "bare")]
    assert names(recorder.store.find("phase", "Active")) == [("alpha", "shop")]
    assert names(recorder.store.find("uid", "u1")) == [("alpha", "bare")]


# --- changes ---


def test_change_has_what_was_known_of_the_object() -> None:
    recorder = Recorder(*BEGUN)
    old, new = found("shop", "u", b'{"a":1}'), found("shop", "u", b'{"a":2}')

    assert recorder.apply(ObjectChanged(IN_ALPHA, old)) == [ObjectChanged(IN_ALPHA, old)]
    assert recorder.apply(ObjectChanged(IN_ALPHA, new)) == [ObjectChanged(IN_ALPHA, new, old)]
    gone = ObjectGone(IN_ALPHA, found("shop", "u"), Gone.MISSING)
    assert recorder.apply(gone) == [ObjectGone(IN_ALPHA, new, Gone.MISSING)]
    assert recorder.store.find("uid", "u") == []


def test_object_that_was_created_again_is_another_one() -> None:
    recorder = Recorder(*BEGUN, ObjectChanged(IN_ALPHA, found("shop", "u1")))

    assert recorder.apply(ObjectChanged(IN_ALPHA, found("shop", "u2"))) == [
        ObjectGone(IN_ALPHA, found("shop", "u1"), Gone.OBJECT_DELETED),
        ObjectChanged(IN_ALPHA, found("shop", "u2")),
    ]
    assert recorder.store.find("uid", "u1") == []


@pytest.mark.parametrize(
    "change",
    [
        ObjectChanged(IN_ALPHA, found("shop", "u1")),
        ObjectChanged(IN_BETA, found("shop", "u1")),
        ObjectGone(IN_ALPHA, found("other"), Gone.MISSING),
        ObjectGone(IN_ALPHA, found("shop", "u0"), Gone.MISSING),
        ObjectGone(IN_BETA, found("shop", "u1"), Gone.MISSING),
        ScopeChanged(IN_ALPHA, Pending(T1)),
        ScopeChanged(Scope("alpha", "0", NAMESPACES), Synced(T2)),
        ScopeChanged(IN_BETA, Synced(T2)),
        ScopeChanged(Scope("alpha", "1", "v1/secrets"), Synced(T2)),
        ScopeEnded(IN_BETA, ScopeEnd.WITHDRAWN),
        ClusterChanged(ALPHA),
        ClusterEnded(BETA, "DELETED"),
        ClusterEnded(FleetCluster(name="alpha", incarnation="0"), "DELETED"),
        FleetChanged(Pending(T1)),
    ],
)
def test_what_changes_nothing_or_belongs_to_no_present_scope_is_ignored(change: Change) -> None:
    recorder = Recorder(*BEGUN, ObjectChanged(IN_ALPHA, found("shop", "u1")))
    before = list(recorder.store.snapshot())

    assert recorder.apply(change) == []
    assert list(recorder.store.snapshot()) == before


def test_end_of_cluster_ends_its_scopes_and_objects_and_is_said_once() -> None:
    pods = Scope("alpha", "1", PODS)
    recorder = Recorder(*BEGUN, ScopeChanged(pods, Pending(T1)), ObjectChanged(IN_ALPHA, found("shop", "u")))
    end = ClusterEnded(ALPHA, "REVOKED")

    assert recorder.apply(end, end) == [end]
    assert (len(recorder.store), recorder.store.find("uid", "u"), recorder.store.scopes("alpha")) == (0, [], [])
    assert recorder.apply(ObjectChanged(IN_ALPHA, found("late"))) == []


def test_another_engagement_ends_the_former_one_first() -> None:
    recorder = Recorder(*BEGUN, ObjectChanged(IN_ALPHA, found("shop")))
    again = FleetCluster(name="alpha", incarnation="9")

    assert recorder.apply(ClusterChanged(again)) == [ClusterEnded(ALPHA, "REPLACED"), ClusterChanged(again)]
    assert len(recorder.store) == 0


def test_scope_that_is_dropped_for_its_budget_ends_and_another_one_begins() -> None:
    recorder = Recorder(*BEGUN, ObjectChanged(IN_ALPHA, found("shop", "u")), ScopeChanged(IN_ALPHA, Synced(T1)))
    end = ScopeEnded(IN_ALPHA, ScopeEnd.OVER_BUDGET)
    state = ScopeChanged(IN_ALPHA, OverBudget(T2, "too many"))

    assert recorder.apply(end, state) == [end, state]
    assert recorder.store.objects(IN_ALPHA) == {}
    assert recorder.store.view(NAMESPACES).missing == {"alpha": OverBudget(T2, "too many")}
    assert recorder.store.scopes("alpha") == [IN_ALPHA]


def test_snapshot_makes_an_empty_store_equal() -> None:
    recorder = Recorder(
        *BEGUN,
        ClusterChanged(BETA),
        ScopeChanged(IN_BETA, Forbidden(T2, "403")),
        ObjectChanged(IN_ALPHA, found("shop", "u")),
        ScopeChanged(IN_ALPHA, Synced(T2)),
        ScopeChanged(IN_ALPHA, Stale(T3, "gone away")),
        FleetChanged(Synced(T2)),
    )

    copy = Recorder(*recorder.store.snapshot())

    assert list(copy.store.snapshot()) == list(recorder.store.snapshot())
    assert copy.store.view(NAMESPACES) == recorder.store.view(NAMESPACES)


# --- the view ---


def test_view_names_clusters_that_were_not_read_and_why() -> None:
    recorder = Recorder(*BEGUN, ClusterChanged(BETA), FleetChanged(Synced(T1)))
    view = recorder.store.view(NAMESPACES)
    assert (view.known, view.synced, view.is_complete) == (2, 0, False)
    assert view.missing == {"alpha": Pending(T1), "beta": Pending(T1)}

    recorder.apply(ScopeChanged(IN_ALPHA, Synced(T2)), ScopeChanged(IN_BETA, Forbidden(T2, "403")))
    view = recorder.store.view(NAMESPACES)
    assert (view.known, view.synced, view.is_complete) == (2, 1, False)
    assert view.missing == {"beta": Forbidden(T2, "403")}

    recorder.apply(ScopeChanged(IN_BETA, Synced(T2)))
    view = recorder.store.view(NAMESPACES)
    assert (view.known, view.synced, view.is_complete, view.stale_since) == (2, 2, True, None)


def test_view_is_incomplete_until_all_clusters_are_known() -> None:
    recorder = Recorder(*BEGUN, ScopeChanged(IN_ALPHA, Synced(T1)))
    assert not recorder.store.view(NAMESPACES).is_complete

    recorder.apply(FleetChanged(Synced(T2)))
    assert recorder.store.view(NAMESPACES).is_complete


def test_outage_makes_a_view_stale_and_not_incomplete() -> None:
    recorder = Recorder(*BEGUN, ScopeChanged(IN_ALPHA, Synced(T1)), FleetChanged(Synced(T1)))
    recorder.apply(ScopeChanged(IN_ALPHA, Stale(T3, "no answer")))
    view = recorder.store.view(NAMESPACES)
    assert (view.is_complete, view.outdated, view.stale_since) == (True, {"alpha": Stale(T3, "no answer")}, T3)

    recorder.apply(FleetChanged(Stale(T2, "no daemon")))
    view = recorder.store.view(NAMESPACES)
    assert (view.is_complete, view.fleet, view.stale_since) == (True, Stale(T2, "no daemon"), T2)


def test_store_without_kinds_names_none() -> None:
    with pytest.raises(KeyError, match="followed kinds: none"):
        Store([], {}, T1).view(NAMESPACES)
