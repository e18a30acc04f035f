"""The order of TLS handshakes, and which connections make room for others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.server.connections import handshake_turns
from milo_discoveryd.server.connections.handshake_turns import TURN_S, UNAUTHENTICATED, HandshakeTurns, Turn

PLACES = 8


def turns(limit: int = 16) -> HandshakeTurns[str]:
    return HandshakeTurns(limit)


def waits(found: HandshakeTurns[str], *connections: str, network: str = "") -> list[str | None]:
    """Let connections arrive and send something, each from a network of its own unless one is given."""
    gone = []
    for connection in connections:
        found.arrive(connection, network or connection)
        if (last := found.hear(connection)) is not None:
            found.remove(last)
        gone.append(last)
    return gone


def begun(found: HandshakeTurns[str], now: float = 0.0) -> list[str]:
    """Return the handshakes that begin now, in their order."""
    order = []
    while (turn := found.next(now)).begun is not None:
        order.append(turn.begun)
    return order


def full(found: HandshakeTurns[str], *, suspect: bool) -> None:
    for number in range(PLACES):
        if suspect:
            found.failed(f"old {number}")
        waits(found, f"old {number}")
    assert len(begun(found)) == PLACES


def test_connections_have_turns_in_the_order_in_which_they_sent_something() -> None:
    found = turns()
    assert [found.arrive(name, name) for name in "abc"] == [None] * 3
    assert [found.hear(name) for name in "cba"] == [None] * 3
    assert begun(found) == ["c", "b", "a"]


def test_first_connection_of_a_network_has_its_turn_before_the_second_of_another() -> None:
    found = turns()
    waits(found, "a1", "a2", "a3", network="a")
    waits(found, "b")
    assert begun(found) == ["a1", "b", "a2", "a3"]


def test_network_that_failed_has_its_turn_after_others_and_after_those_that_failed_before_it() -> None:
    found = turns()
    for network in ("a", "b", "a"):
        found.failed(network)
    waits(found, "a", "b", "c")
    assert begun(found) == ["c", "b", "a"]


def test_failure_counts_for_connections_that_wait_already() -> None:
    found = turns()
    waits(found, "a", "b")
    found.failed("a")
    assert begun(found) == ["b", "a"]


def test_network_is_like_others_again_once_a_connection_of_it_is_authenticated() -> None:
    found = turns()
    waits(found, "a1", network="a")
    assert begun(found) == ["a1"]
    found.failed("a")
    assert found.is_suspect("a")
    found.authenticated("a1")
    found.authenticated("a1")
    assert not found.is_suspect("a")
    waits(found, "a2", network="a")
    waits(found, "b")
    assert begun(found) == ["a2", "b"]


def test_place_is_taken_from_the_oldest_handshake() -> None:
    found = turns()
    full(found, suspect=False)
    waits(found, "new")
    assert found.next(0.0) == Turn("new", "old 0")
    assert found.next(0.0) == Turn()


@pytest.mark.parametrize("suspect", [True, False])
def test_network_that_failed_takes_the_place_of_a_handshake_only_once_that_had_its_turn(suspect: bool) -> None:
    found = turns()
    full(found, suspect=suspect)
    found.failed("late")
    waits(found, "late")
    assert found.next(TURN_S / 4) == Turn(wait_s=TURN_S * 3 / 4)
    assert found.next(TURN_S) == Turn("late", "old 0")


def test_place_of_a_network_that_failed_is_taken_before_that_of_another_which_is_older() -> None:
    found = turns()
    waits(found, "honest")
    assert begun(found, -TURN_S) == ["honest"]
    for number in range(PLACES - 1):
        found.failed(str(number))
        waits(found, str(number))
    assert len(begun(found)) == PLACES - 1
    waits(found, "0 again", network="0")
    assert found.next(TURN_S) == Turn("0 again", "0")


def test_last_in_the_order_makes_room_if_too_many_wait() -> None:
    found = turns()
    found.failed("suspect")
    assert waits(found, "s", network="suspect") == [None]
    assert waits(found, "a1", "a2", network="a") == [None, None]
    assert waits(found, *(f"other {number}" for number in range(PLACES - 3))) == [None] * (PLACES - 3)
    assert waits(found, "b") == ["s"]
    assert waits(found, "c") == ["a2"]
    assert waits(found, "d") == ["d"]


def test_oldest_silent_connection_makes_room_first_of_a_network_that_failed() -> None:
    found = turns()
    assert found.arrive("other", "other") is None
    assert [found.arrive(f"a{number}", "a") for number in range(13)] == [None] * 13
    found.failed("b")
    assert [found.arrive("b1", "b"), found.arrive("b2", "b"), found.arrive("c", "c")] == [None, None, "b1"]
    assert found.remove("b1") == "b"
    assert found.arrive("d", "d") == "b2"
    assert found.remove("b2") == "b"
    assert found.arrive("e", "e") == "a0"
    assert found.remove("b2") is None
    assert len(found) == 17


def test_oldest_silent_connection_of_the_network_with_the_most_makes_room_if_none_failed() -> None:
    found = turns()
    assert found.arrive("other", "other") is None
    assert [found.arrive(f"a{number}", "a") for number in range(15)] == [None] * 15
    assert found.arrive("new", "new") == "a0"


def test_silent_connection_makes_room_for_another_of_its_network_that_failed_after_it_arrived() -> None:
    found = turns()
    assert found.arrive("other", "other") is None
    assert [found.arrive(f"a{number}", "a") for number in range(15)] == [None] * 15
    found.failed("a")
    assert found.arrive("new", "a") == "a0"


def test_networks_that_failed_longest_ago_are_forgotten_beyond_a_limit() -> None:
    found = turns()
    for number in range(handshake_turns._MAX_NETWORKS + 1):
        found.failed(str(number))
    waits(found, "1")
    waits(found, "0")
    assert begun(found) == ["0", "1"]


def test_handshakes_have_a_fixed_maximum() -> None:
    found = turns(100_000)
    waits(found, *map(str, range(2 * UNAUTHENTICATED)))
    assert len(begun(found)) == UNAUTHENTICATED


@given(st.integers(0, 60), st.integers(1, 6))
def test_new_network_has_the_next_turn_whatever_those_do_that_failed(flood: int, networks: int) -> None:
    found = turns()
    for number in range(networks):
        found.failed(str(number))
    for number in range(flood):
        waits(found, f"flood {number}", network=str(number % networks))
        found.next(0.0)
    waits(found, "honest")
    assert found.next(0.0).begun == "honest"
    for number in range(flood):
        waits(found, f"more {number}", network=str(number % networks))
        assert found.next(TURN_S).evicted != "honest"
