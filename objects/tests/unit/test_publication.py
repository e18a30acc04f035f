from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from milo_objects import cluster_publication, gone_objects
from milo_objects.cluster_publication import BEHIND_S, LONGEST_RETRY_S, RETRY_S, TAKEOVER_S
from milo_objects.kinds import Kind
from milo_objects.messages import (
    ClusterMessage,
    ObjectMessage,
    ScopeIsOver,
    ScopeMessage,
    StoredMessage,
    decode,
    decoded,
)
from milo_objects.projection import ProjectedObject
from milo_objects.publication import MOST_BYTES, MOST_READS, MOST_WRITES, StreamPublication
from milo_objects.publication_records import GONE_TTL_S, SubjectRecord
from milo_objects.scope import (
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    Gone,
    ObjectChanged,
    ObjectGone,
    OverBudget,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnd,
    ScopeEnded,
    ScopeState,
    Stale,
    Synced,
)
from milo_objects.stream_commands import Purge, ReadCluster, Relist, WriteMessage
from milo_objects.subjects import ClusterSubject, ScopeSubject

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class CountedDict(dict[Any, Any]):
    """A dictionary that counts the items that are read."""

    read = 0

    def items(self) -> Any:
        return self._counted()

    def _counted(self) -> Iterator[Any]:
        for item in super().items():
            self.read += 1
            yield item


class Publishing:
    """The publication of namespaces of one cluster, and its stream."""

    scope = Scope("web", "i", "v1/namespaces")

    def __init__(self, gone_bytes: int = 1 << 30) -> None:
        self.sequence = 0
        self.stored: dict[str, StoredMessage] = {}
        self._gone_bytes = gone_bytes
        self.restart()

    def restart(self, state: ScopeState = Synced(NOW)) -> None:  # noqa: B008  (frozen)
        self.publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0, self._gone_bytes)
        self.publication.connected(1 << 20, 0.0, is_same=False)
        self.publication.apply(ClusterChanged(FleetCluster(name="web", incarnation="i", uid="u")), 0.0)
        self.publication.apply(ScopeChanged(self.scope, state), 0.0)

    def put(self, name: str, version: str = "1", content: bytes = b'{"a":1}') -> None:
        found = ProjectedObject("", name, f"uid of {name}", content, version)
        self.publication.apply(ObjectChanged(self.scope, found), 0.0)

    def delete(self, name: str) -> None:
        found = ProjectedObject("", name, f"uid of {name}", b'{"a":1}', "1")
        self.publication.apply(ObjectGone(self.scope, found, Gone.OBJECT_DELETED), 0.0)

    def write(self, now: float = 0.0, most: int = 1000) -> None:
        """Do what is due, `most` times."""
        while most and (commands := self.publication.due(now)):
            most -= 1
            for command in commands:
                match command:
                    case ReadCluster(cluster):
                        found = [each for each in self.stored.values() if f".{cluster}." in f"{each.subject}."]
                        self.publication.read(command, decoded(found), self.sequence, now)
                    case WriteMessage():
                        self.sequence += 1
                        stored = StoredMessage(str(command.subject), self.sequence, *command.encoded)
                        self.stored[str(command.subject)] = stored
                        self.publication.written(command, self.sequence, now)
                    case Purge():
                        prefix = str(command.scope).removesuffix("state")
                        self.stored = {
                            subject: found
                            for subject, found in self.stored.items()
                            if not subject.startswith(prefix)
                            or subject == str(command.scope)
                            or found.sequence >= command.below
                        }
                        self.publication.purged(command, now)

    @property
    def records(self) -> list[SubjectRecord]:
        (scope,) = self.publication.clusters["web"].scopes.values()
        return [*scope.objects.values()]


def test_clusters_of_one_tenant_in_any_number_delay_neither_the_read_nor_the_writes_of_a_cluster_of_another() -> None:
    publishing = Publishing()
    publication = publishing.publication

    def engage(name: str, organization: str) -> None:
        cluster = FleetCluster(name=name, incarnation="i", uid=name, organization=organization)
        publication.apply(ClusterChanged(cluster), 0.0)

    for number in range(1000):
        engage(f"evil{number}", "evil")
    engage("web", "acme")
    reads = publication.due(0.0)
    assert len(reads) == MOST_READS
    assert "web" in {command.cluster for command in reads if isinstance(command, ReadCluster)}
    for command in reads:
        assert isinstance(command, ReadCluster)
        publication.read(command, {}, 0, 0.0)
    publishing.write()
    for number in range(1000):
        engage(f"evil{number}", "evil of another name")
    engage("web", "acme of another name")
    first = publication.due(0.0)[:3]
    assert ClusterSubject("web") in {command.subject for command in first if isinstance(command, WriteMessage)}


