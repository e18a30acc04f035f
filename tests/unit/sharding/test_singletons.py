"""Work that only one subscriber of the group does at a time."""

import pytest

from milo_discoveryd.sharding.singletons import (
    END_S,
    HELD_AT_MOST,
    HELD_BY_CALLER,
    VALID_S,
    SingletonKey,
    Singletons,
    WorkState,
)

KEY = SingletonKey("caller", "cleanup")
RELEASE_S = 30.0
START = 100.0


@pytest.fixture
def singletons() -> Singletons:
    """Return the singletons of a daemon that has run for a while."""
    return Singletons(RELEASE_S, START - VALID_S - END_S)


def claim(
    singletons: Singletons,
    subscriber: str,
    state: WorkState = WorkState.WAITING,
    at: float = START,
    key: SingletonKey = KEY,
    *,
    is_owned: bool = True,
) -> bool:
    return singletons.claim(key, subscriber, state, is_owned=is_owned, valid_s=VALID_S, now=at)


def owns(_: str) -> bool:
    return True


def owns_nothing(_: str) -> bool:
    return False


def test_singleton_work_is_granted_to_one_subscriber(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    assert not claim(singletons, "b")
    assert claim(singletons, "a", WorkState.WORKING, START + 5)
    assert not claim(singletons, "b", at=START + VALID_S + END_S)
    assert claim(singletons, "b", at=START + 5 + VALID_S + END_S), "the first subscriber is silent"
    assert not claim(singletons, "a", WorkState.WORKING, START + 5 + VALID_S + END_S)


def test_waiting_subscriber_has_released_its_singleton_work(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    assert not claim(singletons, "a", is_owned=False)
    assert claim(singletons, "b")


def test_ended_subscriber_has_released_its_singleton_work(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    singletons.end("caller", "b")
    singletons.end("other", "a")
    assert not claim(singletons, "b")
    singletons.end("caller", "a")
    assert claim(singletons, "b")


def test_singleton_work_is_granted_per_caller_and_name(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    assert claim(singletons, "b", key=SingletonKey("other", "cleanup"))
    assert claim(singletons, "b", key=SingletonKey("caller", "report"))


def test_singleton_work_owned_by_another_daemon_is_not_granted(singletons: Singletons) -> None:
    assert not claim(singletons, "a", is_owned=False)
    assert not singletons.keeps_lost(owns_nothing, START)


def test_lost_singleton_work_is_kept_until_it_has_ended(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    assert not singletons.keeps_lost(owns, START)
    assert singletons.keeps_lost(owns_nothing, START + 1)
    assert not claim(singletons, "a", WorkState.WORKING, START + 2, is_owned=False)
    assert not claim(singletons, "a", WorkState.ENDING, START + 12, is_owned=False)
    assert singletons.keeps_lost(owns_nothing, START + 20)
    assert not claim(singletons, "a", at=START + 21, is_owned=False)
    assert not singletons.keeps_lost(owns_nothing, START + 21)


def test_lost_singleton_work_of_silent_subscriber_ends_with_its_grant(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    assert singletons.keeps_lost(owns_nothing, START + VALID_S + END_S - 1)
    assert not singletons.keeps_lost(owns_nothing, START + VALID_S + END_S)


def test_lost_singleton_work_that_does_not_end_is_kept_for_the_release_timeout(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    for second in range(0, int(RELEASE_S), 3):
        assert singletons.keeps_lost(owns_nothing, START + second)
        assert not claim(singletons, "a", WorkState.ENDING, START + second, is_owned=False)
    assert not singletons.keeps_lost(owns_nothing, START + RELEASE_S)
    assert not claim(singletons, "b", at=START + RELEASE_S), (
        "the work ends on this daemon, and is not granted twice on it"
    )


def test_ending_singleton_work_is_not_granted_to_another_subscriber(singletons: Singletons) -> None:
    assert claim(singletons, "a")
    assert not claim(singletons, "a", WorkState.ENDING, START + 1)
    assert not claim(singletons, "b", at=START + 1)


def test_restarted_daemon_grants_no_singleton_work_until_former_grants_expire() -> None:
    singletons = Singletons(RELEASE_S, START)
    assert not claim(singletons, "b", at=START + VALID_S)
    assert claim(singletons, "a", WorkState.WORKING, START + VALID_S), "the work was granted by the former process"
    assert not claim(singletons, "b", at=START + VALID_S + END_S)


def hold_all(singletons: Singletons) -> None:
    for number in range(HELD_AT_MOST):
        assert claim(singletons, "a", key=SingletonKey(f"caller-{number % 2}", f"{number}"))


def test_number_of_held_singleton_grants_is_limited(singletons: Singletons) -> None:
    hold_all(singletons)
    assert not claim(singletons, "a")


def test_one_caller_holds_at_most_half_of_the_singleton_grants(singletons: Singletons) -> None:
    for number in range(HELD_BY_CALLER):
        assert claim(singletons, "a", key=SingletonKey("hostile", f"{number}"))
    assert not claim(singletons, "a", key=SingletonKey("hostile", "another"))
    assert claim(singletons, "a")


def test_expired_singleton_grants_do_not_count_against_the_limit(singletons: Singletons) -> None:
    hold_all(singletons)
    at = START + VALID_S + END_S
    assert claim(singletons, "b", at=at)
    assert not claim(singletons, "c", at=at)
