"""How often one place may connect."""

from milo_discoveryd.server.connections.connect_rate import REMEMBERED, ConnectRateLimiter


def test_many_may_come_at_once_and_then_one_after_the_other() -> None:
    arrivals = ConnectRateLimiter(burst=3, per_second=2)
    assert [arrivals.admit("a", 0) for _ in range(5)] == [True, True, True, False, False]
    assert [arrivals.admit("a", now) for now in (0.4, 0.5, 0.6, 1.0)] == [False, True, False, True]
    assert [arrivals.admit("a", 1000) for _ in range(5)] == [True, True, True, False, False]


def test_one_place_takes_nothing_from_another() -> None:
    arrivals = ConnectRateLimiter(burst=1, per_second=1)
    assert [arrivals.admit(place, 0) for place in "aabb"] == [True, False, True, False]


def test_one_that_came_to_nothing_counts_as_many() -> None:
    arrivals = ConnectRateLimiter(burst=20, per_second=10, failed=10)
    for _ in range(2):
        assert arrivals.admit("a", 0)
        arrivals.failed("a", 0)
    assert [arrivals.admit("a", now) for now in (0, 0.09, 0.11)] == [False, False, True]
    arrivals.failed("a", 0.11)
    assert [arrivals.admit("a", now) for now in (1.0, 1.11)] == [False, True]


def test_however_many_came_to_nothing_there_is_an_end_to_it() -> None:
    arrivals = ConnectRateLimiter(burst=20, per_second=10, failed=10)
    for _ in range(100):
        arrivals.failed("a", 0)
    assert [arrivals.admit("a", now) for now in (2.0, 2.11)] == [False, True]


def test_no_more_places_are_remembered_than_fit() -> None:
    arrivals = ConnectRateLimiter(burst=1, per_second=1)
    for number in range(2 * REMEMBERED):
        arrivals.admit(str(number), 0)
    assert len(arrivals._left) == REMEMBERED
    assert not arrivals.admit(str(2 * REMEMBERED - 1), 0)