def test_restarted_publisher_keeps_each_object_once_in_memory() -> None:
    publishing = Publishing()
    publishing.put("a")
    publishing.write()
    publishing.restart()
    publishing.put("a")
    publishing.write()
    (record,) = publishing.records
    assert record.published is record.desired


def test_restarted_publisher_keeps_no_fields_of_objects_that_are_not_listed() -> None:
    publishing = Publishing()
    publishing.put("a", content=b'{"a":"' + b"x" * 1000 + b'"}')
    publishing.put("b", content=b'{"a":"' + b"x" * 1000 + b'"}')
    publishing.write()
    publishing.restart()
    publishing.write()
    published = [record.published for record in publishing.records]
    assert [isinstance(found, ObjectMessage) and len(found.object.content) < 100 for found in published] == [True, True]
    publishing.put("a", content=b'{"a":"' + b"x" * 1000 + b'"}')
    publishing.put("b", content=b'{"a":"' + b"x" * 999 + b'"}')
    before = publishing.sequence
    publishing.write()
    assert publishing.sequence == before + 1
    assert all(record.published is record.desired for record in publishing.records)


def test_scope_over_budget_takes_no_memory_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_publication, "SECOND_LOOK_S", 1.0)
    publishing = Publishing()
    for number in range(10):
        publishing.put(f"n{number}")
    publishing.write()
    stored = publishing.stored.copy()
    publishing.publication.apply(ScopeEnded(publishing.scope, ScopeEnd.OVER_BUDGET), 0.0)
    publishing.publication.apply(ScopeChanged(publishing.scope, OverBudget(NOW, "too large")), 0.0)
    publishing.write()
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    publishing.write()
    assert not publishing.records
    state = "milo.objects._.web.core.namespaces.state"
    assert publishing.stored[state].headers["Milo-State"] == "OVER_BUDGET"
    assert {key: publishing.stored[key] for key in stored if key != state} == {
        key: found for key, found in stored.items() if key != state
    }
    publishing.publication.apply(ScopeChanged(publishing.scope, Pending(NOW)), 0.0)
    for number in range(9):
        publishing.put(f"n{number}", "1" if number else "2", b'{"a":1}' if number else b'{"a":2}')
    publishing.publication.apply(ScopeChanged(publishing.scope, Synced(NOW)), 0.0)
    publishing.write()
    publishing.write(1.0)
    changed = {key for key, found in publishing.stored.items() if stored.get(key) != found}
    assert changed == {state, *(f"milo.objects._.web.core.namespaces._.n{number}" for number in (0, 9))}
    assert publishing.stored[state].headers["Milo-State"] == "SYNCED"
    assert "Milo-Gone" in publishing.stored["milo.objects._.web.core.namespaces._.n9"].headers


def test_newer_version_of_the_stream_is_remembered() -> None:
    publishing = Publishing()
    publishing.put("a", "7")
    publishing.write()
    publishing.restart()
    publishing.put("a", "5")
    publishing.write()
    publishing.put("a", "6", b'{"a":2}')
    (record,) = publishing.records
    assert record.is_behind


def scope_in(publishing: Publishing) -> ScopeMessage:
    _, found = decode(publishing.stored["milo.objects._.web.core.namespaces.state"])
    assert isinstance(found, ScopeMessage)
    return found


def state_in(publishing: Publishing) -> object:
    return scope_in(publishing).state


def test_restarted_publisher_is_heard_when_it_has_removed_what_went_meanwhile() -> None:
    publishing = Publishing()
    for name in "abc":
        publishing.put(name)
    publishing.write()
    publishing.restart()
    publishing.put("a")
    publishing.put("b")
    publishing.write()
    publishing.publication.apply(FleetChanged(Synced(NOW)), 0.0)
    assert not publishing.publication.is_current("", 0.0)
    assert publishing.publication.is_current("another source", 0.0)
    publishing.write(10.0)
    gone = decode(publishing.stored["milo.objects._.web.core.namespaces._.c"])[1]
    assert isinstance(gone, ObjectMessage)
    assert gone.gone == "MISSING"
    assert publishing.publication.is_current("", 10.0)


