"""How much each caller is given of what is limited."""

import pytest

from milo_discoveryd.rights import quota
from milo_discoveryd.rights.quota import MAX_MISS_DELAY_S, MISS_BURST, QuotaLimits, Quotas


def quotas(streams: int = 3, each: int = 2, per_minute: int = 60) -> Quotas:
    return Quotas(QuotaLimits(streams=streams, streams_each=each, per_minute_each=per_minute))


def test_a_caller_has_so_many_streams_and_no_more() -> None:
    asked = quotas()
    assert [asked.open("a", None) for _ in range(2)] == ["", ""]
    assert asked.open("a", None) == "2 streams are open already, and you may have no more at once"
    assert asked.streams("a") == 2
    assert asked.open("b", None) == ""


def test_a_rule_may_say_another_number() -> None:
    asked = quotas()
    assert asked.open("a", 1) == ""
    assert asked.open("a", 1) != ""


def test_all_together_have_no_more_than_the_daemon_can_bear() -> None:
    asked = quotas(streams=2)
    assert (asked.open("a", None), asked.open("b", None)) == ("", "")
    assert asked.open("c", None) == "2 streams are open, and the daemon has no more at once"
    asked.close("a")
    assert asked.open("c", None) == ""


def test_a_stream_that_ended_makes_room_for_another() -> None:
    asked = quotas()
    asked.open("a", None)
    asked.open("a", None)
    asked.close("a")
    assert asked.open("a", None) == ""
    asked.close("a")
    asked.close("a")
    assert asked.streams("a") == 0


def test_a_minutes_kubeconfigs_may_be_had_at_once_and_then_as_they_come() -> None:
    asked = quotas(per_minute=2)
    assert [asked.take("a", None, 0.0) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert asked.take("a", None, 15.0) == pytest.approx(15.0)
    assert asked.take("a", None, 30.0) == 0.0
    assert asked.take("a", None, 30.0) == pytest.approx(30.0)


def test_nobody_saves_up_more_than_a_minutes() -> None:
    asked = quotas(per_minute=2)
    asked.take("a", None, 0.0)
    assert [asked.take("a", None, 1000.0) for _ in range(3)] == [0.0, 0.0, 30.0]


def test_what_one_takes_is_nobody_elses_loss_and_a_rule_may_say_how_much() -> None:
    asked = quotas(per_minute=1)
    assert asked.take("a", None, 0.0) == 0.0
    assert asked.take("b", None, 0.0) == 0.0
    assert [asked.take("c", 2, 0.0) for _ in range(3)] == [0.0, 0.0, 30.0]


def test_only_so_many_callers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "REMEMBERED", 2)
    asked = quotas(per_minute=1)
    for name in "abac":
        asked.take(name, None, 0.0)
    assert asked.take("a", None, 0.0) > 0, "who asked last is remembered"
    assert asked.take("b", None, 0.0) == 0.0


def test_who_misses_seldom_never_waits() -> None:
    asked = quotas()
    assert [asked.miss("a", 0.0) for _ in range(MISS_BURST)] == [0.0] * MISS_BURST
    assert all(asked.miss("b", 0.2 * number) == 0 for number in range(1000))


def test_who_guesses_waits_longer_and_longer_up_to_a_point() -> None:
    asked = quotas()
    waits = [asked.miss("a", 0.0) for _ in range(MISS_BURST + 1000)]
    assert waits[MISS_BURST : MISS_BURST + 3] == pytest.approx([0.1, 0.2, 0.3])
    assert waits[-1] == MAX_MISS_DELAY_S
    assert asked.miss("a", 10.0) == 0, "and no more once it has stopped for a while"
    assert asked.miss("b", 0.0) == 0
