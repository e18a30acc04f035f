"""Which subscribers a draining cluster waits for, and until when."""

import tracemalloc
from typing import Any, NoReturn

import pytest

from milo_discoveryd.engagement.pending_releases import (
    COMPARED_PER_STEP,
    REMEMBERED_EACH,
    REMEMBERED_FILTER_BYTES,
    REMEMBERED_S,
    RETURNING,
    PendingReleases,
)
from milo_discoveryd.engagement.subscriber import OWNED_S, SubscriberKey, Subscription
from milo_discoveryd.log.filter import ClusterView, Filter
from milo_discoveryd.model.cluster import Cluster, DisengageReason, Drain
from milo_discoveryd.rights.scope import NO_CLUSTERS, ClusterScope, scoped
from milo_discoveryd.sharding.timing import TIMING
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import cluster, finish

CONFIRMING = Filter(confirms_releases=True)
NARROW = Filter(names=frozenset("b"), confirms_releases=True)
DRAINING = Drain(DisengageReason.NOT_READY, "degraded", 0.0)
ONE, TWO = SubscriberKey("caller", "one"), SubscriberKey("caller", "two")


def stream(
    key: SubscriberKey = ONE, view: ClusterView = CONFIRMING, filter_bytes: int = 0, *, is_current: bool = True
) -> Subscription:
    return Subscription(key, f"label of {key.caller}", view, filter_bytes, is_current)


def opened(*keys: SubscriberKey) -> PendingReleases:
    releases = PendingReleases()
    for key in keys:
        finish(releases.open(stream(key), 0.0))
    return releases


def draining(*keys: SubscriberKey, until: float = 100.0) -> PendingReleases:
    releases = opened(*keys)
    assert releases.begin_drain(cluster("a"), until, 0.0)
    return releases


def awaited(releases: PendingReleases, name: str = "a") -> list[str]:
    return [release.key.name for release in releases.awaited(name)]


def test_fewer_clusters_change_in_one_step_with_many_subscribers() -> None:
    releases = PendingReleases()
    assert releases.clusters_per_step >= 100
    streams = [stream(SubscriberKey("caller", str(number % 200))) for number in range(400)]
    for subscription in streams:
        finish(releases.open(subscription, 0.0))
    assert releases.clusters_per_step * (400 + 200) <= COMPARED_PER_STEP
    for subscription in streams:
        releases.close(subscription, 0.0)
    assert releases.clusters_per_step * REMEMBERED_EACH <= COMPARED_PER_STEP


def test_drain_without_subscribers_does_not_begin() -> None:
    releases = PendingReleases()
    assert not releases.begin_drain(cluster("a"), 100.0, 0.0)
    assert len(releases) == 0


def test_drain_waits_only_for_subscribers_that_see_the_cluster() -> None:
    releases = PendingReleases()
    finish(releases.open(stream(ONE, Filter(names=frozenset("a"), confirms_releases=True)), 0.0))
    finish(releases.open(stream(TWO, Filter(names=frozenset("b"), confirms_releases=True)), 0.0))
    assert releases.begin_drain(cluster("a"), 100.0, 0.0)
    assert awaited(releases) == ["one"]
    assert not releases.begin_drain(cluster("c"), 100.0, 0.0)


def test_drain_ends_with_the_last_release() -> None:
    releases = draining(ONE, TWO)
    assert not releases.release(ONE, "a")
    assert awaited(releases) == ["two"]
    assert not releases.release(ONE, "a"), "a repeated release changes nothing"
    assert releases.release(TWO, "a")


def test_release_of_draining_cluster_by_another_caller_is_ignored() -> None:
    releases = draining(ONE)
    assert not releases.release(SubscriberKey("another caller", "one"), "a")
    assert awaited(releases) == ["one"]


def test_drain_is_due_at_its_deadline() -> None:
    releases = draining(ONE, until=100.0)
    releases.begin_drain(cluster("b"), 50.0, 0.0)
    assert releases.due_at == 50.0
    assert releases.due(49.9) == []
    assert releases.due(50.0) == ["b"]
    releases.end_drain("b")
    assert releases.due_at == 100.0
    releases.end_drain("a")
    assert releases.due_at is None


def test_drain_that_begins_again_has_a_new_deadline() -> None:
    releases = draining(ONE, until=50.0)
    releases.end_drain("a")
    releases.begin_drain(cluster("a", 2), 80.0, 40.0)
    assert releases.due_at == 80.0
    assert releases.due(50.0) == []


# --- streams that end and resume ---


def test_drain_waits_for_a_subscriber_that_disconnected_shortly_before_it_began() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.close(of, 10.0)
    assert releases.begin_drain(cluster("a"), 100.0, 10.0 + REMEMBERED_S - 0.1)
    (waits,) = releases.awaited("a")
    assert (waits.key, waits.label, waits.connected, waits.since) == (ONE, "label of caller", False, 10.0)


def test_drain_does_not_wait_for_a_subscriber_that_disconnected_long_before_it_began() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.close(of, 10.0)
    assert not releases.begin_drain(cluster("a"), 100.0, 10.0 + REMEMBERED_S)
    assert not releases.knows(ONE)


def test_drain_keeps_waiting_for_a_subscriber_that_disconnects() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 1000.0, 0.0)
    releases.close(of, 1.0)
    assert awaited(releases) == ["one"]
    releases.begin_drain(cluster("b"), 1000.0, 500.0)  # the disconnected subscription has expired by then
    assert awaited(releases) == ["one"]
    assert releases.awaited("a")[0].since is None
    assert awaited(releases, "b") == []


def test_drain_waits_for_reconnected_subscriber_until_it_releases() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0)
    releases.close(of, 1.0)
    finish(releases.open(stream(), 2.0))
    assert releases.awaits("a", ONE)
    assert releases.awaited("a")[0].connected
    assert releases.release(ONE, "a")
    finish(releases.open(stream(), 3.0))
    assert not releases.awaits("a", ONE)


def test_drain_waits_for_a_subscriber_that_connects_during_it() -> None:
    releases = draining(ONE)
    finish(releases.open(stream(TWO), 5.0))
    assert awaited(releases) == ["one", "two"]