@pytest.mark.parametrize("problem", ["x" * 500, "é" * 240, "😀" * 200, "\0" * 240, '"' * 240, "\\é" * 100])
def test_full_stream_takes_why_a_scope_is_stale_in_place_of_synced(problem: str) -> None:
    publishing = Publishing()
    publishing.write()
    before = publishing.stored[str(ScopeSubject("web", "", "namespaces"))]
    publishing.publication.apply(ScopeChanged(publishing.scope, Stale(NOW, problem)), 1.0)
    publishing.write(1.0)
    after = publishing.stored[str(ScopeSubject("web", "", "namespaces"))]
    assert len(after.body) < len(before.body)
    state = state_in(publishing)
    assert isinstance(state, Stale)
    assert state.problem.endswith("...")
    assert problem.startswith(state.problem[:-3])
    assert 235 <= len(msgspec.json.encode(state.problem[:-3])) - 2 <= 240


def test_problem_that_fits_is_published_whole() -> None:
    publishing = Publishing()
    publishing.publication.apply(ScopeChanged(publishing.scope, Stale(NOW, "é" * 120)), 1.0)
    publishing.write(1.0)
    assert state_in(publishing) == Stale(NOW, "é" * 120)


def test_scope_names_a_publisher_once_it_has_read_the_scope() -> None:
    publishing = Publishing()
    publishing.put("a")
    publishing.write()
    publishing.restart(Pending(NOW))
    publishing.publication.rename("one", 0.0)
    publishing.write()
    assert scope_in(publishing).publisher == ""
    publishing.publication.apply(ScopeChanged(publishing.scope, Stale(NOW, "no answer")), 1.0)
    publishing.write(1.0)
    assert scope_in(publishing).publisher == "one"
    publishing.restart()
    publishing.write(1.0)
    assert scope_in(publishing).publisher == "one"  # the name of this one is not known yet
    publishing.restart(Pending(NOW))
    publishing.publication.rename("two", 1.0)
    publishing.write(1.0)
    assert scope_in(publishing).publisher == "one"
    publishing.write(1.0 + TAKEOVER_S)
    assert scope_in(publishing).publisher == "two"
    sequence = publishing.sequence
    publishing.publication.rename("two", 1.0 + TAKEOVER_S)
    publishing.write(1.0 + TAKEOVER_S)
    assert publishing.sequence == sequence
    publishing.publication.rename("", 1.0 + TAKEOVER_S)
    publishing.write(1.0 + TAKEOVER_S)
    assert scope_in(publishing).publisher == ""


def test_what_a_former_publisher_has_said_of_a_cluster_that_is_not_read_is_not_believed_for_ever() -> None:
    publishing = Publishing()
    publishing.put("a")
    publishing.write()
    publishing.restart(Pending(NOW))
    publishing.publication.apply(FleetChanged(Synced(NOW)), 0.0)
    publishing.write()
    assert state_in(publishing) == Synced(NOW)
    assert not publishing.publication.is_current("", 0.0)
    publishing.write(TAKEOVER_S)
    assert state_in(publishing) == Stale(NOW, "its publisher has not read it yet")
    assert publishing.publication.is_current("", TAKEOVER_S)  # readers see which cluster is STALE
    publishing.put("a")
    publishing.publication.apply(ScopeChanged(publishing.scope, Synced(NOW)), 2 * TAKEOVER_S)
    publishing.write(2 * TAKEOVER_S)
    assert state_in(publishing) == Synced(NOW)


def test_scope_with_many_gone_objects_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's API server chooses how many objects come and go."""
    monkeypatch.setattr(gone_objects, "MOST_GONE", 10)
    publishing = Publishing()
    publishing.put("kept")
    for number in range(100):
        publishing.put(f"n{number}")
        publishing.write()
        publishing.delete(f"n{number}")
        publishing.write()
        assert len(publishing.records) <= 12
        assert len(publishing.stored) <= 14  # with those of the cluster and of the scope
        assert len(publishing.publication._wakes) <= 30
    _, found = decode(publishing.stored["milo.objects._.web.core.namespaces.state"])
    assert isinstance(found, ScopeMessage)
    kept = decode(publishing.stored["milo.objects._.web.core.namespaces._.kept"])[1]
    assert isinstance(kept, ObjectMessage)
    assert (found.state, found.epoch) == (Synced(NOW), kept.epoch)


