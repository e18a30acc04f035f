"""When the first list of a run is shown to subscribers that have clusters from an earlier run."""

import msgspec
import pytest

from milo_discoveryd.fleet.fleet import Fleet, WaitingStreams
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_kube.label_selector import parse
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.sources import new_source
from tests.unit.engagement.test_contribution_index import RecordedFleet, thing
from tests.unit.fleet.fleets import finish, not_ready, ready
from tests.unit.fleet.test_fleet_malformed import Ledger


def source() -> ClusterSource:
    log = ChangeLog(msgspec.json.encode, Retention())
    return new_source(Ledger(), log, removals=RemovalLimits())


def take(of: ClusterSource, now: float, *events: SourceEvent[Observation]) -> None:
    for _ in of.apply(of.collections[0], events, now):
        pass


def lists(of: ClusterSource, *seen: Observation, now: float = 0.0) -> None:
    take(of, now, ListStarted(), *(Listed(observation) for observation in seen), ListEnded())


def waits(of: ClusterSource, known: int, visible: int) -> bool:
    """Return whether a subscriber with `known` clusters waits for a second list if its view has `visible` clusters."""
    first = of.first_list
    return first.may_lack(known, min(first.clusters, visible))


def test_source_version_is_the_version_of_its_latest_list_or_change() -> None:
    of = source()
    take(of, 0.0, ListStarted(), Listed(ready("a", "3")), ListEnded(version="5"))
    assert of.version == of.first_list.version == 5
    take(of, 1.0, ObjectChanged(ready("a", "8")))
    assert of.version == 8
    take(of, 2.0, ListStarted(), Listed(ready("a", "8")), ListEnded(version="opaque"))
    assert of.version == 0


def test_stream_counts_as_waiting_while_it_awaits_a_source() -> None:
    waiting, stream = WaitingStreams(), object()
    waiting.await_sources(stream, frozenset())
    assert (len(waiting), waiting.is_any_for("eu")) == (0, False)
    waiting.await_sources(stream, frozenset(["eu"]))
    assert (len(waiting), waiting.is_any_for("eu"), waiting.is_any_for("us")) == (1, True, False)
    waiting.await_sources(stream, frozenset())
    assert (len(waiting), waiting.is_any_for("eu")) == (0, False)


def test_subscriber_may_keep_clusters_until_the_source_is_shown_to_it_or_its_list_is_verified() -> None:
    waiting, stream = WaitingStreams(), object()

    def may_keep(*, is_listed: bool, is_shown: bool = False, is_verified: bool = False) -> bool:
        return waiting.may_keep("eu", is_listed=is_listed, is_shown=is_shown, is_verified=is_verified)

    assert not may_keep(is_listed=False)
    waiting.await_sources(stream, frozenset(), frozenset(["eu"]))
    assert (len(waiting), waiting.is_any_for("eu")) == (0, False)
    assert may_keep(is_listed=False)
    assert may_keep(is_listed=True), "it is not assigned yet"
    assert not may_keep(is_listed=True, is_shown=True), "its stream may be one that is not read"
    assert not waiting.may_keep("us", is_listed=False, is_shown=False, is_verified=False)
    waiting.await_sources(stream, frozenset())
    assert may_keep(is_listed=False), "the subscriber may reconnect"
    assert not may_keep(is_listed=True)
    waiting.await_sources(stream, frozenset(["eu"]))
    waiting.await_sources(stream, frozenset())
    assert may_keep(is_listed=True)
    assert not may_keep(is_listed=True, is_verified=True)


def test_clusters_that_the_watch_adds_do_not_complete_a_short_first_list() -> None:
    of = source()
    lists(of)
    take(of, 1.0, *(ObjectChanged(ready(f"other{number}")) for number in range(20)))
    assert of.engagements.engaged == 20
    assert waits(of, 20, 20)
    lists(of, *(ready(f"other{number}") for number in range(20)), now=30.0)
    assert of.first_list.is_verified
    assert not waits(of, 20, 0)


def test_first_list_is_compared_with_the_subscribers_view() -> None:
    of = source()
    lists(of, *map(ready, "abcdef"))
    assert waits(of, 4, 1)
    assert not waits(of, 4, 4)


def test_clusters_of_a_view_are_counted_once_a_second_and_after_each_list() -> None:
    fleet = Fleet(ChangeLog(msgspec.json.encode, Retention()))
    of = new_source(Ledger(), fleet=fleet)
    lists(of, ready("a", labels={"team": "red"}), ready("b"))
    view, counted = Filter(parse("team=red")), []
    fleet.clusters = lambda: counted.append(1) or of.engagements.clusters()  # type: ignore[method-assign,func-returns-value]
    for now in (0.0, 0.5, 0.9):
        assert finish(fleet.count_by_source(view, now)) == {"": 1}
    assert len(counted) == 1
    lists(of, ready("a", labels={"team": "red"}), ready("c", labels={"team": "red"}), now=0.9)
    assert finish(fleet.count_by_source(view, 0.9)) == {"": 2}
    assert finish(fleet.count_by_source(view, 2.0)) == {"": 2}
    assert len(counted) == 3


