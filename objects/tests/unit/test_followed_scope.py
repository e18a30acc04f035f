"""What the lists and watches of one scope mean for its objects."""

from datetime import UTC, datetime

import msgspec
import pytest

from milo_kube.reflect import messages
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    SourceEvent,
    Unlisted,
    VersionReached,
)
from milo_objects.followed_scope import FollowedScope
from milo_objects.kinds import Kind
from milo_objects.projection import ProjectedObject, SeenObject
from milo_objects.scope import (
    ClusterChanged,
    FleetCluster,
    Gone,
    ObjectChanged,
    ObjectGone,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
)
from milo_objects.store import Store

SCOPE = Scope("alpha", "1", "v1/namespaces")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def projected(name: str, uid: str = "", content: bytes = b"{}", version: str = "1") -> ProjectedObject:
    return ProjectedObject("", name, uid or f"uid-{name}", content, version)


def seen(name: str, uid: str = "", content: bytes = b"{}", version: str = "1") -> SeenObject:
    found = projected(name, uid, content, version)
    return SeenObject(name, "", found.uid, version, found)


def outside(name: str, uid: str = "") -> SeenObject:
    return SeenObject(name, "", uid or f"uid-{name}", "2")


def malformed(name: str) -> SeenObject:
    return SeenObject(name, "", f"uid-{name}", "2", problem="its labels are no strings")


def added(name: str, uid: str = "") -> messages.ObjectChanged[SeenObject]:
    return messages.ObjectChanged(seen(name, uid))


class Followed:
    """A store with one scope, and the sink that fills it."""

    def __init__(self, *events: SourceEvent[SeenObject]) -> None:
        indexes = {name: lambda found: found.content.decode().split() for name in ("words", "more words")}
        self.store = Store([SCOPE.resource], indexes, NOW)
        self.store.apply(ClusterChanged(FleetCluster(name="alpha", incarnation="1")))
        self.store.apply(ScopeChanged(SCOPE, Pending(NOW)))
        self.sink = FollowedScope(SCOPE, self.store)
        self.apply(*events)

    def apply(self, *events: SourceEvent[SeenObject]) -> list[ObjectChanged | ObjectGone]:
        changes = []
        for event in events:
            for change in self.sink.apply(event):
                self.store.apply(change)
                changes.append(change)
        assert self.sink.size == FollowedScope(SCOPE, self.store).size
        return changes

    @property
    def names(self) -> list[str]:
        return sorted(name for _, name in self.store.objects(SCOPE))


def listed(*observations: SeenObject) -> list[SourceEvent[SeenObject]]:
    return [ListStarted(), *map(Listed, observations), ListEnded("9")]


def gone(name: str, reason: Gone, uid: str = "") -> ObjectGone:
    return ObjectGone(SCOPE, projected(name, uid), reason)


def test_complete_list_fills_the_scope() -> None:
    followed = Followed()
    assert followed.apply(ListStarted(), Listed(seen("a"))) == [ObjectChanged(SCOPE, projected("a"))]
    assert not followed.sink.synced

    assert followed.apply(Listed(seen("b")), ListEnded("9")) == [ObjectChanged(SCOPE, projected("b"))]
    assert followed.sink.synced
    assert (len(followed.sink), followed.names) == (2, ["a", "b"])


def test_change_of_fields_that_are_not_named_sends_nothing() -> None:
    followed = Followed(*listed(seen("a", version="1")))

    assert followed.apply(messages.ObjectChanged(seen("a", version="2"))) == []
    assert followed.store.objects(SCOPE)["", "a"].version == "1"
    changed = followed.apply(messages.ObjectChanged(seen("a", content=b'{"x":1}', version="3")))
    assert changed == [ObjectChanged(SCOPE, projected("a", content=b'{"x":1}', version="3"), projected("a"))]


def test_deletion_that_the_watch_reports_is_a_deletion() -> None:
    followed = Followed(*listed(seen("a"), seen("b")))

    assert followed.apply(DeletionReported("a", "uid-a")) == [gone("a", Gone.OBJECT_DELETED)]
    assert followed.apply(DeletionReported("b", "")) == [gone("b", Gone.OBJECT_DELETED)]


@pytest.mark.parametrize(
    "event", [DeletionReported("a", "another"), DeletionReported("b", "uid-b"), VersionReached("9")]
)
def test_deletion_of_another_object_is_ignored(event: SourceEvent[SeenObject]) -> None:
    followed = Followed(*listed(seen("a")))

    assert followed.apply(event) == []
    assert followed.names == ["a"]


def test_object_that_leaves_the_selector_is_told_apart_from_a_deleted_one() -> None:
    followed = Followed(*listed(seen("a"), outside("b")))
    assert followed.names == ["a"]

    assert followed.apply(messages.ObjectChanged(outside("a"))) == [gone("a", Gone.OUT_OF_SELECTOR)]
    assert followed.apply(messages.ObjectChanged(outside("a")), DeletionReported("a", "uid-a")) == []