def test_records_of_gone_objects_of_all_scopes_have_a_budget() -> None:
    """A tenant chooses how many clusters, kinds and objects come and go, and how long their names are."""
    publishing = Publishing(gone_bytes=100_000)
    publication = publishing.publication
    for name in ("shop", "blog"):
        publication.apply(ClusterChanged(FleetCluster(name=name, incarnation="i", uid="u")), 0.0)
        publication.apply(ScopeChanged(Scope(name, "i", "v1/namespaces"), Synced(NOW)), 0.0)
    publishing.put("kept")
    most = 0
    for number in range(300):
        scope = Scope(("web", "shop", "blog")[number % 3], "i", "v1/namespaces")
        found = ProjectedObject("", f"n{number:0250d}", f"u{number}")
        publication.apply(ObjectChanged(scope, found), 0.0)
        publishing.write()
        publication.apply(ObjectGone(scope, found, Gone.OBJECT_DELETED), 0.0)
        publishing.write()
        scopes = [scope for cluster in publication.clusters.values() for scope in cluster.scopes.values()]
        most = max(most, sum(len(scope.gone) for scope in scopes))
        assert sum(scope.gone.counted_bytes for scope in scopes) <= 100_000
        assert sum(len(scope.objects) for scope in scopes) <= 101
        assert len(publishing.stored) < 120
    assert 80 < most < 100
    assert scope_in(publishing).epoch > 0
    kept = decode(publishing.stored["milo.objects._.web.core.namespaces._.kept"])[1]
    assert isinstance(kept, ObjectMessage)
    assert (state_in(publishing), kept.epoch) == (Synced(NOW), scope_in(publishing).epoch)
    for name in ("web", "shop", "blog"):
        publication.apply(ClusterEnded(FleetCluster(name=name, incarnation="i", uid="u"), "MOVED"), 0.0)
    publication.apply(ClusterChanged(FleetCluster(name="web", incarnation="j", uid="u")), 0.0)
    publishing.write()
    (published,) = publication.clusters["web"].scopes.values()
    assert published.gone.counted_bytes <= 100_000
    assert published.epoch == scope_in(publishing).epoch  # the others count no longer


def test_gone_objects_of_one_organization_have_no_scope_of_another_one_begin_again() -> None:
    publishing = Publishing(gone_bytes=100_000)
    publication = publishing.publication

    def go(cluster: str, number: int) -> None:
        scope, found = Scope(cluster, "i", "v1/namespaces"), ProjectedObject("", f"n{number:0250d}", f"u{number}")
        publication.apply(ObjectChanged(scope, found), 0.0)
        publishing.write()
        publication.apply(ObjectGone(scope, found, Gone.OBJECT_DELETED), 0.0)
        publishing.write()

    def gone_of(cluster: str) -> int:
        return sum(len(scope.gone) for scope in publication.clusters[cluster].scopes.values())

    evil = [f"evil-{number}" for number in range(10)]
    for name in evil:
        cluster = FleetCluster(name=name, incarnation="i", uid="u", organization="evil")
        publication.apply(ClusterChanged(cluster), 0.0)
        publication.apply(ScopeChanged(Scope(name, "i", "v1/namespaces"), Synced(NOW)), 0.0)
    for number in range(20):
        go("web", number)
    epoch = scope_in(publishing).epoch
    for number in range(150):
        go(evil[number % 10], number)
    assert gone_of("web") == 20
    assert scope_in(publishing).epoch == epoch
    assert sum(map(gone_of, evil)) < 100


def test_gone_object_is_forgotten_once_the_stream_has_deleted_its_message() -> None:
    publishing = Publishing()
    for name in ("a", "b"):
        publishing.put(name)
        publishing.write()
        publishing.delete(name)
        publishing.write()
    assert len(publishing.records) == 2
    publishing.write(GONE_TTL_S)
    assert len(publishing.records) == 2
    publishing.write(GONE_TTL_S + BEHIND_S)
    assert not publishing.records