def test_count_without_a_filter_does_not_iterate_over_clusters() -> None:
    fleet = Fleet(ChangeLog(msgspec.json.encode, Retention()))
    of = new_source(Ledger(), fleet=fleet)
    lists(of, ready("a"), ready("b"))
    fleet.clusters = lambda: pytest.fail("the fleet was counted")  # type: ignore[method-assign]
    assert finish(fleet.count_by_source(Filter(), 0.0)) == {"": 2}


def test_watch_that_engages_listed_clusters_completes_the_first_list() -> None:
    of = source()
    lists(of, *(not_ready(f"c{number}") for number in range(20)))
    assert waits(of, 20, 0)
    take(of, 2.0, *(ObjectChanged(ready(f"c{number}", "9")) for number in range(20)))
    assert not waits(of, 20, 20)


def test_larger_list_completes_a_short_first_list() -> None:
    of = source()
    lists(of, ready("a"))
    assert waits(of, 4, 1)
    lists(of, *map(ready, "abcd"), now=2.0)
    assert not waits(of, 4, 4)


def test_larger_list_that_still_lacks_clusters_completes_a_short_first_list_only_if_repeated() -> None:
    of = source()
    lists(of, ready("a"))
    lists(of, *map(ready, "abc"), now=2.0)
    assert waits(of, 4, 3)
    lists(of, *map(ready, "abc"), now=31.0)
    assert not waits(of, 4, 3)


def test_subscriber_whose_clusters_are_all_restored_does_not_wait_for_the_first_list() -> None:
    of = source()
    list(of.restore([(ready("a", ""), 1.0)], (), ViewStatus(ViewState.STALE, 0.0, "Restored", "")))
    assert not waits(of, 1, 1)


def test_clusters_are_restored_in_batches_and_the_source_is_synced_by_the_last() -> None:
    of, stored = source(), ((ready(f"p-{number}", ""), 1.0) for number in range(250))
    restoring = of.restore(stored, (), ViewStatus(ViewState.STALE, 0.0, "Restored", ""))
    assert [(of.engagements.engaged, of.synced) for _ in restoring] == [(100, False), (200, False), (250, False)]
    assert of.synced


def test_restored_cluster_that_the_first_list_lacks_does_not_count_as_listed() -> None:
    of = source()
    list(of.restore([(ready("a", ""), 1.0)], (), ViewStatus(ViewState.STALE, 0.0, "Restored", "")))
    lists(of)
    assert waits(of, 2, 1)


def test_first_list_is_compared_by_number_of_clusters_and_not_of_objects() -> None:
    fleet = RecordedFleet()
    fleet.listed(thing("x", **{f"c{number}": True for number in range(20)}))
    assert not waits(fleet.source, 20, 20)


@pytest.mark.parametrize("foreign", [0, 1])
def test_two_lists_of_the_right_server_replace_a_first_list_of_another_server_in_one_of_two_collections(
    foreign: int,
) -> None:
    """Each collection has lists of its own: for example, one of service consumers and one of their projects."""
    fleet = RecordedFleet(resources=2)
    names = [f"c{number}" for number in range(20)]
    right = (
        [thing(f"x{name}", **{name: True}) for name in names],
        [thing(f"y{name}", **{name: True}) for name in names],
    )
    others = [thing(f"other{number}", **{f"o{number}": True}) for number in range(3)]
    fleet.listed(watch=1 - foreign)
    fleet.listed(*others, watch=foreign)
    assert waits(fleet.source, 20, 3)
    assert fleet.listed(*right[foreign], watch=foreign, at=2.0) == []
    fleet.listed(*right[foreign], watch=foreign, at=32.0)
    assert set(names) < fleet.engaged
    assert not waits(fleet.source, 20, 20)


def test_reader_that_starts_after_a_list_does_not_share_a_snapshot_from_before_the_list() -> None:
    of = source()
    log = of.changes.log
    lists(of, *(ready(f"a{number}", uid=f"u{number}") for number in range(100)))
    early = Cursor(log, Filter(), None)
    lists(of, *(ready(f"a{number}", uid=f"u{number}") for number in range(101)), now=1.0)
    late = Cursor(log, Filter(), None)
    assert (early.revision, late.revision) == (100, 101)


def test_count_of_a_costly_view_is_made_in_steps_that_all_who_need_it_share() -> None:
    fleet = Fleet(ChangeLog(msgspec.json.encode, Retention()))
    of = new_source(Ledger(), fleet=fleet)
    lists(of, *(ready(f"a{number}") for number in range(100)))
    view = Filter(parse(",".join(f"team!={number}" for number in range(64))))
    one, other = (fleet.count_by_source(view, 0.0) for _ in range(2))
    steps = sum(1 for _ in zip(one, other, strict=False))
    assert steps == 2, "one step examines 31 clusters"
    lists(of, *(ready(f"a{number}") for number in range(150)), now=0.5)
    assert finish(other) == {"": 150}, "it has the list that was completed in the meantime"
