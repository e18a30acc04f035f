"""How many mints may begin."""

from milo_discoveryd.kubeconfigs.pace import Pace


def test_a_burst_may_begin_at_once_and_the_rest_in_their_turn() -> None:
    pace = Pace(10, 3, now=0)
    assert [round(pace.take(0), 3) for _ in range(6)] == [0, 0, 0, 0.1, 0.2, 0.3]


def test_what_was_not_used_is_there_later_up_to_a_burst() -> None:
    pace = Pace(10, 2, now=0)
    for _ in range(2):
        pace.take(0)
    assert [round(pace.take(100), 3) for _ in range(3)] == [0, 0, 0.1]