@pytest.mark.parametrize("answer", ["written", "conflicted", "full", "failed"])
def test_cluster_that_moves_away_while_it_is_written_is_forgotten(answer: str) -> None:
    publishing = Publishing()
    publication = publishing.publication
    publishing.put("a")
    publishing.write()
    publishing.put("a", "2", b'{"a":2}')
    (write,) = publication.due(0.0)
    assert isinstance(write, WriteMessage)
    publication.apply(ClusterEnded(FleetCluster(name="web", incarnation="i", uid="u"), "MOVED"), 0.0)
    match answer:
        case "written":
            publication.written(write, 9, 0.0)
        case "conflicted":
            publication.conflicted(write, 0.0)
        case "full":
            publication.full(write, "full", 0.0)
        case _:
            publication.failed(write, "not answered", 0.0)
    assert not publication.clusters
    assert [*publication.orphans(decoded(publishing.stored.values()))] == ["web"]


def test_synced_scope_that_no_publisher_follows_is_stale_unless_another_one_has_read_it() -> None:
    publishing = Publishing()
    publishing.publication.rename("one", 0.0)
    publishing.write()
    stored = decoded([StoredMessage("milo.clusters", 0, {}, b""), *publishing.stored.values()])
    for publisher, disowns in ((None, False), ("one", True), ("two", False)):
        other = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
        other.publisher = publisher
        writes = other.disown(stored, ["web"])
        assert [write.message for write in writes if isinstance(write.message, ScopeMessage)] == (
            [replace(scope_in(publishing), state=Stale(NOW, "no publisher follows it"))] if disowns else []
        )
        assert not other.disown(stored, ["shop"])
    assert not publishing.publication.disown(stored, ["web"])  # it is engaged here


def _reasons(publishing: Publishing) -> set[str | None]:
    """Return the reasons of the ends in the stream."""
    return {found.headers.get("Milo-Reason") for found in publishing.stored.values()}


def _replace_and_interrupt(publishing: Publishing) -> FleetCluster:
    """Replace the cluster, whose publisher ends before it ends the scope, and stop after the end of that is stored."""
    publishing.put("a")
    publishing.write()
    publishing.publication.apply(ClusterEnded(FleetCluster(name="web", incarnation="i", uid="u"), "DELETED"), 0.0)
    publishing.write(most=1)
    assert _reasons(publishing) == {None, "DELETED"}
    publishing.publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    cluster = FleetCluster(name="web", incarnation="i2", uid="u2")
    publishing.publication.apply(ClusterChanged(cluster), 0.0)
    while not isinstance(state_in(publishing), ScopeIsOver):
        publishing.write(most=1)
    return cluster


def test_cluster_that_ends_before_its_scope_begins_again_ends_for_readers() -> None:
    publishing = Publishing()
    cluster = _replace_and_interrupt(publishing)
    publishing.publication.apply(ClusterEnded(cluster, "DELETED"), 0.0)
    publishing.write()
    assert _reasons(publishing) == {"DELETED"}
    assert publishing.publication.clusters == {}


def test_cluster_whose_publisher_ended_before_its_scope_began_again_ends_for_readers() -> None:
    publishing = Publishing()
    cluster = _replace_and_interrupt(publishing)
    publishing.publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    publishing.publication.end_orphan(cluster, 0.0)
    publishing.write(most=2)  # the messages are read, and the end of the cluster is stored
    assert _reasons(publishing) == {None, "MISSING", "WITHDRAWN"}
    publishing.publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
    ((_, cluster),) = publishing.publication.orphans(decoded(publishing.stored.values())).items()
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    publishing.publication.end_orphan(cluster, 0.0)
    publishing.write()
    assert _reasons(publishing) == {"MISSING"}
    assert publishing.publication.orphans(decoded(publishing.stored.values())) == {}


def test_cluster_that_ends_before_a_scope_of_objects_in_the_stream_begins_is_engaged_again() -> None:
    publishing = Publishing()
    publishing.put("a")
    publishing.write()
    del publishing.stored["milo.objects._.web.core.namespaces.state"]
    publishing.publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    publishing.publication.end_orphan(FleetCluster(name="web", incarnation="i", uid="u"), 0.0)
    publishing.write()
    assert publishing.publication.clusters == {}
    assert _reasons(publishing) == {"MISSING"}
    publishing.restart()
    publishing.write()
    assert state_in(publishing) == Synced(NOW)


