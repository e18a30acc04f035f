"""What happens between the steps in which a list is compared with the known objects, and applied."""

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects import comparison
from milo_discoveryd.objects.pending_deletions import Absent, ConfirmationRequest
from milo_kube.reflect.messages import DeletionReported, Listed, ListEnded, ListStarted
from tests.unit.fleet.fleets import ListedClusters, at, ready

LIMITS = RemovalLimits(count=1, share=0.2, verify_after_s=30.0, per_second=1.0)
FLEET = [ready(name) for name in "abcdef"]


@pytest.fixture(autouse=True)
def _single_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "OBJECTS_PER_STEP", 1)


class Source(ListedClusters):
    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.lists(*FLEET)

    def report_deleted(self) -> ConfirmationRequest:
        self.take(DeletionReported("a", "u1"))
        [request] = self.due_requests()
        return request


def test_read_that_is_answered_while_a_list_is_compared_is_repeated() -> None:
    source = Source()
    read = source.report_deleted()
    steps = source.take_batches((ListStarted(), *map(Listed, FLEET[1:]), ListEnded()))
    next(steps)
    assert source.resolve(read, Absent()) == []
    assert [event for step in steps for event in step] == []
    assert (source.engagements.engaged, source.requested_names()) == (6, [])
    source.now += 10.0
    [again] = source.due_requests()
    [done] = source.resolve(again, Absent())
    assert done.reason is DisengageReason.DELETED


@pytest.mark.parametrize("made", range(1, 30))
def test_read_that_is_answered_between_any_steps_of_a_list_disengages_what_it_lacks_once(made: int) -> None:
    source = Source()
    read, events = source.report_deleted(), list[object]()
    steps = source.take_batches((ListStarted(), *map(Listed, FLEET[1:]), ListEnded()))
    for _, step in zip(range(made), steps, strict=False):
        events += step
    events += source.resolve(read, Absent())
    for step in steps:
        events += step
    source.now += 10.0
    for request in source.due_requests():
        events += source.resolve(request, Absent())
    assert len(events) == 1
    assert (source.engagements.engaged, source.requested_names()) == (5, [])


def test_list_that_ends_without_its_steps_keeps_no_later_read_from_being_applied() -> None:
    source = Source()
    read = source.report_deleted()
    steps = source.collection.apply_events((ListStarted(), Listed(FLEET[1]), ListEnded()), at(source.now))
    next(steps)
    del steps
    [done] = source.resolve(read, Absent())
    assert done.reason is DisengageReason.DELETED


def test_list_that_is_accepted_while_it_is_compared_is_believed() -> None:
    source = Source()
    source.lists()
    assert (source.pending_deletions.held, source.collection.held is None) == (6, False)
    steps = source.take_batches((ListStarted(), ListEnded()))
    next(steps)
    assert source.collection.accept(source.now)
    assert [event for step in steps for event in step] == []
    assert (source.pending_deletions.held, source.collection.held) == (0, None)
    assert len(source.requested_names()) == 1, "as many as the rate allows"


def test_list_of_another_server_is_ignored_after_all_its_steps() -> None:
    source = Source()
    events = (ListStarted(), *(Listed(ready(name, "2", uid="u2")) for name in "wxyz"), ListEnded())
    steps = [*source.take_batches(events)]
    assert len(steps) >= 10, "it lacks 6 objects, and 4 are unknown"
    assert [event for step in steps for event in step] == []
    assert source.collection.held_count == 6
