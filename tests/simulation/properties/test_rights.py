"""Readers whose rights change at arbitrary times: each sees everything in its scope, in order, and nothing else.

The model is a snapshot of the whole fleet at every revision.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from milo_discoveryd.log.change_log import Retention
from milo_discoveryd.log.cursor import Batch, Cursor
from milo_discoveryd.log.events import EventType
from milo_discoveryd.log.filter import EVERYTHING, ClusterView, Filter
from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope, scoped
from milo_kube.label_selector import parse
from tests.simulation.properties.pictured import ModeledFleet, Snapshot
from tests.unit.fleet.fleets import read, readable_log

CHANGES = st.sampled_from(["engage_or_update", "engage_or_update", "replace", "disengage"])
NAMES = st.sampled_from("abcd")
LABELS = st.sampled_from([{"env": "prod"}, {"env": "dev"}])
ORGANIZATIONS = st.sampled_from(["x", "y"])
FILTERS = st.sampled_from([EVERYTHING, Filter(parse("env=prod")), Filter(names=frozenset({"a", "b"}))])
SCOPES = st.sampled_from(
    [
        ALL_CLUSTERS,
        NO_CLUSTERS,
        ClusterScope(parse("env=prod")),
        ClusterScope(parse("env=dev")),
        ClusterScope(organizations=frozenset({"x"})),
        ClusterScope(names=name_patterns(["a*", "c"])),
        ClusterScope(parse("env"), frozenset({"y"}), name_patterns(["b", "d"])),
    ]
)


def covered(snapshot: Snapshot, wanted: ClusterView) -> Snapshot:
    return {name: cluster for name, cluster in snapshot.items() if wanted.matches(cluster)}


def incarnations(snapshot: Snapshot) -> dict[str, int]:
    return {name: cluster.incarnation for name, cluster in snapshot.items()}


class Reader:
    """Applies events as a subscriber does, and compares the result with its scope."""

    def __init__(self, fleet: "Fleet", asked: Filter, scope: ClusterScope) -> None:
        self.fleet = fleet
        self.asked = asked
        self.scopes = [scope]
        """The scopes since the reader last caught up; the current one is the last."""
        self.wanted = scoped(asked, scope)
        self.cursor = Cursor(fleet.log, self.wanted, None)
        self.view: Snapshot = {}
        self.revision = 0
        self.is_synced = False

    def set_scope(self, scope: ClusterScope) -> None:
        self.scopes.append(scope)
        self.wanted = scoped(self.asked, scope)
        self.cursor.change_view(self.wanted)

    def take(self) -> bool:
        batch = self.cursor.next_batch()
        if batch is None:
            assert self.view == covered(self.fleet.snapshot, self.wanted), (
                "a reader without pending events has everything in scope"
            )
            self.scopes = self.scopes[-1:]
            return False
        if batch.reset:
            assert not self.is_synced or not self.fleet.log.reads_from(self.revision), (
                "a change of rights causes no reset"
            )
            self.view = {}
        else:
            assert batch.revision >= self.revision, "revisions do not decrease"
        for event in read(batch.slice.frames):
            if event.type is EventType.DISENGAGED:
                self._check_end(event.cluster, event.reason)
            else:
                self._check_event(event.cluster, event.type)
        self.revision, self.is_synced = batch.revision, batch.synced
        self._check_batch(batch)
        return True

    def _check_event(self, cluster: Cluster, kind: EventType) -> None:
        assert self.wanted.matches(cluster), "events are in scope"
        known = self.view.get(cluster.target.name)
        assert (known is None) == (kind is EventType.ENGAGED)
        assert known is None or known.incarnation == cluster.incarnation
        assert known != cluster or not self.fleet.in_one_piece, "an update changes something"
        self.view[cluster.target.name] = cluster

    def _check_end(self, cluster: Cluster, reason: DisengageReason | None) -> None:
        known = self.view.pop(cluster.target.name)
        assert known.incarnation == cluster.incarnation
        if reason is DisengageReason.REVOKED:
            assert not self.wanted.matches(cluster)
            assert any(scope.matches(cluster) for scope in self.scopes[:-1]), (
                "a revocation shows what was visible before it"
            )
        else:
            assert self.scopes[-1].matches(cluster), "an end shows only what is visible in the current scope"
        if reason is DisengageReason.REPLACED and not self.scopes[-1].is_everything:
            assert any(
                self.scopes[-1].matches(snapshot[cluster.target.name])
                for snapshot in self.fleet.snapshots
                if cluster.target.name in snapshot and snapshot[cluster.target.name].incarnation != cluster.incarnation
            ), "REPLACED is sent only if the replacement was in scope"

    def _check_batch(self, batch: Batch) -> None:
        if batch.is_whole:
            then = covered(self.fleet.snapshots[batch.revision], self.wanted)
            assert incarnations(self.view) == incarnations(then), "the view is the fleet at the batch's revision"

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
        remembered=st.sampled_from([0, 3, 1000, 1000, 1000]),
        readers=st.lists(st.tuples(FILTERS, SCOPES), min_size=2, max_size=4),
    )
    def begin(self, batch_bytes: int, remembered: int, readers: list[tuple[Filter, ClusterScope]]) -> None:
        self.log = readable_log(Retention(remembered, 60.0), batch_bytes)
        self.in_one_piece = batch_bytes == 1 << 20
        self.readers = [Reader(self, asked, scope) for asked, scope in readers]

    @rule(changes=st.lists(st.tuples(CHANGES, NAMES, LABELS, ORGANIZATIONS), min_size=1, max_size=6))
    def change_objects(self, changes: list[tuple[str, str, dict[str, str], str]]) -> None:
        for change, name, labels, organization in changes:
            getattr(self, change)(name, labels, organization)

    @rule(asked=FILTERS, scope=SCOPES)
    def add_reader(self, asked: Filter, scope: ClusterScope) -> None:
        self.readers.append(Reader(self, asked, scope))

    @rule(which=st.integers(0, 9), scope=SCOPES)
    def change_rights(self, which: int, scope: ClusterScope) -> None:
        self.reader(which).set_scope(scope)

    @rule(which=st.integers(0, 9))
    def read_batch(self, which: int) -> None:
        self.reader(which).take()

    @rule(which=st.integers(0, 9))
    def read_all(self, which: int) -> None:
        self.reader(which).catch_up()

    def teardown(self) -> None:
        for reader in self.readers:
            reader.catch_up()

    def reader(self, which: int) -> Reader:
        return self.readers[which % len(self.readers)]


class TestRights(Fleet.TestCase):
    settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=40)