def test_cluster_of_another_fleet_writes_nothing_until_the_one_of_its_name_is_ended() -> None:
    publishing = Publishing()
    publishing.put("a")
    publishing.write()
    before, former = {**publishing.stored}, FleetCluster(name="web", incarnation="i", uid="u")
    publishing.publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    other = FleetCluster(name="web", incarnation="i2", uid="u2")
    publishing.publication.apply(ClusterChanged(other), 0.0)
    publishing.publication.apply(ScopeChanged(Scope("web", "i2", "v1/namespaces"), Synced(NOW)), 0.0)
    for now in range(0, 100, 10):
        publishing.write(now)
    assert publishing.stored == before
    assert publishing.publication.is_displaced("web")
    assert publishing.publication.orphans(decoded(before.values())) == {"web": former}
    publishing.publication.end_orphan(former, 100.0)
    publishing.write(100.0)
    assert _reasons(publishing) == {None}
    assert scope_in(publishing).cluster == other
    assert publishing.publication.orphans(decoded(publishing.stored.values())) == {}


@pytest.mark.parametrize("interruption", ["watch", "connection"])
def test_objects_that_are_published_since_others_are_missing_say_nothing_of_how_many_are(interruption: str) -> None:
    """Found by a reader: the hold ended by itself, so that a single list removed the objects."""
    publishing = Publishing()
    for number in range(20):
        publishing.put(f"old-{number}")
    publishing.write()
    publishing.restart()
    for number in range(9):
        publishing.put(f"old-{number}")
    publishing.write()
    publishing.write(10.0)
    held = Stale(NOW, "the list lacks 11 of 20 published objects: removed if a second one does too")
    assert state_in(publishing) == held
    for number in range(40):
        publishing.put(f"new-{number}")
    publishing.write(30.0)
    if interruption == "watch":
        for state in (Stale(NOW, "no answer"), Synced(NOW)):
            publishing.publication.apply(ScopeChanged(publishing.scope, state), 40.0)
    else:
        publishing.publication.connected(1 << 20, 40.0, is_same=False)
    publishing.write(40.0)
    publishing.write(60.0)
    assert state_in(publishing) == held
    publishing.publication.relisted(Relist(ScopeSubject("web", "", "namespaces")), 60.0)
    publishing.write(80.0)
    assert state_in(publishing) == Synced(NOW)
    assert sum("Milo-Gone" in found.headers for found in publishing.stored.values()) == 11


def test_object_that_was_stored_after_its_scope_ended_is_purged() -> None:
    publishing = Publishing()
    publishing.put("a")
    publishing.write()
    late = publishing.stored["milo.objects._.web.core.namespaces._.a"]
    publishing.publication.apply(ClusterEnded(FleetCluster(name="web", incarnation="i", uid="u"), "DELETED"), 0.0)
    publishing.write()
    assert late.subject not in publishing.stored
    publishing.sequence += 1
    publishing.stored[late.subject] = late._replace(sequence=publishing.sequence)
    (purge,) = publishing.publication.review(decoded(publishing.stored.values()), publishing.sequence, 0.0)
    assert purge.below > publishing.sequence


def test_scope_of_which_another_publisher_has_written_is_read_again() -> None:
    publishing = Publishing()
    publishing.write()
    publishing.publication.review(decoded(publishing.stored.values()), publishing.sequence, 0.0)
    assert publishing.publication.is_settled
    key = "milo.objects._.web.core.namespaces.state"
    publishing.sequence += 1
    other = replace(scope_in(publishing), state=Stale(NOW, "no publisher follows it"))
    publishing.stored[key] = StoredMessage(key, publishing.sequence, *other.encode())
    publishing.publication.review(decoded(publishing.stored.values()), publishing.sequence, 0.0)
    publishing.write()
    assert state_in(publishing) == Synced(NOW)


def test_publication_is_settled_once_the_stream_has_the_state_of_each_scope() -> None:
    """Found in tests of a busy machine: a publisher was stopped before it had written that a scope is SYNCED."""
    publishing = Publishing()
    publishing.put("a")
    while not publishing.publication.is_settled:
        publishing.write(most=1)
    assert state_in(publishing) == Synced(NOW)


def test_cluster_in_which_much_changes_delays_no_other() -> None:
    publishing = Publishing()
    publication = publishing.publication
    publication.apply(ClusterChanged(FleetCluster(name="shop", incarnation="i", uid="u")), 0.0)
    other = Scope("shop", "i", "v1/namespaces")
    publication.apply(ScopeChanged(other, Synced(NOW)), 0.0)
    publishing.write()
    for number in range(2 * MOST_WRITES):
        publishing.put(f"n{number}")
    publication.apply(ObjectChanged(other, ProjectedObject("", "waits", "u")), 0.0)
    first = [str(command.subject) for command in publication.due(0.0) if isinstance(command, WriteMessage)]
    assert len(first) == MOST_WRITES
    assert "milo.objects._.shop.core.namespaces._.waits" in first


