"""Whatever happens to the fleet and to somebody's rights, and whenever he looks: he is told all of what he may see, in
order, and nothing of what he may not.

The model is that of the cursors: a picture of the whole fleet at every revision.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.model.selector import parse
from milo_discoveryd.registry.cursor import Batch, Cursor
from milo_discoveryd.registry.events import EventType
from milo_discoveryd.registry.filter import EVERYTHING, ClusterView, Filter
from milo_discoveryd.registry.log import Retention
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope, scoped
from tests.simulation.properties.pictured import Picture, Pictured
from tests.unit.registry.fleets import read, readable_log

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


def covered(picture: Picture, wanted: ClusterView) -> Picture:
    return {name: each for name, each in picture.items() if wanted.matches(each)}


def incarnations(picture: Picture) -> dict[str, int]:
    return {name: each.incarnation for name, each in picture.items()}


class Reader:
    """Applies what it is given, as a subscriber does; knows what it may see, and holds the two against each other."""

    def __init__(self, fleet: "Fleet", asked: Filter, scope: ClusterScope) -> None:
        self.fleet = fleet
        self.asked = asked
        self.scopes = [scope]
        """Those it has had since it was last through with all, the present one at the end."""
        self.wanted = scoped(asked, scope)
        self.cursor = Cursor(fleet.log, self.wanted, None)
        self.view: Picture = {}
        self.revision = 0
        self.is_synced = False

    def may_see(self, scope: ClusterScope) -> None:
        self.scopes.append(scope)
        self.wanted = scoped(self.asked, scope)
        self.cursor.change_view(self.wanted)

    def take(self) -> bool:
        batch = self.cursor.take()
        if batch is None:
            assert self.view == covered(self.fleet.picture, self.wanted), "with nothing left to read, it is all there"
            self.scopes = self.scopes[-1:]
            return False
        if batch.reset:
            assert not self.is_synced or not self.fleet.log.reads_from(self.revision), "rights reset nobody"
            self.view = {}
        else:
            assert batch.revision >= self.revision, "revisions never go back"
        for event in read(batch.frames):
            if event.type is EventType.DISENGAGED:
                self._ended(event.cluster, event.reason)
            else:
                self._told(event.cluster, event.type)
        self.revision, self.is_synced = batch.revision, batch.synced
        self._judge(batch)
        return True

    def _told(self, told: Cluster, kind: EventType) -> None:
        assert self.wanted.matches(told), "nobody is told of what he may not see"
        known = self.view.get(told.target.name)
        assert (known is None) == (kind is EventType.ENGAGED)
        assert known is None or known.incarnation == told.incarnation
        assert known != told or not self.fleet.in_one_piece, "nor of anything twice"
        self.view[told.target.name] = told

    def _ended(self, told: Cluster, reason: DisengageReason | None) -> None:
        known = self.view.pop(told.target.name)
        assert known.incarnation == told.incarnation
        if reason is DisengageReason.REVOKED:
            assert not self.wanted.matches(told)
            assert any(scope.matches(told) for scope in self.scopes[:-1]), "an end shows what could be seen before it"
        else:
            assert self.scopes[-1].matches(told), "an end shows nothing that came after it"
        if reason is DisengageReason.REPLACED and not self.scopes[-1].is_everything:
            assert any(
                self.scopes[-1].matches(picture[told.target.name])
                for picture in self.fleet.pictures
                if told.target.name in picture and picture[told.target.name].incarnation != told.incarnation
            ), "nor whose the name is now, if that can't be seen"

    def _judge(self, batch: Batch) -> None:
        if batch.is_whole:
            then = covered(self.fleet.pictures[batch.revision], self.wanted)
            assert incarnations(self.view) == incarnations(then), "true of the revision it carries"

    def catch_up(self) -> None:
        while self.take():
            pass


class Fleet(Pictured):
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
    def things_happen(self, changes: list[tuple[str, str, dict[str, str], str]]) -> None:
        for change, name, labels, organization in changes:
            getattr(self, change)(name, labels, organization)

    @rule(asked=FILTERS, scope=SCOPES)
    def somebody_begins_to_read(self, asked: Filter, scope: ClusterScope) -> None:
        self.readers.append(Reader(self, asked, scope))

    @rule(which=st.integers(0, 9), scope=SCOPES)
    def somebodys_rights_change(self, which: int, scope: ClusterScope) -> None:
        self.reader(which).may_see(scope)

    @rule(which=st.integers(0, 9))
    def somebody_reads_a_batch(self, which: int) -> None:
        self.reader(which).take()

    @rule(which=st.integers(0, 9))
    def somebody_reads_it_all(self, which: int) -> None:
        self.reader(which).catch_up()

    def teardown(self) -> None:
        for reader in self.readers:
            reader.catch_up()

    def reader(self, which: int) -> Reader:
        return self.readers[which % len(self.readers)]


class TestRights(Fleet.TestCase):
    settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=40)
