"""Cursors under arbitrary changes, pauses and resumes: the received events add up to the fleet.

The model is a snapshot of the whole fleet at every revision.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from milo_discoveryd.log.change_log import Retention
from milo_discoveryd.log.cursor import Batch, Cursor
from milo_discoveryd.log.events import EventType
from milo_discoveryd.log.filter import EVERYTHING, Filter
from milo_discoveryd.model.cluster import DisengageReason
from milo_kube.label_selector import parse
from tests.simulation.properties.pictured import ModeledFleet, Snapshot
from tests.unit.fleet.fleets import read, readable_log

CHANGES = st.sampled_from(["engage_or_update", "engage_or_update", "replace", "disengage", "drain"])
NAMES = st.sampled_from("abcd")
LABELS = st.sampled_from([{"env": "prod"}, {"env": "dev"}])
ORGANIZATIONS = st.sampled_from(["x", "y"])
FILTERS = st.sampled_from(
    [
        EVERYTHING,
        Filter(parse("env=prod")),
        Filter(names=frozenset({"a", "b"})),
        Filter(organizations=frozenset({"x"})),
        Filter(parse("env=dev"), names=frozenset({"b", "c"})),
        Filter(confirms_releases=True),
        Filter(parse("env=prod"), confirms_releases=True),
    ]
)


def covered(snapshot: Snapshot, wanted: Filter) -> Snapshot:
    return {name: cluster for name, cluster in snapshot.items() if wanted.matches(cluster)}


def incarnations(snapshot: Snapshot) -> dict[str, int]:
    return {name: cluster.incarnation for name, cluster in snapshot.items()}


class Reader:
    """Applies events as a subscriber does, and compares the result with the model."""

    def __init__(self, fleet: "Fleet", wanted: Filter, resume: int | None, view: Snapshot) -> None:
        self.fleet = fleet
        self.wanted = wanted
        self.cursor = Cursor(fleet.log, wanted, resume)
        self.view = dict(view)
        self.synced = self.cursor.is_following
        self.revision = resume if resume is not None and self.cursor.is_following else 0
        self.given: list[tuple[int, Snapshot]] = [(self.revision, dict(view))] if self.synced else []

    def take(self) -> bool:
        batch = self.cursor.next_batch()
        if batch is None:
            assert self.revision <= self.fleet.log.head
            assert self.view == covered(self.fleet.snapshot, self.wanted), (
                "a reader without pending events has the whole fleet"
            )
            return False
        if batch.reset:
            self.view = {}
        else:
            assert batch.revision >= self.revision, "revisions do not decrease"
        self._apply(batch)
        self.revision, self.synced = batch.revision, batch.synced
        if batch.synced:
            then = covered(self.fleet.snapshots[batch.revision], self.wanted)
            assert incarnations(self.view) == incarnations(then), "the view is the fleet at the batch's revision"
            self.given.append((batch.revision, dict(self.view)))
        return True

    def _apply(self, batch: Batch) -> None:
        then = self.fleet.snapshots[batch.revision]
        for event in read(batch.slice.frames):
            name, known = event.cluster.target.name, self.view.get(event.cluster.target.name)
            if event.type is EventType.ENGAGED:
                assert known is None, "a cluster is engaged once"
                assert self.wanted.matches(event.cluster)
                self.view[name] = event.cluster
                continue
            assert known is not None, "only engaged clusters receive other events"
            assert known.incarnation == event.cluster.incarnation, "events are of the engaged incarnation"
            if event.type is EventType.UPDATED:
                assert self.wanted.matches(event.cluster)
                if self.fleet.in_one_piece:
                    assert event.cluster != known, "an update changes something"
                self.view[name] = event.cluster
                continue
            del self.view[name]
            still = then.get(name)
            assert still is None or still.incarnation != known.incarnation or not self.wanted.matches(still)
            assert event.cluster.draining is None or self.wanted.confirms_releases
            left = still is not None and still.incarnation == known.incarnation
            drains = left and still is not None and still.draining is not None and not self.wanted.confirms_releases
            assert (event.reason is DisengageReason.LABELS_CHANGED) == (left and not drains), (
                "the reason is the actual one"
            )
            assert not drains or event.reason is DisengageReason.NOT_READY

    def catch_up(self) -> None:
        while self.take():
            pass


class Fleet(ModeledFleet):
    def __init__(self) -> None:
        super().__init__()
        self.in_one_piece = True
        self.readers: list[Reader] = []

    @initialize(
        batch_bytes=st.sampled_from([900, 1, 1 << 20]),
        stale_slots=st.sampled_from([1, 3, 1000]),
        remembered=st.sampled_from([0, 3, 1000, 1000]),
        filters=st.lists(FILTERS, min_size=2, max_size=4),
    )
    def begin(self, batch_bytes: int, stale_slots: int, remembered: int, filters: list[Filter]) -> None:
        self.log = readable_log(Retention(remembered, 60.0), batch_bytes, stale_slots)
        self.in_one_piece = batch_bytes == 1 << 20
        self.readers = [Reader(self, wanted, None, {}) for wanted in filters]

    @rule(changes=st.lists(st.tuples(CHANGES, NAMES, LABELS, ORGANIZATIONS), min_size=1, max_size=6))
    def change_objects(self, changes: list[tuple[str, str, dict[str, str], str]]) -> None:
        for change, name, labels, organization in changes:
            getattr(self, change)(name, labels, organization)

    @rule(seconds=st.sampled_from([1.0, 30.0, 100.0]))
    def advance_time(self, seconds: float) -> None:
        self.now += seconds
        self.log.forget(self.now)

    @rule()
    def evict_frames(self) -> None:
        _ = [*self.log.evict_frames()]

    @rule(wanted=FILTERS)
    def add_reader(self, wanted: Filter) -> None:
        self.readers.append(Reader(self, wanted, None, {}))

    @rule(which=st.integers(0, 9))
    def read_batch(self, which: int) -> None:
        self.reader(which).take()

    @rule(which=st.integers(0, 9))
    def read_all(self, which: int) -> None:
        self.reader(which).catch_up()

    @rule(which=st.integers(0, 9), back=st.integers(0, 5))
    def resume_reader(self, which: int, back: int) -> None:
        reader = self.reader(which)
        if reader.given:
            revision, view = reader.given[-1 - min(back, len(reader.given) - 1)]
            again, twin, third = (Reader(self, reader.wanted, revision, view) for _ in range(3))
            assert again.cursor.is_following == self.log.reads_from(revision)
            assert twin.cursor.next_batch() == third.cursor.next_batch(), (
                "readers at one revision receive the same bytes"
            )
            self.readers.append(again)

    @rule(wanted=FILTERS, ahead=st.integers(1, 5))
    def reject_future_revision(self, wanted: Filter, ahead: int) -> None:
        assert not Cursor(self.log, wanted, self.log.head + ahead).is_following

    def teardown(self) -> None:
        for reader in self.readers:
            reader.catch_up()

    def reader(self, which: int) -> Reader:
        return self.readers[which % len(self.readers)]

    def record(self, snapshot: Snapshot) -> None:
        super().record(snapshot)
        assert len(self.snapshots) == self.log.head + 1, "each change has one revision"


class TestReaders(Fleet.TestCase):
    settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=40)