def test_few_large_messages_are_on_their_way_at_once() -> None:
    publishing = Publishing()
    publishing.write()
    content = b'{"a":"' + b"x" * (1 << 19) + b'"}'
    for number in range(100):
        publishing.put(f"n{number}", content=content)
    sent = [command for command in publishing.publication.due(0.0) if isinstance(command, WriteMessage)]
    assert len(sent) == MOST_BYTES >> 19
    publishing.publication.written(sent[0], 10, 0.0)
    assert len(publishing.publication.due(0.0)) == 1
    publishing.publication.disconnected("gone", 0.0)
    publishing.publication.connected(1 << 20, 0.0, is_same=True)
    publishing.write(60.0)
    assert publishing.publication.is_settled


def test_work_of_a_full_stream_is_proportional_to_what_it_refuses() -> None:
    publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
    publication.connected(1 << 20, 0.0, is_same=False)
    scope = Scope("web", "i", "v1/namespaces")
    publication.apply(ClusterChanged(FleetCluster(name="web", incarnation="i", uid="u")), 0.0)
    publication.apply(ScopeChanged(scope, Synced(NOW)), 0.0)
    for number in range(1000):
        publication.apply(ObjectChanged(scope, ProjectedObject("", f"n{number}", f"u{number}")), 0.0)
    (published,) = publication.clusters["web"].scopes.values()
    refused = published.refused = CountedDict()
    sequence = 0
    while commands := publication.due(0.0):
        for command in commands:
            sequence += 1
            if isinstance(command, ReadCluster):
                publication.read(command, {}, 0, 0.0)
            elif isinstance(command, WriteMessage) and isinstance(command.message, ObjectMessage):
                publication.full(command, "full", 0.0)
            elif isinstance(command, WriteMessage):
                publication.written(command, sequence, 0.0)
    assert publication.refused == 1000
    assert refused.read <= 2000


def test_full_stream_is_asked_again_less_and_less_often() -> None:
    publishing = Publishing()
    publishing.write()
    publication, now, asked = publishing.publication, 0.0, []
    for number in range(3):
        publishing.put(f"n{number}")
    while len(asked) < 7:
        writes = [command for command in publication.due(now) if isinstance(command, WriteMessage)]
        objects = [command for command in writes if isinstance(command.message, ObjectMessage)]
        for command in writes:
            if command in objects:
                publication.full(command, "full", now)
            else:
                publishing.sequence += 1
                publication.written(command, publishing.sequence, now)
        if objects:
            assert len(objects) == 3
            asked.append(now)
        now = now if writes else publication.next_at
    assert asked == [0.0, 15.0, 45.0, 105.0, 225.0, 345.0, 465.0]


@pytest.mark.parametrize("changes", [False, True], ids=["asked again", "changed"])
def test_scope_is_not_synced_while_the_stream_refuses_its_objects(*, changes: bool) -> None:
    publishing = Publishing()
    publishing.write()
    publication = publishing.publication
    publishing.put("name")
    states, now, attempts = [], 0.0, 0
    while attempts < 6:
        writes = [command for command in publication.due(now) if isinstance(command, WriteMessage)]
        for command in writes:
            if isinstance(command.message, ObjectMessage):
                attempts += 1
                publication.full(command, "full", now)
            else:
                assert isinstance(command.message, ScopeMessage)
                publishing.sequence += 1
                publication.written(command, publishing.sequence, now)
                states.append(type(command.message.state))
        if not writes and changes:
            publishing.put("name", str(attempts + 1), b'{"a":%d}' % (attempts + 1))
        elif not writes:
            now += LONGEST_RETRY_S
    assert states == [OverBudget]
    publishing.write(now + LONGEST_RETRY_S)
    assert state_in(publishing) == Synced(NOW)


