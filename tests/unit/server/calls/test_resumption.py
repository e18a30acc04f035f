"""The sources that are not shown yet to a subscriber of an earlier run."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence

import pytest

from milo_discoveryd.model.removal_limits import FirstList, RemovalLimits
from milo_discoveryd.server.calls.resumption import DOUBT_S, Resumption
from milo_discoveryd.server.calls.revision import KnownClusters, Position
from milo_discoveryd.sources.kind import ProjectUids
from tests.unit.fleet.fleets import finish

NOW, BEFORE = "1" * 16, "0" * 16


class Source:
    def __init__(
        self,
        name: str,
        *,
        synced: bool = True,
        is_restored: bool = False,
        project_uids: ProjectUids = ProjectUids.READ,
    ) -> None:
        self.name = name
        self.project_uids = project_uids
        self.synced = synced
        self.is_restored = is_restored
        self.restored_positions: Mapping[str, int] = {BEFORE: 7}
        self.lists = 1
        self.first_list = FirstList(100, RemovalLimits())


Count = Callable[[str, float], int]


def counting(sources: Sequence[Source], count: Count) -> Callable[[float], Generator[None, None, Mapping[str, int]]]:
    def count_all(now: float) -> Generator[None, None, Mapping[str, int]]:
        yield
        return {source.name: count(source.name, now) for source in sources}

    return count_all


def resumption(
    *sources: Source,
    known: Mapping[str, int] | None = None,
    epoch: str = BEFORE,
    revision: int = 7,
    part: int | None = None,
    accepts_pending: bool = True,
    count: Count = lambda _name, _now: 100,
) -> Resumption:
    position = Position(epoch, revision, part=part, known=KnownClusters().grown(known or {}))
    return Resumption(
        position, sources, NOW, counting(sources, count), is_resumed=True, accepts_pending=accepts_pending
    )


def new_subscriber(*sources: Source, is_resumed: bool = False) -> Resumption:
    count = counting(sources, lambda _name, _now: 0)
    return Resumption(None, sources, NOW, count, is_resumed=is_resumed, accepts_pending=True)


def test_all_sources_are_pending_until_their_lists_were_compared() -> None:
    waiting = new_subscriber(Source("eu"), Source("us"))
    assert (waiting.pending, waiting.must_wait) == ({"eu", "us"}, True)


def test_complete_sources_are_shown_to_a_new_subscriber() -> None:
    waiting = new_subscriber(Source("eu"), Source("us", is_restored=True))
    assert finish(waiting.compare_lists(0.0))
    assert (waiting.pending, waiting.must_wait, waiting.due_at) == (frozenset(), False, math.inf)
    assert not finish(waiting.compare_lists(1.0))


def test_only_subscribers_that_do_not_accept_pending_sources_wait_for_them() -> None:
    sources = Source("eu"), Source("us", synced=False)
    patient = resumption(*sources, accepts_pending=False)
    flexible = resumption(*sources)
    for waiting in (patient, flexible):
        finish(waiting.compare_lists(0.0))
        assert waiting.pending == {"us"}
    assert (patient.must_wait, flexible.must_wait) == (True, False)


def test_restored_source_is_shown_if_its_state_file_has_everything_that_the_subscriber_received() -> None:
    for waiting, pending in (
        (resumption(Source("eu", is_restored=True), revision=7), frozenset()),
        (resumption(Source("eu", is_restored=True), revision=8), {"eu"}),
        (resumption(Source("eu", is_restored=True), revision=7, part=3), {"eu"}),
        (resumption(Source("eu", is_restored=True), epoch=NOW, revision=8), frozenset()),
        (new_subscriber(Source("eu", is_restored=True), is_resumed=True), {"eu"}),
    ):
        finish(waiting.compare_lists(0.0))
        assert waiting.pending == pending


@pytest.mark.parametrize(
    ("known", "kept", "shown", "pending"),
    [
        ({"kept": 3}, ProjectUids.READ, ProjectUids.STATED, {"kept", "shown"}),
        ({"kept": 3}, ProjectUids.STATED, ProjectUids.READ, {"kept", "shown"}),
        ({"kept": 3, "shown": 1}, ProjectUids.READ, ProjectUids.STATED, {"kept"}),
        ({}, ProjectUids.READ, ProjectUids.STATED, {"kept"}),
        ({"kept": 3}, ProjectUids.READ, ProjectUids.READ, {"kept"}),
        ({"kept": 3}, ProjectUids.NONE, ProjectUids.STATED, {"kept"}),
    ],
)
def test_source_stays_pending_if_it_may_have_projects_that_the_subscriber_keeps_from_another_pending_source(
    known: Mapping[str, int], kept: ProjectUids, shown: ProjectUids, pending: set[str]
) -> None:
    kept_source = Source("kept", synced=False, project_uids=kept)
    waiting = resumption(kept_source, Source("shown", project_uids=shown), known=known)
    finish(waiting.compare_lists(0.0))
    assert waiting.pending == pending
    kept_source.synced = True
    finish(waiting.compare_lists(1.0))
    assert waiting.pending == set()


def test_subscriber_keeps_its_clusters_of_pending_sources() -> None:
    waiting = resumption(Source("eu"), Source("us", synced=False), known={"eu": 3, "us": 5})
    finish(waiting.compare_lists(0.0))
    assert (waiting.kept.count_of("eu"), waiting.kept.count_of("us")) == (0, 5)
    assert new_subscriber(Source("eu")).kept.counts == {}


def test_subscriber_may_keep_clusters_of_pending_sources_that_it_has_or_may_have() -> None:
    assert new_subscriber(Source("eu")).kept_sources == frozenset()
    assert new_subscriber(Source("eu"), is_resumed=True).kept_sources == {"eu"}, "its revision cannot be parsed"
    us = Source("us", synced=False)
    waiting = resumption(us, Source("eu", synced=False), known={"us": 5})
    assert waiting.kept_sources == {"us"}
    us.synced = True
    finish(waiting.compare_lists(0.0))
    assert waiting.kept_sources == frozenset()


def test_source_with_a_short_first_list_stays_pending_until_a_complete_list() -> None:
    source = Source("eu")
    source.first_list = FirstList(3, RemovalLimits())
    waiting = resumption(source, known={"eu": 50})
    assert not finish(waiting.compare_lists(0.0))
    assert (waiting.pending, waiting.due_at, waiting.doubted_since) == ({"eu"}, DOUBT_S, 0.0)
    assert waiting.doubted["eu"].startswith("the first list since the daemon's start has 3 clusters for the subscriber")
    source.lists, source.first_list = 2, FirstList(50, RemovalLimits())
    assert finish(waiting.compare_lists(0.5))
    assert (waiting.pending, waiting.doubted, waiting.due_at) == (frozenset(), {}, math.inf)


def test_source_whose_view_lacked_many_clusters_is_pending_until_the_view_has_all_of_them() -> None:
    source, visible = Source("eu"), [3]
    waiting = resumption(source, known={"eu": 10}, count=lambda _name, _now: visible[0])
    for source.lists, visible[0] in ((1, 3), (2, 8), (3, 9)):
        finish(waiting.compare_lists(0.0))
        assert waiting.pending == {"eu"}
    source.lists, visible[0] = 4, 10
    finish(waiting.compare_lists(0.0))
    assert waiting.pending == frozenset()


def test_source_with_a_verified_first_list_is_not_pending() -> None:
    source = Source("eu")
    source.first_list = FirstList(3, None)
    waiting = resumption(source, known={"eu": 50})
    finish(waiting.compare_lists(0.0))
    assert waiting.pending == frozenset()


def test_source_with_an_older_version_than_the_subscriber_received_is_pending() -> None:
    source = Source("eu")
    source.first_list = FirstList(100, RemovalLimits(), 41)
    position = Position(BEFORE, 7, known=KnownClusters().grown({"eu": 50}).seen_at({"eu": 42}))
    count = counting([source], lambda *_: 100)
    waiting = Resumption(position, [source], NOW, count, is_resumed=True, accepts_pending=True)
    finish(waiting.compare_lists(0.0))
    assert waiting.doubted["eu"].startswith("the API server is at resourceVersion 41")
    source.first_list = FirstList(100, RemovalLimits(), 42)
    assert finish(waiting.compare_lists(DOUBT_S))
    assert waiting.pending == frozenset()


def test_source_is_pending_if_it_lacks_most_of_the_clusters_that_the_subscriber_knows() -> None:
    source = Source("eu")
    waiting = resumption(source, known={"eu": 50}, count=lambda _name, _now: 7)
    finish(waiting.compare_lists(0.0))
    assert "has 7 clusters for the subscriber, which knows 50" in waiting.doubted["eu"]


def test_clusters_of_a_pending_source_are_counted_at_growing_intervals() -> None:
    counted: list[str] = []

    def count(name: str, _: float) -> int:
        counted.append(name)
        return 7

    waiting = resumption(Source("eu"), known={"eu": 50}, count=count)
    for tenths in range(100):
        finish(waiting.compare_lists(tenths / 10))
    assert (len(counted), waiting.doubted_since) == (4, 0.0)


def test_source_is_pending_without_counting_if_the_subscriber_claims_far_more_clusters_than_are_listed() -> None:
    waiting = resumption(
        Source("eu"), known={"eu": 999_999_999}, count=lambda _name, _now: pytest.fail("the fleet was counted")
    )
    finish(waiting.compare_lists(0.0))
    assert waiting.pending == {"eu"}


def test_source_with_an_empty_first_list_is_not_pending_for_subscribers_of_this_run_or_without_clusters() -> None:
    source = Source("eu")
    source.first_list = FirstList(0, RemovalLimits())
    for waiting in (resumption(source, known={"eu": 50}, epoch=NOW), resumption(source), new_subscriber(source)):
        finish(waiting.compare_lists(0.0))
        assert (waiting.pending, waiting.doubted) == (frozenset(), {})


def test_subscriber_waits_only_for_sources_that_it_may_see() -> None:
    for accepts_pending in (True, False):
        visible = {"eu"}
        position = Position(BEFORE, 7)
        us = Source("us", synced=False)
        waiting = Resumption(
            position,
            (Source("eu"), us),
            NOW,
            counting((), lambda _name, _now: 100),
            is_resumed=True,
            accepts_pending=accepts_pending,
            is_visible=visible.__contains__,
        )
        assert finish(waiting.compare_lists(0.0))
        assert (waiting.pending, waiting.visible_pending, waiting.must_wait) == ({"us"}, frozenset(), False)
        visible.add("us")
        assert (waiting.visible_pending, waiting.must_wait) == ({"us"}, not accepts_pending)
        us.synced = True
        assert finish(waiting.compare_lists(1.0))
