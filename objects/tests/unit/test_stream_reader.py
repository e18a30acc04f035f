from datetime import UTC, datetime

import pytest

from milo_objects.kinds import Kind
from milo_objects.messages import Heartbeat, Message, ObjectMessage, ScopeIsOver, ScopeMessage, StoredMessage
from milo_objects.projection import ProjectedObject
from milo_objects.scope import Change, FleetCluster, Gone, NotServed, ObjectGone, Pending, ScopeState, Stale, Synced
from milo_objects.store import Store
from milo_objects.stream_reader import FORGOTTEN_S, REWRITTEN_S, SETTLED_S, SILENT_S, ReadAgain, StreamReader
from milo_objects.subjects import ObjectSubject, ScopeSubject, Subject

NAMESPACES = Kind("v1/namespaces")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR_S = 3600.0


class Stream:
    """The last messages of a stream that a publisher writes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stored: dict[Subject, StoredMessage] = {}
        self.sequence = 0

    def write(self, subject: Subject, message: Message) -> None:
        self.sequence += 1
        self.stored.pop(subject, None)
        self.stored[subject] = StoredMessage(str(subject), self.sequence, *message.encode())

    def cluster(
        self,
        name: str,
        *objects: str,
        state: Pending | Synced | Stale = Synced(NOW),  # noqa: B008
        publisher: str = "",
    ) -> None:
        cluster = FleetCluster(name=name, incarnation="i", uid=f"uid of {name}")
        self.write(ScopeSubject(name, "", "namespaces"), ScopeMessage(cluster, state, 1, publisher))
        for found in objects:
            self.object(name, found)

    def object(self, cluster: str, name: str, *, content: bytes = b"{}", gone: str = "") -> None:
        subject = ObjectSubject(ScopeSubject(cluster, "", "namespaces"), "", name)
        self.write(subject, ObjectMessage(ProjectedObject("", name, f"uid of {name}", content), 1, gone))

    def expire(self) -> None:
        self.stored = {key: found for key, found in self.stored.items() if "Milo-Gone" not in found.headers}


class Reading:
    def __init__(self, *kinds: Kind) -> None:
        self.gone: list[Gone] = []
        read = kinds or (NAMESPACES,)
        self.store = Store([kind.resource for kind in read], {}, NOW, changed=self._changed)
        self.reader = StreamReader(read, self.store)

    def _changed(self, change: Change) -> None:
        if isinstance(change, ObjectGone):
            self.gone.append(change.reason)

    def attach(self, stream: Stream, now: float) -> list[StoredMessage]:
        """Return the messages that the reader asks for."""
        first = self.reader.attach(stream.name, stream.sequence, now)
        return [found for found in stream.stored.values() if found.sequence >= first]

    def read(self, stream: Stream, now: float) -> None:
        for stored in self.attach(stream, now):
            self.reader.receive(stored, now)
        self.caught_up(now)

    def caught_up(self, now: float) -> None:
        """All was received, twice, and a publisher is heard."""
        self.reader.heard(now, now)
        self.reader.caught_up(now - SETTLED_S)
        self.reader.caught_up(now)

    @property
    def outdated(self) -> dict[str, float]:
        """Since when clusters are STALE."""
        return {name: state.since.timestamp() for name, state in self.store.view(NAMESPACES.resource).outdated.items()}

    @property
    def objects(self) -> set[str]:
        return {f"{found.cluster.name}/{found.object.name}" for found in self.store.list(NAMESPACES.resource)}


def test_stream_that_nobody_has_written_does_not_say_that_there_are_no_clusters() -> None:
    stream, reading = Stream("one"), Reading()
    reading.read(stream, 0.0)
    reading.reader.detach("cut")
    assert not reading.store.view(NAMESPACES.resource).is_complete
    reading.read(stream, 1.0)
    stream.cluster("web")
    reading.reader.receive(*stream.stored.values(), 2.0)
    assert reading.store.view(NAMESPACES.resource).is_complete


def test_time_since_which_changes_may_be_missed_is_when_all_was_read() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web")
    reading.read(stream, 100.0)
    for _ in range(2):
        reading.reader.detach("cut")
        assert reading.store.view(NAMESPACES.resource).stale_since == datetime.fromtimestamp(100.0, UTC)
        reading.attach(stream, 200.0)


def test_reader_that_was_cut_off_while_it_resumed_resumes_only_from_when_it_had_read_all() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a", "b")
    reading.read(stream, 0.0)
    stream.object("web", "a", content=b'{"status":{}}')
    stream.object("web", "b", gone="OBJECT_DELETED")
    missed, _ = reading.attach(stream, 0.9 * HOUR_S)
    reading.reader.receive(missed, 0.9 * HOUR_S)
    stream.expire()
    reading.read(stream, 1.7 * HOUR_S)
    assert reading.objects == {"web/a"}


def test_other_object_of_a_name_in_a_stream_that_is_written_again_proves_no_deletion() -> None:
    """Found by simulation 705075: of two publishers of one daemon, the first to write a lost stream knew less."""
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a")
    reading.read(stream, 0.0)
    stream = Stream("two")
    stream.cluster("web", state=Stale(NOW, "no answer"))
    subject = ObjectSubject(ScopeSubject("web", "", "namespaces"), "", "a")
    stream.write(subject, ObjectMessage(ProjectedObject("", "a", "former"), 1, ""))
    reading.read(stream, 1.0)
    assert reading.gone == [Gone.MISSING]
    stream.cluster("web", "a")
    reading.read(stream, 2.0)
    stream.write(subject, ObjectMessage(ProjectedObject("", "a", "later"), 1, ""))
    reading.read(stream, 3.0)
    assert reading.gone[-1] == Gone.OBJECT_DELETED


def test_nothing_ends_because_another_stream_was_not_written_yet() -> None:
    stream, reading = Stream("one"), Reading()
    for name in ("web", "db", "old"):
        stream.cluster(name, "a", "b")
    reading.read(stream, 0.0)
    stream = Stream("two")
    reading.read(stream, 1.0)
    reading.caught_up(2 * HOUR_S)
    assert len(reading.objects) == 6
    assert isinstance(reading.store.fleet, Stale)
    stream.cluster("web", "a", state=Pending(NOW))
    stream.cluster("db", "a")
    reading.read(stream, 2 * HOUR_S)
    assert reading.objects == {"web/a", "web/b", "db/a", "old/a", "old/b"}
    stream.cluster("web")
    reading.reader.receive([*stream.stored.values()][-1], 2 * HOUR_S)
    assert reading.objects == {"web/a", "db/a", "old/a", "old/b"}
    reading.caught_up(2 * HOUR_S + REWRITTEN_S)
    assert "old/a" in reading.objects
    reading.caught_up(2 * HOUR_S + REWRITTEN_S + 1.0)
    assert reading.objects == {"web/a", "db/a"}
    assert set(reading.store.clusters) == {"web", "db"}
    assert isinstance(reading.store.fleet, Synced)


def test_fleet_is_stale_since_a_publisher_was_last_heard() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a")
    reading.reader.attach(stream.name, stream.sequence, 100.0)
    reading.reader.heard(95.0, 100.0)
    reading.reader.receive(*[*stream.stored.values()][:1], 100.0)
    reading.reader.caught_up(95.0 + SILENT_S)
    assert isinstance(reading.store.fleet, Synced)
    reading.reader.caught_up(96.0 + SILENT_S)
    assert reading.store.fleet == Stale(
        datetime.fromtimestamp(95.0, UTC), "no publisher has been heard since 1970-01-01T00:01:35Z"
    )
    assert reading.store.view(NAMESPACES.resource).is_complete
    reading.reader.detach("cut")
    assert reading.store.view(NAMESPACES.resource).stale_since == datetime.fromtimestamp(95.0, UTC)
    reading.attach(stream, 200.0)
    reading.reader.caught_up(200.0)
    assert isinstance(reading.store.fleet, Synced)  # one that runs has not had the time to be heard
    reading.reader.heard(200.0, 200.0)
    reading.reader.caught_up(230.0)
    reading.reader.caught_up(231.0)
    assert isinstance(reading.store.fleet, Stale)
    reading.reader.heard(232.0, 232.0)
    assert isinstance(reading.store.fleet, Synced)


def test_reader_that_starts_after_publishers_ended_knows_it_at_once() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a")
    first = reading.reader.attach(stream.name, stream.sequence, HOUR_S)
    reading.reader.heard(60.0, HOUR_S)
    for stored in stream.stored.values():
        reading.reader.receive(stored, HOUR_S)
    reading.reader.caught_up(HOUR_S)
    assert first == 1
    assert reading.store.view(NAMESPACES.resource).stale_since == datetime.fromtimestamp(60.0, UTC)


def test_reader_that_has_never_heard_a_publisher_says_so_after_a_while() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a")
    for stored in reading.attach(stream, 100.0):
        reading.reader.receive(stored, 100.0)
    reading.reader.caught_up(101.0 + SILENT_S)
    assert reading.store.view(NAMESPACES.resource).stale_since == datetime.fromtimestamp(100.0, UTC)
    reading.reader.caught_up(50.0)  # the clock was set back
    reading.reader.caught_up(51.0 + SILENT_S)
    assert reading.store.view(NAMESPACES.resource).stale_since == datetime.fromtimestamp(50.0, UTC)


def heartbeat(publisher: str, *sources: str, **problems: str) -> Heartbeat:
    return Heartbeat(publisher, {**dict.fromkeys(sources or ("",), ""), **problems})


def test_cluster_is_stale_if_its_publisher_is_silent_and_others_are_not() -> None:
    stream, reading = Stream("one"), Reading()
    for name, publisher in (("web", "one"), ("db", "two"), ("old", "")):
        stream.cluster(name, publisher=publisher)
    for stored in reading.attach(stream, 100.0):
        reading.reader.receive(stored, 100.0)
    reading.reader.heard(95.0, 100.0, heartbeat("one"))
    reading.reader.caught_up(100.0)
    assert not reading.outdated  # two has not had the time to be heard
    reading.reader.heard(105.0, 105.0, heartbeat("two"))
    for at in (110.0, 130.0, 136.0):
        reading.reader.heard(at, at, heartbeat("one"))
    assert reading.outdated == {"db": 105.0}
    problem = "publisher two has not been heard since 1970-01-01T00:01:45Z"
    assert reading.store.fleet == Stale(datetime.fromtimestamp(105.0, UTC), problem)

    reading.reader.detach("cut")
    reading.attach(stream, 140.0)
    reading.reader.heard(140.0, 140.0, heartbeat("one"))
    reading.reader.caught_up(140.0)
    assert reading.outdated == {"db": 105.0}
    stream.cluster("db", publisher="one")
    reading.reader.receive([*stream.stored.values()][-1], 141.0)
    reading.reader.caught_up(141.0)
    assert not reading.outdated
    assert isinstance(reading.store.fleet, Synced)


def test_cluster_is_stale_since_its_publisher_wrote_it_if_that_ended_before_the_reader_began() -> None:
    """Only the last heartbeat of one publisher is in the stream."""
    stream, reading = Stream("one"), Reading()
    stream.cluster("db", publisher="two")
    stream.cluster("cache", publisher="two", state=Pending(NOW))
    stream.cluster("web", publisher="one")
    stream.cluster("late", publisher="three")
    for stored, at in zip(reading.attach(stream, 140.0), (50.0, 60.0, 70.0, 150.0), strict=True):  # the clocks differ
        reading.reader.receive(stored._replace(at=at), 140.0)
    reading.reader.heard(140.0, 140.0, heartbeat("one"))
    reading.reader.caught_up(140.0)
    assert not reading.outdated  # two has not had the time to be heard
    reading.reader.heard(171.0, 171.0, heartbeat("one"))
    assert reading.outdated == {"db": 50.0, "late": 140.0}
    assert isinstance(reading.store.fleet, Stale)
    assert "publisher two has not been heard since 1970-01-01T00:00:50Z" in reading.store.fleet.problem
    reading.reader.heard(172.0, 172.0, heartbeat("two"))
    reading.reader.heard(172.0, 172.0, heartbeat("three"))
    assert not reading.outdated


def test_publisher_of_an_earlier_version_may_follow_any_cluster() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", publisher="one")
    stream.cluster("a#web", publisher="one")
    reading.read(stream, 100.0)
    reading.reader.heard(101.0, 101.0, heartbeat("one", "", "a"))
    reading.reader.heard(140.0, 140.0)
    assert not reading.outdated
    reading.reader.heard(171.0, 171.0, heartbeat("one"))
    assert reading.outdated == {"a#web": 140.0}
    reading.reader.heard(171.0 + FORGOTTEN_S, 171.0 + FORGOTTEN_S, heartbeat("two"))
    assert set(reading.outdated) == {"web", "a#web"}


def test_source_that_its_publisher_does_not_follow_is_stale() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("a#web")
    stream.cluster("b#web", state=Pending(NOW))
    reading.read(stream, 100.0)
    reading.reader.heard(101.0, 101.0, heartbeat("", "a", "b"))
    reading.reader.heard(111.0, 111.0, heartbeat("", "b", a="no answer"))
    assert reading.store.fleet == Stale(datetime.fromtimestamp(101.0, UTC), "a: no answer")
    assert not reading.outdated
    reading.reader.heard(132.0, 132.0, heartbeat("", "b", a="no answer"))
    assert reading.outdated == {"a#web": 101.0}
    reading.reader.heard(142.0, 142.0, heartbeat("", "b"))
    assert reading.store.fleet == Stale(datetime.fromtimestamp(101.0, UTC), "a: no answer")
    reading.reader.heard(163.0, 163.0, heartbeat("", "b"))
    problem = "a publisher of the source a has not been heard since 1970-01-01T00:01:41Z"
    assert reading.store.fleet == Stale(datetime.fromtimestamp(101.0, UTC), problem)
    reading.reader.heard(164.0, 164.0, heartbeat("", "a", "b"))
    assert isinstance(reading.store.fleet, Synced)
    assert not reading.outdated


def test_kind_keeps_the_fields_and_the_objects_that_it_names() -> None:
    stream, kind = Stream("one"), Kind("v1/namespaces", ["status.phase"], label_selector="team=red")
    reading = Reading(kind)
    content = b'{"metadata":{"labels":{"team":"red"}},"spec":{"a":1},"status":{"phase":"Active"}}'
    stream.cluster("web", "unlabeled")
    stream.object("web", "red", content=content)
    reading.read(stream, 0.0)
    (found,) = reading.store.list(NAMESPACES.resource)
    assert (found.object.name, found.object.fields) == ("red", {"status": {"phase": "Active"}})
    stream.object("web", "red", content=content.replace(b"red", b"blue"))
    reading.reader.receive([*stream.stored.values()][-1], 1.0)
    assert not reading.objects
    assert reading.gone == [Gone.OUT_OF_SELECTOR]


def test_malformed_object_is_refused_and_keeps_its_last_state() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a")
    reading.read(stream, 0.0)
    (stored,) = (found for found in stream.stored.values() if found.subject.endswith(".a"))
    for body in (b"{", b"{}", b'{"metadata":{"name":"a","uid":1}}'):
        with pytest.raises(ValueError, match=r"core.namespaces._.a, sequence 2: not a message of milo-objects"):
            reading.reader.receive(stored._replace(body=body), 1.0)
    assert reading.objects == {"web/a"}


def test_two_versions_of_a_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a.io/v1/things and a.io/v2/things: the stream has one version of a kind"):
        Reading(Kind("a.io/v1/things"), Kind("a.io/v2/things"))


def test_object_whose_scope_was_written_again_while_the_stream_was_read_is_kept() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a", state=Pending(NOW))
    messages = reading.attach(stream, 0.0)
    stream.cluster("web")  # in place of the message that the reader was to receive first
    reading.reader.receive(messages[1], 0.0)
    reading.caught_up(0.0)
    reading.reader.detach("cut")
    (scope,) = reading.attach(stream, 1.0)
    reading.reader.receive(scope, 1.0)
    reading.caught_up(1.0)
    assert reading.objects == {"web/a"}
    assert reading.store.view(NAMESPACES.resource).synced == 1


def test_nothing_ends_because_it_was_written_again_while_the_stream_was_read() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a", "b")
    reading.read(stream, 0.0)
    _, _, stored = reading.attach(stream, HOUR_S)
    stream.object("web", "a", content=b'{"status":{}}')
    stream.cluster("web")
    reading.reader.receive(stored, HOUR_S)
    reading.reader.caught_up(HOUR_S)  # what was written again is not counted yet
    for again in [*stream.stored.values()][-2:]:
        reading.reader.receive(again, HOUR_S)
    reading.reader.caught_up(HOUR_S + SETTLED_S)
    assert reading.objects == {"web/a", "web/b"}
    assert not reading.gone
    assert reading.store.view(NAMESPACES.resource).stale_since is None


class Projects:
    """Messages of a project that is deleted and created again, and the reader that receives each as it is written."""

    def __init__(self) -> None:
        self.stream, self.reading = Stream("one"), Reading(NAMESPACES, WIDGETS)
        self.reading.read(self.stream, 0.0)

    def scope(self, kind: str, uid: str, state: ScopeState | ScopeIsOver, epoch: int) -> None:
        self._write(SCOPES[kind], ScopeMessage(FleetCluster(name="web", incarnation=uid, uid=uid), state, epoch))

    def put(self, kind: str, epoch: int) -> None:
        self._write(ObjectSubject(SCOPES[kind], "", "a"), ObjectMessage(ProjectedObject("", "a", "u"), epoch))

    def _write(self, subject: Subject, message: Message) -> None:
        self.stream.write(subject, message)
        self.reading.reader.receive(self.stream.stored[subject], 1.0)
        self.reading.caught_up(1.0)

    def expect_read_again(self, kind: str, uid: str, state: ScopeState | ScopeIsOver, epoch: int) -> None:
        with pytest.raises(ReadAgain, match="web: what had ended goes on"):
            self.scope(kind, uid, state, epoch)
        self.reading.reader.detach("read again")
        self.reading.read(self.stream, 1.0)

    def known(self) -> dict[str, list[str]]:
        """Return the objects of each kind that is SYNCED."""
        store = self.reading.store
        resources = {"namespaces": NAMESPACES.resource, "widgets": WIDGETS.resource}
        return {
            kind: [found.object.name for found in store.list(resource)]
            for kind, resource in resources.items()
            if store.view(resource).synced
        }

    def agrees(self) -> bool:
        """Return whether the reader has what one has that begins now."""
        other = Projects()
        other.reading.read(self.stream, 2.0)
        return self.known() == other.known()


WIDGETS = Kind("example.com/v1/widgets")
SCOPES = {
    "namespaces": ScopeSubject("web", "", "namespaces"),
    "widgets": ScopeSubject("web", "example.com", "widgets"),
}
WITHDRAWN = ScopeIsOver("WITHDRAWN")


def test_publisher_that_lags_does_not_end_a_project_that_was_created_again() -> None:
    projects = Projects()
    projects.scope("namespaces", "former", Synced(NOW), 1)
    projects.scope("widgets", "former", Synced(NOW), 2)
    projects.scope("namespaces", "former", WITHDRAWN, 1)
    projects.scope("namespaces", "new", Pending(NOW), 10)
    projects.put("namespaces", 10)
    for state in (Stale(NOW, "410 Gone"), NotServed(NOW, "404")):
        projects.scope("widgets", "former", state, 2)
    projects.scope("namespaces", "new", Synced(NOW), 10)
    assert projects.known() == {"namespaces": ["a"]}
    projects.scope("widgets", "former", WITHDRAWN, 2)
    projects.scope("widgets", "new", Pending(NOW), 12)
    projects.put("widgets", 12)
    assert projects.known() == {"namespaces": ["a"]}
    projects.scope("widgets", "new", Synced(NOW), 12)
    assert projects.known() == {"namespaces": ["a"], "widgets": ["a"]}
    assert projects.agrees()


def test_scope_that_began_before_an_earlier_engagement_ended_is_read_again() -> None:
    projects = Projects()
    projects.scope("namespaces", "web", Synced(NOW), 0)
    projects.scope("widgets", "web", Synced(NOW), 1)
    projects.scope("widgets", "web", WITHDRAWN, 1)
    projects.scope("widgets", "web", Synced(NOW), 3)
    projects.put("widgets", 3)
    projects.scope("namespaces", "web", ScopeIsOver("NOT_READY"), 0)
    assert projects.known() == {}
    projects.expect_read_again("namespaces", "web", Synced(NOW), 6)
    assert projects.known() == {"namespaces": [], "widgets": ["a"]}
    projects.scope("widgets", "web", ScopeIsOver("DELETED"), 3)
    projects.scope("namespaces", "web", ScopeIsOver("DELETED"), 6)
    projects.scope("namespaces", "web", Synced(NOW), 9)
    assert projects.known() == {"namespaces": []}


def test_cluster_ends_with_a_scope_that_ended_before() -> None:
    projects = Projects()
    projects.scope("namespaces", "web", Synced(NOW), 0)
    projects.scope("widgets", "web", Synced(NOW), 1)
    projects.scope("namespaces", "web", WITHDRAWN, 0)
    projects.scope("namespaces", "web", ScopeIsOver("DELETED"), 0)
    assert projects.known() == {"widgets": []}  # perhaps of the next engagement
    projects.scope("widgets", "web", WITHDRAWN, 1)
    projects.scope("widgets", "former", ScopeIsOver("DELETED"), 1)
    assert set(projects.reading.store.clusters) == {"web"}
    projects.scope("widgets", "web", ScopeIsOver("DELETED"), 1)
    assert not projects.reading.store.clusters


@pytest.mark.parametrize("last", ["former", "new"])
def test_scope_that_was_dropped_and_goes_on_is_read_again(last: str) -> None:
    projects = Projects()
    projects.scope("namespaces", "new", Synced(NOW), 9)
    projects.put("namespaces", 9)
    projects.scope("widgets", "former", Synced(NOW), 10)  # whose publisher read the stream later
    projects.scope("namespaces", "new", Synced(NOW), 9)
    assert projects.known() == {"widgets": []}
    if last == "former":
        projects.expect_read_again("widgets", "former", WITHDRAWN, 10)
        assert projects.known() == {"namespaces": ["a"]}
    else:
        projects.expect_read_again("widgets", "new", Synced(NOW), 12)
        assert projects.known() == {"namespaces": ["a"], "widgets": []}


@pytest.mark.parametrize("name", ["", "a"], ids=["of the scope", "of an object"])
def test_message_that_cannot_be_decoded_ends_nothing(name: str) -> None:
    """Found by an audit: what the stream had in a form that the reader does not know was missing from a snapshot."""
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a", "b")
    reading.read(stream, 0.0)
    scope = ScopeSubject("web", "", "namespaces")
    subject = ObjectSubject(scope, "", name) if name else scope
    stream.stored[subject] = stream.stored[subject]._replace(body=b"{}")
    for stored in reading.attach(stream, 2 * HOUR_S):
        try:
            reading.reader.receive(stored, 2 * HOUR_S)
        except ValueError:
            assert stored.subject == str(subject)
    reading.caught_up(2 * HOUR_S)
    assert (reading.objects, reading.gone) == ({"web/a", "web/b"}, [])


def test_scope_is_stale_while_its_state_in_the_stream_cannot_be_decoded() -> None:
    stream, reading = Stream("one"), Reading()
    stream.cluster("web", "a")
    reading.read(stream, 100.0)
    unreadable = [
        stored._replace(sequence=number, body=b"{}") for number, stored in enumerate(stream.stored.values(), 10)
    ]
    other = ScopeSubject("other", "", "namespaces")
    for stored in (*unreadable, StoredMessage(str(other), 20, {}, b"{}")):
        with pytest.raises(ValueError, match="not a message of milo-objects"):
            reading.reader.receive(stored, 101.0)
    assert (reading.objects, reading.outdated) == ({"web/a"}, {"web": 100.0})
    stream.sequence = 20
    stream.cluster("web")
    reading.reader.receive(stream.stored[ScopeSubject("web", "", "namespaces")], 102.0)
    assert (reading.objects, reading.outdated) == ({"web/a"}, {})
