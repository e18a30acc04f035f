"""A slow reader gets the changes of each object merged, in an order in which it can apply them."""

from datetime import UTC, datetime

import pytest

from milo_objects.change_backlog import ChangeBacklog
from milo_objects.projection import ProjectedObject
from milo_objects.scope import (
    Change,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    Gone,
    ObjectChanged,
    ObjectGone,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    Stale,
    Synced,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALPHA = FleetCluster(name="alpha", incarnation="1")
SCOPE, OTHER = Scope("alpha", "1", "v1/namespaces"), Scope("alpha", "1", "v1/pods")
BEGUN = (ClusterChanged(ALPHA), ScopeChanged(SCOPE, Pending(NOW)))
SYNCED = ScopeChanged(SCOPE, Synced(NOW))
ENDED = ClusterEnded(ALPHA, "DELETED")


def found(content: bytes = b"{}", uid: str = "u") -> ProjectedObject:
    return ProjectedObject("", "shop", uid, content)


OLD, NEW, NEWER = found(b'{"a":1}'), found(b'{"a":2}'), found(b'{"a":3}')


def gone(last: ProjectedObject) -> ObjectGone:
    return ObjectGone(SCOPE, last, Gone.OBJECT_DELETED)


def taken(backlog: ChangeBacklog) -> list[Change]:
    changes = []
    while (change := backlog.take()) is not None:
        changes.append(change)
    assert len(backlog) == 0
    return changes


def behind(*changes: Change, seen: tuple[Change, ...] = BEGUN) -> list[Change]:
    """Return what a reader takes that was behind by some changes, after it had seen others."""
    backlog = ChangeBacklog()
    for change in seen:
        backlog.add(change)
    taken(backlog)
    for change in changes:
        backlog.add(change)
    return taken(backlog)


def test_reader_that_keeps_up_gets_each_change() -> None:
    backlog = ChangeBacklog()
    changes = (*BEGUN, ObjectChanged(SCOPE, OLD), SYNCED, ObjectChanged(SCOPE, NEW, OLD), gone(NEW), ENDED)

    seen = []
    for change in changes:
        backlog.add(change)
        seen += taken(backlog)
    assert tuple(seen) == changes


@pytest.mark.parametrize(
    ("changes", "merged"),
    [
        ((ObjectChanged(SCOPE, NEW, OLD), ObjectChanged(SCOPE, NEWER, NEW)), [ObjectChanged(SCOPE, NEWER, OLD)]),
        ((ObjectChanged(SCOPE, OLD), ObjectChanged(SCOPE, NEW, OLD)), [ObjectChanged(SCOPE, NEW)]),
        ((ObjectChanged(SCOPE, NEW, OLD), ObjectChanged(SCOPE, OLD, NEW)), []),
        ((ObjectChanged(SCOPE, OLD), gone(OLD)), []),
        ((ObjectChanged(SCOPE, NEW, OLD), gone(NEW)), [gone(OLD)]),
        ((gone(OLD), ObjectChanged(SCOPE, OLD)), []),
        ((gone(OLD), ObjectChanged(SCOPE, NEW)), [ObjectChanged(SCOPE, NEW, OLD)]),
        (
            (
                gone(OLD),
                ObjectChanged(SCOPE, found(uid="v")),
                gone(found(uid="v")),
                ObjectChanged(SCOPE, found(uid="w")),
            ),
            [gone(OLD), ObjectChanged(SCOPE, found(uid="w"))],
        ),
    ],
)
def test_changes_of_an_object_are_merged(changes: tuple[Change, ...], merged: list[Change]) -> None:
    assert behind(*changes) == merged


def test_objects_of_first_list_precede_synced_for_a_slow_reader_too() -> None:
    assert behind(*BEGUN, ObjectChanged(SCOPE, OLD), SYNCED, ScopeChanged(SCOPE, Stale(NOW, "x")), seen=()) == [
        *BEGUN,
        ObjectChanged(SCOPE, OLD),
        ScopeChanged(SCOPE, Stale(NOW, "x")),
    ]


def test_state_that_is_as_before_is_left_out() -> None:
    stale = ScopeChanged(SCOPE, Stale(NOW, "x"))
    assert behind(stale, SYNCED, seen=(*BEGUN, SYNCED)) == []
    assert behind(stale, SYNCED, stale, seen=(*BEGUN, SYNCED)) == [stale]


def test_end_of_a_scope_replaces_what_was_pending_of_it() -> None:
    end = ScopeEnded(SCOPE, ScopeEnd.OVER_BUDGET)
    again = ScopeChanged(SCOPE, Pending(NOW))

    assert behind(ObjectChanged(SCOPE, OLD), SYNCED, end) == [end]
    assert behind(SYNCED, end, again, ObjectChanged(SCOPE, OLD), SYNCED) == [
        end,
        again,
        ObjectChanged(SCOPE, OLD),
        SYNCED,
    ]
    assert behind(ScopeChanged(OTHER, Pending(NOW)), ScopeEnded(OTHER, ScopeEnd.WITHDRAWN)) == []


def test_end_of_a_cluster_replaces_what_was_pending_of_it() -> None:
    pending = (ClusterChanged(ALPHA), ObjectChanged(SCOPE, OLD), ScopeChanged(OTHER, Pending(NOW)))
    assert behind(*pending, ENDED) == [ENDED]
    end = ScopeEnded(SCOPE, ScopeEnd.OVER_BUDGET)
    assert behind(*pending, end, *pending[1:], ENDED) == [end, ENDED]


def test_cluster_that_began_and_ended_meanwhile_is_left_out() -> None:
    assert behind(*BEGUN, ObjectChanged(SCOPE, OLD), ENDED, seen=()) == []


def test_cluster_that_is_engaged_again_follows_its_end() -> None:
    again = ClusterChanged(FleetCluster(name="alpha", incarnation="2"))
    assert behind(SYNCED, ENDED, again) == [ENDED, again]


def test_synced_fleet_follows_its_clusters() -> None:
    fleet = FleetChanged(Synced(NOW))
    assert behind(FleetChanged(Pending(NOW)), *BEGUN, fleet, seen=()) == [*BEGUN, fleet]
