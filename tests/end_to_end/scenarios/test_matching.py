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


def test_matching_ignores_order_between_clusters() -> None:
    assert judge([IN, Expected("ENGAGED", "b")], [engaged("b"), engaged("a")]) == Fulfilled()


def test_matching_awaits_missing_events() -> None:
    assert judge([IN, OUT], [engaged("a")]) == Awaiting("DISENGAGED a")


def test_matching_requires_order_within_a_cluster() -> None:
    assert judge([OUT, IN], [engaged("a")]) == Contradicted("received ENGAGED a where DISENGAGED a was expected")


@pytest.mark.parametrize("seen", [[engaged("a"), disengaged("a")], [engaged("a"), engaged("b")]])
def test_matching_rejects_unexpected_event(seen: list[Event]) -> None:
    assert isinstance(judge([IN], seen), Contradicted)


def test_matching_compares_reason_if_given() -> None:
    left = [disengaged("a", DisengageReason.NOT_READY)]
    assert judge([OUT], left) == Fulfilled()
    assert judge([Expected("DISENGAGED", "a", "DELETED")], left) == Contradicted(
        "received DISENGAGED a (NOT_READY), want the reason DELETED"
    )


def test_matching_compares_endpoint_if_given() -> None:
    there = Expected("ENGAGED", "a", endpoint="https://there")
    assert judge([there], [engaged("a", "https://there")]) == Fulfilled()
    assert judge([there], [engaged("a", "https://elsewhere")]) == Contradicted(
        "ENGAGED a has the endpoint https://elsewhere, want https://there"
    )


def test_matching_accepts_any_previous_uid_for_earlier_events() -> None:
    there = Expected("ENGAGED", "a", endpoint="https://{uid}")
    seen = [engaged("a", "https://old"), disengaged("a"), engaged("a", "https://new")]
    assert judge([there, OUT, there], seen, "old", "new") == Fulfilled()


def test_matching_ignores_updates() -> None:
    assert transitions([engaged("a"), updated("a"), disengaged("a")]) == [engaged("a"), disengaged("a")]