class Full(Publishing):
    """A publication whose stream takes only what is shorter than before."""

    def write(self, now: float = 0.0, most: int = 1000) -> None:
        while commands := self.publication.due(now):
            for command in commands:
                assert isinstance(command, WriteMessage)
                before = self.stored[str(command.subject)]
                if sent_bytes(*command.encoded) < sent_bytes(before.headers, before.body):
                    self.sequence += 1
                    stored = StoredMessage(str(command.subject), self.sequence, *command.encoded)
                    self.stored[stored.subject] = stored
                    self.publication.written(command, self.sequence, now)
                else:
                    self.publication.full(command, "full", now)


def sent_bytes(headers: Mapping[str, str], body: bytes) -> int:
    return len(body) + sum(map(len, (*headers, *headers.values())))


def test_full_stream_takes_that_a_scope_is_not_synced_although_its_cluster_has_grown() -> None:
    publishing = Publishing()
    publishing.write()
    full, cluster = Full(), FleetCluster(name="web", incarnation="i", uid="u", labels={"grown": "x" * 200})
    full.publication, full.stored, full.sequence = publishing.publication, publishing.stored, publishing.sequence
    full.publication.apply(ClusterChanged(cluster), 0.0)
    full.publication.rename("a-publisher-with-a-name-" + "x" * 60, 0.0)
    full.write()
    assert state_in(full) == Synced(NOW)
    full.publication.apply(ScopeChanged(full.scope, Stale(NOW, "x" * 240)), 0.0)
    full.write(RETRY_S)
    assert state_in(full) == Stale(NOW, "x" * 240)
    publishing.sequence = full.sequence
    publishing.write(RETRY_S + LONGEST_RETRY_S)
    assert scope_in(publishing).cluster == cluster


def test_cluster_whose_end_a_full_stream_refuses_ends_once_its_scopes_have_made_room() -> None:
    """Such as one whose message is of an earlier version, and has no room for its end."""
    publishing = Publishing()
    publishing.put("name")
    publishing.write()
    publication = publishing.publication
    publication.apply(ClusterEnded(FleetCluster(name="web", incarnation="i", uid="u"), "DELETED"), 0.0)
    (end,) = publication.due(0.0)
    assert isinstance(end, WriteMessage)
    assert isinstance(end.message, ClusterMessage)
    publication.full(end, "full", 0.0)
    publishing.write()
    assert [type(decode(found)[1]) for found in publishing.stored.values()] == [ClusterMessage, ScopeMessage]
    assert scope_in(publishing).state == ScopeIsOver("DELETED")
    assert publication.is_ending("web")
    publishing.write(RETRY_S)
    assert decode(publishing.stored[str(end.subject)])[1] == end.message
    assert not publication.clusters


@pytest.mark.parametrize("purged", ["milo", "milo.clusters.", "milo.objects."])
def test_cluster_that_somebody_has_purged_from_the_stream_is_written_again(purged: str) -> None:
    publishing = Publishing()
    publishing.put("name")
    publishing.write()
    publication, before = publishing.publication, {*publishing.stored}
    assert not publication.review(decoded(publishing.stored.values()), publishing.sequence, 0.0)
    assert publication.is_settled
    publishing.stored = {key: found for key, found in publishing.stored.items() if not key.startswith(purged)}
    publication.review({}, 0, 0.0)  # read before it was written
    assert publication.is_settled
    publication.review(decoded(publishing.stored.values()), publishing.sequence, 0.0)
    publishing.write()
    assert {*publishing.stored} == before
    assert publication.is_settled


def test_object_that_was_too_large_is_written_once_the_limit_is_larger() -> None:
    publishing = Publishing()
    publishing.publication.connected(2000, 0.0, is_same=False)
    publishing.put("a", content=b'{"a":"' + b"x" * 4000 + b'"}')
    publishing.write()
    assert publishing.publication.refused == 1
    assert isinstance(state_in(publishing), OverBudget)
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    publishing.write()
    assert not publishing.publication.refused
    assert state_in(publishing) == Synced(NOW)


def test_object_is_written_once_a_cluster_that_the_stream_has_lost_is() -> None:
    """Found by a simulation: a state that was stored late in a stream that was created again preceded its cluster, and
    the object was never written."""
    publishing = Publishing()
    publishing.put("a")
    publishing.write()
    del publishing.stored["milo.clusters._.web"]
    publishing.publication.connected(1 << 20, 0.0, is_same=False)
    publishing.put("b")
    publishing.write()
    assert "milo.objects._.web.core.namespaces._.b" in publishing.stored
    assert publishing.publication.is_settled