def moving(until: float, *, moves: bool = True) -> tuple[PendingReleases, Subscription]:
    """Return a drain for a subscriber whose stream ends 5 s before the deadline, and the stream."""
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    assert releases.begin_drain(cluster("a"), until, 0.0, moves=moves)
    releases.close(of, until - 5.0)
    return releases, of


def test_cluster_that_moves_is_engaged_elsewhere_once_a_subscriber_without_a_stream_owns_nothing() -> None:
    releases, _ = moving(100.0)
    finish(releases.open(stream(TWO), 0.0))
    assert releases.due(100.0) == ["a"]
    assert [*releases.unreached(94.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(95.0 + OWNED_S)
    assert TIMING.evict_after_s == OWNED_S


def test_cluster_that_moves_ends_at_its_deadline_so_that_a_subscriber_is_told_before_its_ownership_is_renewed() -> None:
    """Found by a reader: its stream broke before the deadline, was back after it, and broke again: two operators worked
    in the cluster."""
    releases, _ = moving(100.0)
    assert releases.due(100.0) == ["a"]
    releases.end_drain("a")
    finish(releases.open(again := stream(), 104.0))
    releases.close(again, 126.0)
    assert [*releases.unreached(94.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(95.0 + OWNED_S)


def test_due_drains_are_not_each_compared_with_all_subscribers_without_a_stream() -> None:
    """Found by a reader: 100,000 due drains were compared with 100 former subscribers for a second, in each step."""

    class Since(float):
        read = 0

        def __add__(self, other: float) -> float:
            Since.read += 1
            return float(self) + other

        def __gt__(self, other: float) -> bool:
            Since.read += 1
            return float(self) > other

    releases = PendingReleases()
    streams = [stream(SubscriberKey("caller", str(number))) for number in range(20)]
    for of in (stream(), *streams):
        finish(releases.open(of, 0.0))
    for number in range(100):
        releases.begin_drain(cluster(str(number)), 100.0, 0.0, moves=True)
    for of in streams:
        releases.close(of, Since(99.0))
    assert len(releases.due(100.0)) == len(releases.unreached(100.0)) == 100
    assert Since.read < 5 * 100


def test_cluster_that_moved_is_kept_for_no_subscriber_that_has_released_it_or_is_told_that_it_ends() -> None:
    releases, _ = moving(100.0)
    finish(releases.open(stream(TWO), 0.0))
    assert not releases.release(ONE, "a")
    assert (releases.due(100.0), [*releases.unreached(100.0)]) == (["a"], [])
    releases, _ = moving(100.0)
    finish(releases.open(stream(), 99.0))
    assert (releases.due(100.0), [*releases.unreached(100.0)]) == (["a"], [])


def test_drain_of_a_cluster_that_does_not_move_is_not_known_to_be_unreached() -> None:
    releases, _ = moving(100.0, moves=False)
    assert (releases.due(100.0), [*releases.unreached(100.0)]) == (["a"], [])


def test_subscriber_without_a_stream_may_work_in_clusters_that_it_saw_until_its_ownership_has_ended() -> None:
    releases = PendingReleases()
    streams = [stream(), stream(TWO, scoped(CONFIRMING, NO_CLUSTERS))]
    for of in streams:
        finish(releases.open(of, 0.0))
    releases.note_unreached(cluster("a"), 0.0)
    assert ([*releases.unreached(0.0)], releases.compared) == ([], 0)
    for of, at in zip(streams, (1.0, 2.0), strict=True):
        releases.close(of, at)
    releases.note_unreached(cluster("a"), 2.0)
    assert ([*releases.unreached(0.9 + OWNED_S)], releases.compared) == (["a"], 1)
    assert not releases.unreached(1.0 + OWNED_S)
    releases.note_unreached(cluster("a"), 50.0)
    assert not releases.unreached(50.0)


GOLD = Filter(selector=parse("tier=gold"), confirms_releases=True)
BEFORE, AFTER = (cluster("a", labels={"tier": tier}) for tier in ("gold", "silver"))


def test_cluster_that_leaves_the_view_of_a_subscriber_without_a_stream_has_ended_for_it() -> None:
    releases = PendingReleases()
    streams = [stream(view=GOLD), stream(TWO)]
    for of in streams:
        finish(releases.open(of, 0.0))
    releases.note_change(BEFORE, AFTER, 0.0)
    assert ([*releases.unreached(0.0)], releases.compared) == ([], 0)
    releases.close(streams[1], 1.0)
    releases.note_change(BEFORE, AFTER, 1.0)
    assert not releases.unreached(1.0), "the other one is told"
    releases.close(streams[0], 2.0)
    releases.note_change(BEFORE, BEFORE, 2.0)
    assert not releases.unreached(2.0)
    releases.note_change(BEFORE, AFTER, 2.0)
    assert [*releases.unreached(1.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(2.0 + OWNED_S)


def test_cluster_that_ends_again_is_kept_for_the_subscriber_that_owns_it_longest() -> None:
    releases = PendingReleases()
    streams = [stream(), stream(TWO, GOLD)]
    for at, of in enumerate(streams):
        finish(releases.open(of, 0.0))
        releases.close(of, at)
    releases.note_change(BEFORE, AFTER, 2.0)
    releases.note_unreached(AFTER, 2.0)
    assert [*releases.unreached(0.9 + OWNED_S)] == ["a"]


def test_ownership_is_not_renewed_before_a_stream_told_its_subscriber_what_ended_while_it_had_none() -> None:
    """Found by a reader: a stream that broke before that left the operator at work for as long as the renewal said."""
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    assert releases.may_renew(ONE, 0.0), "nothing has ended"
    releases.close(of, 1.0)
    assert not releases.may_renew(ONE, 1.0), "it is told nothing"
    releases.note_unreached(cluster("a"), 2.0)
    finish(releases.open(again := stream(is_current=False), 3.0))
    assert not releases.may_renew(ONE, 3.0)
    assert releases.may_renew(ONE, 1.0 + OWNED_S), "no other member has waited for it"
    releases.note_current(again)
    assert releases.may_renew(ONE, 3.0)


@pytest.mark.parametrize("ends", ["at the deadline of a move", "at once"])
def test_stream_that_has_not_sent_what_ended_before_tells_its_subscriber_nothing(ends: str) -> None:
    """Found by a reader: it was open at the deadline of a move, and broke: the operator, whose ownership was renewed
    meanwhile, worked on beside the next owner's."""
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0, moves=True)
    releases.close(of, 90.0)
    finish(releases.open(again := stream(is_current=False), 99.0))
    if ends == "at once":
        releases.note_unreached(cluster("a"), 100.0)
    else:
        assert releases.due(100.0) == ["a"]
    assert not releases.may_renew(ONE, 101.0)
    releases.close(again, 102.0)
    assert [*releases.unreached(98.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(99.0 + OWNED_S)


def test_what_ends_before_a_stream_is_current_is_kept_until_the_ownership_that_was_renewed_meanwhile_has_ended() -> (
    None
):
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.close(of, 1.0)
    finish(releases.open(again := stream(is_current=False), 2.0))
    assert releases.may_renew(ONE, 3.0)
    releases.note_unreached(cluster("a"), 4.0)
    assert [*releases.unreached(2.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(3.0 + OWNED_S)
    releases.note_current(again)
    releases.note_unreached(cluster("a"), 40.0)
    assert not releases.unreached(40.0), "it is told"


def test_stream_that_is_opened_beside_another_one_does_not_tell_yet_as_the_other_one_may_be_dead() -> None:
    releases = opened(ONE)
    finish(releases.open(again := stream(is_current=False), 50.0))
    releases.note_unreached(cluster("a"), 51.0)
    assert not releases.may_renew(ONE, 51.0)
    releases.note_current(again)
    assert releases.may_renew(ONE, 51.0)
    assert [*releases.unreached(49.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(50.0 + OWNED_S)


def sharded(began_at: float = 0.0) -> PendingReleases:
    releases = PendingReleases()
    releases.is_sharded, releases.began_at = True, began_at
    return releases


def waiting(releases: PendingReleases, at: float = 0.0) -> Subscription:
    """Return a stream of a subscriber that keeps clusters of an earlier run, whose source has no list yet."""
    of = stream(is_current=False)
    of.keeps_others = True
    finish(releases.open(of, at))
    return of


def shown(releases: PendingReleases, of: Subscription) -> None:
    releases.await_sources(of, keeps_others=False)


def test_ownership_is_renewed_while_nothing_moves_because_of_sources_that_are_not_shown_to_the_subscriber_yet() -> None:
    releases = sharded()
    of = waiting(releases)
    for at in (1.0, 1000.0):
        releases.note_unreached(cluster("a"), at)
        assert ([*releases.unreached(at)], releases.may_renew(ONE, at, nothing_moves=True)) == ([], True)
        assert releases.may_keep_others(at)
    shown(releases, of)
    assert releases.may_keep_others(999.9 + OWNED_S)
    assert not releases.may_keep_others(1000.0 + OWNED_S)


def test_nothing_moves_after_a_stream_broke_that_waited_for_a_source_until_its_subscriber_is_told_or_has_stopped() -> (
    None
):
    """Found by an audit: once the source was listed, what the subscriber worked in was engaged elsewhere."""
    releases = sharded()
    of = waiting(releases)
    assert releases.may_renew(ONE, 50.0, nothing_moves=True)
    shown(releases, of)
    releases.close(of, 55.0)
    assert releases.may_keep_others(49.9 + OWNED_S)
    assert not releases.may_keep_others(50.0 + OWNED_S)
    finish(releases.open(again := stream(is_current=False), 60.0))
    assert releases.may_keep_others(60.0)
    releases.note_current(again)
    shown(releases, again)
    assert not releases.may_keep_others(60.0)
    releases.close(again, 61.0)
    assert not releases.may_keep_others(61.0)
    finish(releases.open(again := stream(is_current=False), 62.0))
    releases.await_sources(again, keeps_others=True)
    assert not releases.may_keep_others(62.0), "it has only clusters of this run"


def test_stream_that_went_on_without_a_source_is_waited_for_no_longer_than_its_client_may_take_to_read_its_list() -> (
    None
):
    """Known by reading: while its client read nothing, it was taken for one that waits for the source."""
    releases = sharded()
    of = waiting(releases)
    releases.note_current(of, keeps_others=True)
    assert releases.may_renew(ONE, 99.0, nothing_moves=True)
    for at in range(100, 300, 10):
        is_owner = at < 100.0 + OWNED_S
        assert releases.may_renew(ONE, float(at)) is is_owner
        assert releases.may_keep_others(float(at)) is (at < 130.0 + OWNED_S)


def test_what_a_subscriber_keeps_counts_from_when_its_stream_is_opened_whether_this_or_another_one_waits_for_it() -> (
    None
):
    """Known by reading: before a stream had its first turn, nothing counted of what its subscriber kept."""
    for is_beside in (False, True):
        releases = sharded()
        if is_beside:
            finish(releases.open(stream(is_current=False), 0.0))
        waiting(releases, OWNED_S - 0.1)
        assert releases.may_renew(ONE, OWNED_S - 0.1)
        assert releases.may_keep_others(2 * OWNED_S - 0.2)


def test_end_counts_for_a_stream_that_keeps_nothing_beside_one_that_does() -> None:
    releases = sharded()
    finish(releases.open(stream(view=NARROW, is_current=False), 0.0))
    releases.note_current(of := waiting(releases))
    releases.note_unreached(cluster("b"), 1.0)
    shown(releases, of)
    assert releases.may_keep_others(1.0)


def test_subscriber_that_has_stopped_before_it_connects_keeps_nothing() -> None:
    releases = sharded()
    waiting(releases, OWNED_S)
    assert not releases.may_keep_others(OWNED_S)
    releases = sharded()
    releases.close(waiting(releases), 10.0)
    waiting(releases, 10.0 + OWNED_S)
    assert not releases.may_keep_others(10.0 + OWNED_S)


def test_client_that_does_not_read_what_it_has_to_be_told_is_not_renewed_for_ever() -> None:
    """Found by an audit: as long as a stream was not read, its member acknowledged no view."""
    releases = sharded()
    of = waiting(releases)
    assert releases.may_renew(ONE, 100.0, nothing_moves=True)
    shown(releases, of)
    assert releases.may_renew(ONE, 100.0)
    assert releases.may_renew(ONE, 99.9 + OWNED_S)
    assert not releases.may_renew(ONE, 100.0 + OWNED_S)
    assert not releases.may_keep_others(99.9 + 2 * OWNED_S)
    releases.note_current(of)
    assert releases.may_renew(ONE, 200.0)
    releases.note_behind(of, 300.0)
    assert releases.may_renew(ONE, 300.0)


def test_client_that_connects_again_and_again_without_reading_is_not_renewed_for_ever() -> None:
    releases = sharded()
    for at in (0.0, 30.0, 60.0):
        shown(releases, of := waiting(releases, at))
        assert releases.may_renew(ONE, at) is (at < OWNED_S)
        releases.close(of, at + 20.0)
    assert releases.may_keep_others(29.9 + OWNED_S)
    assert not releases.may_keep_others(30.0 + OWNED_S)


@pytest.mark.parametrize("is_read", [False, True])
def test_client_that_opens_one_more_stream_again_and_again_keeps_nothing_longer(*, is_read: bool) -> None:
    """Found by a reader: each one more, unread, let its member acknowledge no view."""
    releases = sharded()
    if is_read:
        finish(releases.open(stream(), 0.0))
    for at in range(0, 120, 5):
        of = waiting(releases, float(at))
        shown(releases, of)
        releases.may_renew(ONE, float(at))
        if is_read:
            releases.close(of, float(at))
    assert not releases.may_keep_others(120.0)
    waiting(releases, 120.0)
    assert not releases.may_keep_others(120.0)
    assert releases.may_renew(ONE, 120.0) is is_read


def test_one_more_stream_extends_what_a_subscriber_may_work_in_only_if_it_was_told_before() -> None:
    releases = sharded()
    for at in (0.0, 20.0):
        finish(releases.open(stream(is_current=False), at))
    releases.note_unreached(cluster("a"), 21.0)
    assert [*releases.unreached(OWNED_S - 0.1)] == ["a"]
    assert not releases.unreached(OWNED_S)


def test_subscriber_that_keeps_clusters_of_an_earlier_run_is_not_renewed_after_it_has_stopped_until_it_is_told() -> (
    None
):
    releases = sharded()
    shown(releases, of := waiting(releases))
    assert not releases.may_renew(ONE, OWNED_S)
    releases.note_current(of)
    assert releases.may_renew(ONE, OWNED_S)


def test_client_that_is_told_by_its_stream_is_renewed_beside_another_one_that_is_dead() -> None:
    releases = sharded()
    of = waiting(releases)
    shown(releases, of)
    releases.note_current(of)
    shown(releases, of)
    waiting(releases, 50.0)
    for at in (50.0, 60.0, 200.0):
        assert releases.may_renew(ONE, at)
        assert not releases.may_keep_others(at)


def test_client_that_is_forgotten_early_again_and_again_is_not_renewed_for_ever() -> None:
    releases = sharded()
    for at in (0.0, 20.0, 30.0, 40.0, 60.0):
        shown(releases, of := waiting(releases, at))
        assert releases.may_renew(ONE, at) is (at < OWNED_S)
        of.filter_bytes = REMEMBERED_FILTER_BYTES + 1
        releases.close(of, at)
        assert not releases.knows(ONE)
    assert releases.may_keep_others(29.9 + OWNED_S)
    assert not releases.may_keep_others(30.0 + OWNED_S)


def test_source_that_is_listed_later_is_told_to_a_stream_that_went_on_without_it() -> None:
    releases = sharded()
    of = waiting(releases)
    releases.note_current(of, keeps_others=True)
    assert not [*releases.unreached(1.0)]
    assert releases.may_renew(ONE, 100.0, nothing_moves=True)
    releases.note_behind(of, 100.0)
    shown(releases, of)
    assert releases.may_keep_others(99.9 + OWNED_S)
    releases.note_behind(of, 110.0)
    assert not releases.may_keep_others(100.0 + OWNED_S)
    assert releases.may_renew(ONE, 100.0)
    releases.note_current(of)
    shown(releases, of)
    assert not releases.may_keep_others(100.0)


def test_renewal_without_a_name_is_one_of_clusters_that_a_stream_sends_then() -> None:
    """Found by an audit: a subscriber without clusters gives no name, and was sent some by a stream that then hung."""
    releases = sharded()
    finish(releases.open(of := stream(), 0.0))
    releases.close(of, 1.0)
    assert releases.may_renew(SubscriberKey("caller", ""), 30.0)
    finish(releases.open(again := stream(is_current=False), 31.0))
    releases.note_unreached(cluster("a"), 32.0)
    assert [*releases.unreached(30.0 + OWNED_S)] == ["a"]
    releases.close(again, 33.0)
    releases = sharded()
    finish(releases.open(stream(is_current=False), 0.0))
    assert releases.may_renew(SubscriberKey("another caller", ""), 50.0)
    releases.note_unreached(cluster("a"), 51.0)
    assert not releases.unreached(51.0)
    assert releases.may_renew(SubscriberKey("caller", ""), 50.0)
    releases.note_unreached(cluster("a"), 51.0)
    assert [*releases.unreached(49.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(50.0 + OWNED_S)


def test_ownership_without_a_name_is_not_renewed_while_what_has_ended_may_be_on_its_way() -> None:
    """Found by the simulation of seed 32101: a snapshot arrived after another member had engaged a cluster of it."""
    releases, nameless = sharded(), SubscriberKey("caller", "")
    finish(releases.open(of := stream(is_current=False), 0.0))
    releases.note_unreached(cluster("a"), 1.0)
    assert not releases.may_renew(nameless, 2.0)
    assert releases.may_renew(SubscriberKey("another caller", ""), 2.0)
    assert [*releases.unreached(2.0)] == ["a"]
    releases.note_current(of)
    assert releases.may_renew(nameless, 3.0)


def test_renewal_without_a_name_extends_nothing_that_a_subscriber_keeps_of_an_earlier_run() -> None:
    releases = sharded()
    shown(releases, waiting(releases))
    assert releases.may_renew(SubscriberKey("caller", ""), 30.0)
    assert not releases.may_keep_others(OWNED_S)


@pytest.mark.parametrize("change", ["another filter", "another filter, beside another stream", "other rights"])
def test_cluster_of_a_former_view_may_be_worked_in_until_a_stream_has_told_of_its_end(change: str) -> None:
    """Found by an audit: a client reconnected with a narrower filter, and went on in clusters of the former one."""
    releases = sharded()
    finish(releases.open(of := stream(), 0.0))
    again = stream(view=NARROW, is_current=False)
    if change == "other rights":
        finish(releases.open(again := stream(is_current=False), 2.0))
        assert [*releases.change_view(again, NARROW)] == []
    elif change == "another filter":
        releases.close(of, 1.0)
        finish(releases.open(again, 2.0))
    else:
        finish(releases.open(again, 2.0))
    if of in releases._subscribers[ONE].streams:
        releases.close(of, 3.0)
    assert releases.begin_drain(cluster("a"), 4.0, 4.0, moves=True)
    assert releases.due(4.0) == ["a"]
    assert [*releases.unreached(4.0)] == ["a"]
    releases.end_drain("a")
    releases.note_current(again)
    if change != "another filter":
        assert not releases.may_renew(ONE, 4.0), "the streams may be of one client, which has not stopped"
        assert releases.may_renew(ONE, 2.0 + OWNED_S)
    assert not releases.begin_drain(cluster("a"), 60.0, 50.0, moves=True)


def test_former_view_has_ended_once_the_only_stream_that_did_not_tell_of_that_ends() -> None:
    releases = sharded()
    finish(releases.open(first := stream(), 0.0))
    releases.close(first, 1.0)
    finish(releases.open(of := stream(view=NARROW, is_current=False), 2.0))
    finish(releases.open(stream(view=NARROW), 2.0))
    assert releases.begin_drain(cluster("a"), 100.0, 2.0)
    releases.close(of, 2.0)
    assert not releases.begin_drain(cluster("c"), 100.0, 2.0)


def beside(*names: str) -> tuple[PendingReleases, list[Subscription]]:
    """Return a subscriber with a current stream for each of these clusters, and the streams."""
    releases = sharded()
    streams = [stream(view=named(name), filter_bytes=REMEMBERED_FILTER_BYTES // 2) for name in names]
    for of in streams:
        finish(releases.open(of, 0.0))
    return releases, streams


def named(name: str) -> ClusterView:
    return Filter(names=frozenset({name}), confirms_releases=True)


def test_stream_tells_nothing_of_the_clusters_of_another_one_that_broke_before_that_is_back() -> None:
    """Found by a reader: what the broken one had shown moved at once, and the ownership was renewed through the
    other."""
    releases, (_, of) = beside("a", "b")
    assert releases.may_renew(ONE, 1.0)
    releases.close(of, 5.0)
    assert not releases.begin_drain(cluster("c"), 6.0, 6.0, moves=True)
    assert releases.begin_drain(cluster("b"), 7.0, 6.0, moves=True)
    assert releases.may_renew(ONE, 6.0)
    assert releases.due(7.0) == ["b"]
    assert [*releases.unreached(5.9 + OWNED_S)] == ["b"]
    assert not releases.may_renew(ONE, 5.9 + OWNED_S)
    finish(releases.open(again := stream(view=of.view, is_current=False), 8.0))
    assert not releases.may_renew(ONE, 8.0)
    releases.note_current(again)
    assert releases.may_renew(ONE, 8.0)
    releases.note_unreached(cluster("b"), 50.0)
    assert not releases.unreached(50.0)


def test_first_of_two_streams_that_is_back_tells_nothing_of_the_clusters_of_the_other_one() -> None:
    releases, (of, other) = beside("a", "b")
    for each in (of, other):
        releases.close(each, 5.0)
    finish(releases.open(again := stream(view=of.view, is_current=False), 6.0))
    releases.note_current(again)
    for name in "abc":
        assert releases.begin_drain(cluster(name), 100.0, 7.0, moves=True) is (name != "c")
        releases.note_unreached(cluster(name), 7.0)
    assert [*releases.unreached(7.0)] == ["b"]
    assert not releases.may_renew(ONE, 7.0), "the streams may be of one client, which works in both"
    finish(releases.open(again := stream(view=other.view, is_current=False), 8.0))
    releases.note_current(again)
    assert releases.may_renew(ONE, 8.0)
    assert not releases.begin_drain(cluster("d"), 100.0, 8.0, moves=True)


def test_several_streams_that_broke_beside_another_one_may_have_shown_what_the_caller_may_see() -> None:
    releases, (of, *others) = beside("a", "b", "c")
    for other in others:
        releases.close(other, 5.0)
    finish(releases.open(again := stream(view=named("b")), 6.0))
    releases.note_unreached(cluster("c"), 7.0)
    assert [*releases.unreached(7.0)] == ["c"]
    releases.close(again, 8.0)
    releases.close(of, 9.0)
    assert releases.begin_drain(cluster("c"), 10.0, 10.0)
    assert releases.knows(ONE)
    finish(releases.open(other := stream(TWO, NARROW, REMEMBERED_FILTER_BYTES + 1), 11.0))
    releases.close(other, 11.0)
    assert not releases.knows(ONE)
    releases.note_unreached(cluster("c"), 12.0)
    assert "c" in releases.unreached(12.0)


def test_subscriber_keeps_what_a_stream_that_broke_beside_another_one_had_kept() -> None:
    releases = sharded()
    finish(releases.open(stream(view=NARROW), 0.0))
    releases.close(waiting(releases, 1.0), 2.0)
    assert releases.may_keep_others(50.0) is releases.may_keep_others(1.0 + OWNED_S) is False
    assert releases.may_keep_others(0.9 + OWNED_S)


def test_second_stream_keeps_what_the_subscriber_keeps_also_if_the_first_one_ends_before_it_waits() -> None:
    """Found by a reader: for as long as it waited for its turn, a view could be acknowledged."""
    releases = sharded()
    of = waiting(releases)
    assert releases.may_renew(ONE, 50.0, nothing_moves=True)
    finish(releases.open(stream(is_current=False), 50.0))
    releases.close(of, 51.0)
    assert releases.may_keep_others(49.9 + OWNED_S)
    assert not releases.may_keep_others(50.0 + OWNED_S)


def test_second_change_of_rights_forgets_nothing_of_the_first() -> None:
    """Found by a reader: only the first of the former rights counted."""
    views = [scoped(CONFIRMING, ClusterScope(sources=frozenset({source}))) for source in "xyz"]
    releases = sharded()
    finish(releases.open(of := stream(view=views[0]), 0.0))
    releases.close(of, 1.0)
    finish(releases.open(of := stream(view=views[1], is_current=False), 2.0))
    assert [*releases.change_view(of, views[2])] == []
    for source in "xyz":
        releases.note_unreached(cluster(f"{source}#a"), 3.0)
    assert [*releases.unreached(3.0)] == ["x#a", "y#a", "z#a"]


def forgotten(*views: ClusterView, releases: PendingReleases | None = None) -> PendingReleases:
    """Return the state after subscribers with these views, and one more, were forgotten early."""
    releases = releases or sharded()
    for number, view in enumerate((*views, NARROW)):
        finish(releases.open(of := stream(SubscriberKey("caller", str(number)), view, REMEMBERED_FILTER_BYTES), 0.0))
        releases.close(of, float(number))
    return releases


def test_subscribers_that_are_forgotten_early_may_work_on_in_what_they_may_have_seen() -> None:
    """Found by an audit: of five operators whose streams broke, with filters of 60 KiB, one counted as stopped."""
    releases = forgotten(GOLD, GOLD)
    assert not releases.knows(SubscriberKey("caller", "0"))
    releases.note_unreached(cluster("a"), 2.0)
    assert [*releases.unreached(0.9 + OWNED_S)] == ["a"]
    assert not releases.unreached(1.0 + OWNED_S)
    releases = forgotten(scoped(CONFIRMING, NO_CLUSTERS), scoped(GOLD, NO_CLUSTERS))
    releases.note_unreached(cluster("a"), 2.0)
    assert not releases.unreached(2.0), "no other caller's clusters are delayed"
    releases = forgotten(scoped(CONFIRMING, NO_CLUSTERS), GOLD)
    releases.note_unreached(cluster("a"), 2.0)
    assert [*releases.unreached(2.0)] == ["a"]


@pytest.mark.parametrize(("opened_at", "began_at"), [(50.0, 0.0), (50.0, 30.0), (100.0, 0.0)])
def test_subscriber_that_was_forgotten_early_and_returns_may_work_on_in_what_it_had(
    opened_at: float, began_at: float
) -> None:
    """Found by a reader: it counted as a new one, and what it had from an earlier run, or by another filter, moved."""
    releases = sharded(began_at)
    of = waiting(releases, began_at)
    assert releases.may_renew(ONE, 40.0, nothing_moves=True)
    of.filter_bytes = REMEMBERED_FILTER_BYTES + 1
    releases.close(of, 41.0)
    assert not releases.knows(ONE)
    finish(releases.open(stream(view=NARROW, is_current=False), opened_at))
    is_owner = opened_at < 40.0 + OWNED_S
    assert releases._subscribers[ONE].keeps_others is is_owner
    if is_owner:
        assert releases.may_renew(ONE, 60.0)
    releases.note_unreached(cluster("a"), opened_at + 11.0)
    assert releases.may_keep_others(opened_at + 11.0) is is_owner
    releases.may_renew(SubscriberKey("caller", ""), opened_at + 11.0)
    releases.note_unreached(cluster("a"), opened_at + 11.0)
    assert [*releases.unreached(opened_at + 11.0)] == (["a"] if is_owner else [])


def test_subscriber_that_was_forgotten_early_after_it_was_told_keeps_nothing_of_an_earlier_run() -> None:
    releases = sharded(-100.0)
    finish(releases.open(of := stream(filter_bytes=REMEMBERED_FILTER_BYTES + 1), 0.0))
    releases.close(of, 1.0)
    finish(releases.open(again := stream(view=NARROW, is_current=False), 2.0))
    assert not releases.may_keep_others(2.0)
    releases.note_unreached(cluster("a"), 3.0)
    assert [*releases.unreached(3.0)] == ["a"]
    releases.note_current(again)
    assert not releases.begin_drain(cluster("d"), 4.0, 1.0 + REMEMBERED_S)


def test_drain_that_began_before_its_subscriber_was_forgotten_early_is_unreached_until_that_has_stopped() -> None:
    releases = sharded()
    finish(releases.open(of := stream(), 0.0))
    finish(releases.open(stream(TWO), 0.0))
    assert releases.begin_drain(cluster("a"), 10.0, 0.0, moves=True)
    assert releases.begin_drain(cluster("c"), 10.0, 0.0, moves=True)
    releases.close(of, 1.0)
    releases.release(TWO, "a")
    releases.release(ONE, "c")
    forgotten(NARROW, releases=releases)
    assert not releases.knows(ONE)
    assert releases.due(10.0) == ["a", "c"]
    assert [*releases.unreached(0.9 + OWNED_S)] == ["a"]


def test_many_subscribers_that_are_forgotten_early_are_remembered_as_one() -> None:
    releases = sharded()
    for number in range(3 * REMEMBERED_EACH):
        of = stream(SubscriberKey("caller", str(number)), is_current=False)
        of.keeps_others = number == 0
        finish(releases.open(of, 0.0))
        releases.close(of, 1.0)
    assert len(releases._subscribers) <= REMEMBERED_EACH + 1
    assert releases.may_keep_others(-0.1 + OWNED_S)
    assert not releases.may_keep_others(OWNED_S)
    assert not releases.begin_drain(cluster("a"), 100.0, 1.0 + REMEMBERED_S)
    assert not releases._subscribers


def test_subscriber_that_ended_its_subscription_is_not_connected() -> None:
    releases = opened(ONE)
    assert releases.is_connected(ONE)
    releases.end_subscription(ONE)
    assert not releases.is_connected(ONE)


def test_subscriber_with_two_streams_is_connected_until_both_end() -> None:
    releases = PendingReleases()
    first, second = stream(), stream()
    finish(releases.open(first, 0.0))
    finish(releases.open(second, 1.0))
    releases.close(first, 2.0)
    assert releases.is_connected(ONE)
    releases.close(second, 3.0)
    assert not releases.is_connected(ONE)


def test_ended_subscription_does_not_delay_drains() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    finish(releases.open(stream(TWO), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0)
    releases.close(of, 1.0)
    assert releases.end_subscription(ONE) == []
    assert awaited(releases) == ["two"]
    assert not releases.knows(ONE)
    assert releases.end_subscription(ONE) == [], "a repeated end is a no-op"


def test_drain_ends_when_the_last_awaited_subscription_ends() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0)
    releases.close(of, 1.0)
    assert releases.end_subscription(ONE) == ["a"]


def test_subscription_can_be_ended_while_its_stream_is_open() -> None:
    releases = opened(TWO)
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0)
    assert releases.end_subscription(ONE) == []
    assert awaited(releases) == ["two"]
    releases.begin_drain(cluster("b"), 100.0, 0.0)
    assert awaited(releases, "b") == ["two"]
    releases.close(of, 1.0)
    assert not releases.knows(ONE)


def test_new_stream_restarts_an_ended_subscription() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.end_subscription(ONE)
    finish(releases.open(stream(), 1.0))
    releases.close(of, 2.0)
    assert releases.begin_drain(cluster("a"), 100.0, 3.0)


# --- views that change ---


def test_drain_does_not_wait_for_a_subscriber_that_lost_its_authorization() -> None:
    releases = opened(TWO)
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0)
    assert [*releases.change_view(of, scoped(CONFIRMING, NO_CLUSTERS))] == [[]]
    assert awaited(releases) == ["two"]
    assert releases.release(TWO, "a")


def test_drain_ends_when_the_last_subscriber_loses_its_authorization() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0)
    assert [*releases.change_view(of, scoped(CONFIRMING, NO_CLUSTERS))] == [["a"]]


def test_drains_are_compared_in_steps_with_a_subscriber_whose_authorization_changed() -> None:
    costly = Filter(selector=parse(",".join(f"k{number}" for number in range(1000))), confirms_releases=True)
    releases = PendingReleases()
    streams = [stream(view=CONFIRMING), stream(view=costly)]
    for subscription in streams:
        finish(releases.open(subscription, 0.0))
    names = [f"a-{number}" for number in range(2 * costly.records_per_step)]
    for name in names:
        releases.begin_drain(cluster(name), 100.0, 0.0)
    lost = releases.change_view(streams[0], scoped(CONFIRMING, NO_CLUSTERS))
    step = next(lost)
    assert step == names[: costly.records_per_step // 2]
    for name in (*step, names[-1]):
        releases.end_drain(name)
    assert [name for step in lost for name in step] == names[len(step) : -1]


def test_subscriber_that_is_forgotten_is_compared_with_no_further_drains() -> None:
    releases = PendingReleases()
    finish(releases.open(of := stream(), 0.0))
    releases.begin_drain(cluster("a"), 100.0, 0.0)
    lost = releases.change_view(of, scoped(CONFIRMING, NO_CLUSTERS))
    releases.end_subscription(ONE)
    releases.close(of, 1.0)
    assert [*lost] == []


def test_subscribers_whose_authorization_changed_hold_no_drains_before_they_are_compared() -> None:
    """The authorization of thousands of streams changes at once, while thousands of clusters drain."""
    releases = PendingReleases()
    streams = [stream(SubscriberKey("caller", str(number))) for number in range(100)]
    for subscription in streams:
        finish(releases.open(subscription, 0.0))
    for number in range(1000):
        releases.begin_drain(cluster(f"a-{number}"), 100.0, 0.0)
    view = scoped(CONFIRMING, NO_CLUSTERS)
    tracemalloc.start()
    try:
        lost = [releases.change_view(subscription, view) for subscription in streams]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 100 << 10
    assert sum(len(step) for steps in lost for step in steps) == 1000


def relabeled(env: str) -> Cluster:
    return cluster("a", labels={"env": env})


@pytest.mark.parametrize("released", [False, True])
def test_drain_does_not_wait_for_a_subscriber_whose_filter_the_cluster_left(released: bool) -> None:
    releases = PendingReleases()
    finish(releases.open(stream(ONE, Filter(parse("env=prod"), confirms_releases=True)), 0.0))
    finish(releases.open(stream(TWO), 0.0))
    releases.begin_drain(relabeled("prod"), 100.0, 0.0)
    if released:
        releases.release(TWO, "a")
    assert releases.update_drain(relabeled("dev")) is released
    assert awaited(releases) == ([] if released else ["two"])


def test_drain_update_for_a_cluster_that_is_not_draining_is_ignored() -> None:
    assert not opened(ONE).update_drain(relabeled("dev"))


# --- bounds ---


def test_oldest_disconnected_subscribers_of_a_caller_are_forgotten_beyond_the_limit() -> None:
    releases = PendingReleases()
    finish(releases.open(other := stream(SubscriberKey("another caller", "x")), 0.0))
    releases.close(other, 0.0)
    for number in range(REMEMBERED_EACH + 1):
        finish(releases.open(of := stream(SubscriberKey("caller", f"s{number}")), 1.0))
        releases.close(of, 1.0)
    assert not releases.knows(SubscriberKey("caller", "s0"))
    assert releases.knows(SubscriberKey("caller", "s1"))
    assert releases.knows(SubscriberKey("another caller", "x"))


def test_disconnected_subscribers_with_large_filters_are_forgotten_sooner() -> None:
    releases = PendingReleases()
    for key in (ONE, TWO):
        finish(releases.open(of := stream(key, filter_bytes=REMEMBERED_FILTER_BYTES // 2 + 1), 0.0))
        releases.close(of, 0.0)
    assert [releases.knows(key) for key in (ONE, TWO)] == [False, True]


def test_clearing_pending_releases_keeps_the_subscribers() -> None:
    releases = draining(ONE)
    releases.clear()
    assert len(releases) == 0
    assert releases.due_at is None
    assert releases.begin_drain(cluster("a"), 10.0, 0.0)


def restarted() -> PendingReleases:
    """Return the pending releases of a drain of "a" that began before subscribers of the last run reconnected."""
    releases = PendingReleases()
    releases.expect_return(0.0)
    assert releases.begin_drain(cluster("a"), 300.0, 10.0)
    return releases


def test_deadline_of_a_drain_can_be_moved() -> None:
    releases = draining(ONE, until=100.0)
    assert releases.begin_drain(cluster("b"), 20.0, 0.0)
    releases.move_deadline("a", 30.0)
    releases.move_deadline("gone", 10.0)
    assert (releases.due_at, releases.due(30.0)) == (20.0, ["a", "b"])


def test_hastened_drains_are_due_now_unless_they_were_due_before() -> None:
    releases = draining(ONE, until=100.0)
    assert releases.begin_drain(cluster("b"), 5.0, 0.0)
    releases.hasten(("a", "b", "gone"), 10.0)
    assert (releases.due_at, releases.due(10.0)) == (5.0, ["a", "b"])


def test_drain_after_a_restart_waits_a_minute_for_a_subscriber_to_reconnect() -> None:
    releases = restarted()
    assert awaited(releases) == [RETURNING.name]
    assert releases.due_at == REMEMBERED_S
    assert releases.due(REMEMBERED_S - 1) == []
    assert releases.due(REMEMBERED_S) == ["a"]
    assert not releases.begin_drain(cluster("b"), 300.0, REMEMBERED_S), "the time for subscribers to reconnect is over"


def test_drain_after_a_restart_has_its_configured_deadline_once_a_subscriber_reconnected() -> None:
    releases = restarted()
    finish(releases.open(stream(TWO, Filter(names=frozenset("b"), confirms_releases=True)), 20.0))
    assert awaited(releases) == [RETURNING.name], "the new subscriber does not see the cluster"
    finish(releases.open(stream(ONE), 20.0))
    assert awaited(releases) == ["one"]
    assert releases.due_at == 300.0
    assert releases.due(REMEMBERED_S) == []
    assert releases.release(ONE, "a")


def test_short_drain_after_a_restart_keeps_its_deadline() -> None:
    releases = PendingReleases()
    releases.expect_return(0.0)
    assert releases.begin_drain(cluster("a"), 30.0, 10.0)
    assert releases.due_at == 30.0


def test_drain_after_a_restart_with_known_subscribers_keeps_its_deadline() -> None:
    releases = opened(ONE)
    releases.expect_return(0.0)
    assert releases.begin_drain(cluster("a"), 300.0, 10.0)
    assert (awaited(releases), releases.due_at) == (["one"], 300.0)


def test_drain_that_does_not_await_subscribers_of_an_earlier_run_does_not_begin_without_subscribers() -> None:
    releases = PendingReleases()
    releases.expect_return(0.0)
    assert not releases.begin_drain(cluster("a"), 300.0, 10.0, moves=True)


def test_drains_that_wait_for_different_subscribers_take_little_memory() -> None:
    """Callers choose which clusters their filters match, and so how many different sets of subscribers there are."""
    releases = PendingReleases()
    for number in range(400):
        finish(releases.open(stream(SubscriberKey("caller", f"s{number}")), 0.0))
    every_second = Filter(names=frozenset(f"c{number}" for number in range(0, 500, 2)), confirms_releases=True)
    finish(releases.open(stream(SubscriberKey("caller", "every second"), every_second), 0.0))
    clusters = [cluster(f"c{number}") for number in range(500)]
    tracemalloc.start()
    try:
        for each in clusters:
            releases.begin_drain(each, 100.0, 0.0)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(releases.awaited(name)) for name in ("c0", "c1")] == [401, 400]
    assert taken < 1 << 20


def test_former_subscribers_are_forgotten_after_the_drains_that_waited_for_them() -> None:
    releases = opened(ONE)
    assert releases.begin_drain(cluster("a"), 100.0, 0.0)
    for number in range(3 * REMEMBERED_EACH):
        other = stream(SubscriberKey("caller", f"s{number}"))
        finish(releases.open(other, 0.0))
        releases.close(other, 0.0)
    assert len(awaited(releases)) == 1 + 3 * REMEMBERED_EACH
    releases.end_drain("a")
    assert len(releases._numbered) <= 1 + REMEMBERED_EACH


def test_subscriber_for_which_no_drain_waits_is_forgotten_whatever_the_number_of_drains() -> None:
    """Its caller can do that thousands of times a second, while all clusters drain."""
    releases = opened(ONE)
    for number in range(10):
        assert releases.begin_drain(cluster(f"a{number}"), 100.0, 0.0)
    other = stream(TWO, Filter(names=frozenset({"b"}), confirms_releases=True))
    finish(releases.open(other, 0.0))
    releases._drains = Uncompared(releases._drains)
    assert releases.end_subscription(SubscriberKey("caller", "unknown")) == []
    assert releases.end_subscription(TWO) == []
    releases.close(other, 0.0)
    assert not releases.knows(TWO)
    assert releases.awaits("a1", ONE)


class Uncompared(dict[str, Any]):
    def __iter__(self) -> NoReturn:
        raise AssertionError("all drains were compared")

    values = items = __iter__


def test_new_stream_of_a_costly_view_is_compared_with_drains_in_steps() -> None:
    releases = opened(ONE)
    names = [f"a{number}" for number in range(100)]
    for name in names:
        assert releases.begin_drain(cluster(name), 100.0, 0.0)
    costly = Filter(parse(",".join(f"team!={number}" for number in range(64))), confirms_releases=True)
    steps = releases.open(stream(TWO, costly), 1.0)
    next(steps)
    assert sum(releases.awaits(name, TWO) for name in names) == 31
    releases.end_drain(names[-1])
    assert releases.begin_drain(cluster("later"), 100.0, 1.0)
    assert releases.awaits("later", TWO), "drains that begin meanwhile wait for it"
    assert sum(1 for _ in steps) == 2
    assert all(releases.awaits(name, TWO) for name in names[:-1])


def test_subscription_that_ends_while_its_stream_is_compared_with_drains_is_awaited_by_none() -> None:
    releases = opened(ONE)
    for number in range(100):
        assert releases.begin_drain(cluster(f"a{number}"), 100.0, 0.0)
    costly = Filter(parse(",".join(f"team!={number}" for number in range(64))), confirms_releases=True)
    steps = releases.open(stream(TWO, costly), 1.0)
    next(steps)
    releases.end_subscription(TWO)
    finish(steps)
    assert not any(releases.awaits(name, TWO) for name in releases)