def test_object_that_went_while_nobody_watched_is_missing() -> None:
    followed = Followed(*listed(seen("a"), seen("b"), seen("c")))

    assert followed.apply(*listed(seen("a"), outside("b"))) == [
        gone("b", Gone.OUT_OF_SELECTOR),
        gone("c", Gone.MISSING),
    ]


def test_incomplete_list_removes_nothing() -> None:
    followed = Followed(*listed(seen("a"), seen("b")))

    assert followed.apply(ListStarted(), Listed(seen("a")), ListStarted(), Listed(seen("b"))) == []
    assert followed.apply(ListEnded("10")) == [gone("a", Gone.MISSING)]


def test_list_that_did_not_begin_removes_nothing() -> None:
    followed = Followed(added("a"))

    assert followed.apply(Listed(seen("b")), Unlisted("c"), ListEnded("10")) == [ObjectChanged(SCOPE, projected("b"))]
    assert followed.names == ["a", "b"]


def test_object_that_is_deleted_during_a_streaming_list_is_gone() -> None:
    followed = Followed(*listed(seen("a"), seen("b")))

    events = [ListStarted(), Listed(seen("a")), Listed(seen("b")), Unlisted("a"), Unlisted("c"), ListEnded("10")]
    assert followed.apply(*events) == [gone("a", Gone.OBJECT_DELETED)]


def test_object_that_was_created_again_is_another_one() -> None:
    followed = Followed(*listed(seen("a", "u1"), seen("b", "u1")))

    assert followed.apply(added("a", "u2")) == [
        gone("a", Gone.OBJECT_DELETED, "u1"),
        ObjectChanged(SCOPE, projected("a", "u2")),
    ]
    assert followed.apply(messages.ObjectChanged(outside("b", "u2"))) == [gone("b", Gone.OBJECT_DELETED, "u1")]


def test_malformed_object_stays_as_it_was() -> None:
    followed = Followed(*listed(seen("a")))

    assert followed.apply(messages.ObjectChanged(malformed("a")), *listed(malformed("a"), malformed("b"))) == []
    assert followed.names == ["a"]


def test_dropped_scope_begins_as_before_its_first_list() -> None:
    followed = Followed(*listed(seen("a")))
    followed.sink.clear()
    followed.store.apply(ScopeEnded(SCOPE, ScopeEnd.OVER_BUDGET))
    followed.store.apply(ScopeChanged(SCOPE, Pending(NOW)))

    assert (len(followed.sink), followed.sink.size, followed.sink.synced) == (0, 0, False)
    assert followed.apply(*listed(seen("a"))) == [ObjectChanged(SCOPE, projected("a"))]


def test_malformed_object_ends_another_one_that_had_its_name() -> None:
    followed = Followed(ListStarted(), Listed(seen("a", "old")), ListEnded())
    gone = ObjectGone(SCOPE, projected("a", "old"), Gone.OBJECT_DELETED)
    assert followed.apply(ListStarted(), Listed(malformed("a")), ListEnded()) == [gone]
    assert followed.names == []
    assert followed.apply(DeletionReported("a", "uid-a")) == []


def test_values_in_indexes_count_toward_the_size() -> None:
    few, many, long = b"a b", b" ".join(b"%d" % number for number in range(1000)), bytes(1000)
    followed = Followed(*listed(seen("a", content=few), seen("b", content=few)))
    before = followed.sink.size

    followed.apply(messages.ObjectChanged(seen("a", content=many)))
    assert followed.sink.size - before > 2 * 1000 * 100
    followed.apply(messages.ObjectChanged(seen("a", content=long)))
    assert before + 2500 < followed.sink.size < before + 3500
    followed.apply(messages.ObjectChanged(seen("a", content=few)))
    assert followed.sink.size == before
    followed.apply(
        messages.ObjectChanged(seen("a", content=many)), DeletionReported("a", ""), DeletionReported("b", "")
    )
    assert followed.sink.size == 0


def test_namespaced_object_that_a_list_has_with_an_overlong_version_stays() -> None:
    """Found by an audit: it was known without its namespace then, and the former state was reported as gone."""
    kind = Kind("v1/configmaps", ["data"])

    def item(version: str) -> SeenObject:
        identity = {"namespace": "default", "name": "a", "uid": "u", "resourceVersion": version}
        found = kind.decoder.object(msgspec.json.encode({"metadata": identity}))
        assert found is not None
        return found

    followed = Followed(*listed(item("1")))
    assert followed.apply(*listed(item("9" * 200))) == []
    assert [*followed.store.objects(SCOPE)] == [("default", "a")]
