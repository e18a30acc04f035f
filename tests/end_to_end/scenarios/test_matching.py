"""Tests of the comparison of received events with expected ones."""

import pytest

from milo_discovery import Cluster, DisengageReason, Event, EventType
from tests.end_to_end.scenarios.matching import Awaiting, Contradicted, Fulfilled, Verdict, compare, transitions
from tests.end_to_end.scenarios.steps import Expected


def engaged(name: str, endpoint: str = "") -> Event:
    return Event(type=EventType.ENGAGED, cluster=Cluster(name=name, endpoint=endpoint))


def disengaged(name: str, reason: DisengageReason = DisengageReason.DELETED) -> Event:
    return Event(type=EventType.DISENGAGED, cluster=Cluster(name=name), reason=reason)


def updated(name: str) -> Event:
    return Event(type=EventType.UPDATED, cluster=Cluster(name=name))


def judge(expected: list[Expected], seen: list[Event], *uids: str) -> Verdict:
    return compare(expected, seen, lambda _: uids)


IN = Expected("ENGAGED", "a")
OUT = Expected("DISENGAGED", "a")


def test_expected_events_of_different_clusters_match_in_any_order() -> None:
    assert judge([IN, Expected("ENGAGED", "b")], [engaged("b"), engaged("a")]) == Fulfilled()


def test_missing_expected_events_are_awaited() -> None:
    assert judge([IN, OUT], [engaged("a")]) == Awaiting("DISENGAGED a")


def test_events_of_one_cluster_match_only_in_the_expected_order() -> None:
    assert judge([OUT, IN], [engaged("a")]) == Contradicted("received ENGAGED a where DISENGAGED a was expected")


@pytest.mark.parametrize("seen", [[engaged("a"), disengaged("a")], [engaged("a"), engaged("b")]])
def test_unexpected_event_fails_the_match(seen: list[Event]) -> None:
    assert isinstance(judge([IN], seen), Contradicted)


def test_reason_of_an_event_must_match_if_one_is_expected() -> None:
    left = [disengaged("a", DisengageReason.NOT_READY)]
    assert judge([OUT], left) == Fulfilled()
    assert judge([Expected("DISENGAGED", "a", "DELETED")], left) == Contradicted(
        "received DISENGAGED a (NOT_READY), want the reason DELETED"
    )


def test_endpoint_of_an_event_must_match_if_one_is_expected() -> None:
    there = Expected("ENGAGED", "a", endpoint="https://there")
    assert judge([there], [engaged("a", "https://there")]) == Fulfilled()
    assert judge([there], [engaged("a", "https://elsewhere")]) == Contradicted(
        "ENGAGED a has the endpoint https://elsewhere, want https://there"
    )


def test_expected_endpoint_of_an_earlier_event_may_contain_a_former_uid() -> None:
    there = Expected("ENGAGED", "a", endpoint="https://{uid}")
    seen = [engaged("a", "https://old"), disengaged("a"), engaged("a", "https://new")]
    assert judge([there, OUT, there], seen, "old", "new") == Fulfilled()


def test_updates_are_not_compared_with_expected_events() -> None:
    assert transitions([engaged("a"), updated("a"), disengaged("a")]) == [engaged("a"), disengaged("a")]
