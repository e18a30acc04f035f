"""Connection limits that fit the available file descriptors, and connection slots."""

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.server.connections.connection_budget import (
    DESCRIPTORS,
    RESERVED,
    UNAUTHENTICATED,
    ConnectionLimitError,
    ConnectionSlots,
    fit_connections,
)
from milo_discoveryd.server.connections.listener import Listener, UnixSocket


def listener(connections: int) -> Listener:
    return Listener(name="a", address=UnixSocket(Path("/run/d.sock")), connections=connections)


def connections(*listeners: Listener, descriptors: int) -> list[int]:
    return [fitted.connections for fitted in fit_connections(listeners, descriptors)]


def test_connection_budget_is_unchanged_with_enough_descriptors() -> None:
    assert connections(listener(1000), listener(500), descriptors=RESERVED + 6000) == [1000, 500]


def test_connection_budget_reserves_descriptors() -> None:
    assert connections(listener(100_000), descriptors=10_000) == [(10_000 - RESERVED) // DESCRIPTORS]


def test_connection_budget_reserves_half_of_the_descriptors_if_there_are_few() -> None:
    assert connections(listener(1000), descriptors=64) == [8]


def test_connection_budget_is_shared_in_proportion_to_configured_limits() -> None:
    assert connections(listener(300), listener(100), descriptors=800) == [75, 25]


@given(
    st.lists(st.builds(listener, st.integers(1, 100_000)), min_size=1, max_size=5),
    st.integers(64, 1 << 20),
)
def test_connection_budget_is_at_least_one_and_at_most_the_setting(listeners: list[Listener], descriptors: int) -> None:
    found = fit_connections(listeners, descriptors)
    assert all(1 <= fitted.connections <= asked.connections for fitted, asked in zip(found, listeners, strict=True))
    taken = DESCRIPTORS * sum(fitted.connections for fitted in found)
    one_each = DESCRIPTORS * len(listeners)
    assert taken <= max(descriptors - RESERVED, (descriptors + 1) // 2) + one_each
    assert [fitted.address for fitted in found] == [asked.address for asked in listeners]


def admitted(slots: ConnectionSlots[int], network: str, *numbers: int) -> list[int | None]:
    return [slots.admit(number, network) for number in numbers]


def test_unauthenticated_connections_are_limited_to_an_eighth_of_the_slots_and_to_half_of_that_per_network() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(80)
    assert admitted(slots, "a", *range(7)) == [*[None] * 5, 0, 1]
    assert admitted(slots, "b", *range(7, 12)) == [None] * 5
    assert admitted(slots, "a", 12) == [2]


def test_unauthenticated_connections_may_take_all_slots_of_a_small_budget() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(4)
    assert admitted(slots, "a", 0, 1, 2, 3) == [None, None, 0, 1]
    assert admitted(slots, "b", 4, 5) == [None, None]
    for number in (2, 3):
        slots.authenticate(number, [str(number)])
    assert admitted(slots, "a", 6, 7) == [None, None]


def test_new_connection_evicts_oldest_unauthenticated_connection_of_the_network_with_the_most_of_them() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(4)
    assert admitted(slots, "a", 0, 1) == [None, None]
    assert admitted(slots, "b", 2) == [None]
    assert admitted(slots, "c", 3) == [None]
    assert admitted(slots, "d", 4) == [0]
    assert admitted(slots, "e", 5) == [1]


def test_unauthenticated_connections_have_a_fixed_maximum() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(100_000)
    evicted = [slots.admit(number, str(number)) for number in range(2 * UNAUTHENTICATED)]
    assert evicted == [*[None] * UNAUTHENTICATED, *range(UNAUTHENTICATED)]


def taken(slots: ConnectionSlots[int], number: int, *owners: str) -> int | None:
    """Authenticate a connection; return the connection that loses its slot to it, or None, or -1 if it is refused."""
    slots.admit(number, str(number))
    try:
        return slots.authenticate(number, owners)
    except ConnectionLimitError:
        slots.remove(number)
        return -1


def test_one_owner_may_take_all_slots_until_owners_with_fewer_connections_evict_its_newest_connections() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(4)
    assert [taken(slots, number, "a") for number in range(5)] == [None, None, None, None, -1]
    assert [taken(slots, number, "b") for number in (5, 6, 7)] == [3, 2, -1]
    assert [taken(slots, number, "a") for number in (8,)] == [-1], "all owners have the same number"
    assert taken(slots, 9, "c") in {1, 6}
    slots.remove(0)
    assert taken(slots, 10, "c") is None


def test_longest_idle_connection_is_evicted_to_admit_an_owner_without_connections() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(3)
    for number in range(3):
        taken(slots, number, str(number))
        slots.count_call(number, 0)
    slots.count_call(0, 1)
    slots.count_call(0, 1)
    slots.count_call(0, -1)
    slots.count_call(1, 1)
    slots.count_call(1, -1)
    assert taken(slots, 3, "new") == 2
    assert taken(slots, 4, "new") == -1, "this owner has a connection already"
    assert taken(slots, 5, "newer") == 1
    assert taken(slots, 6, "newest") == -1, "the other connections have calls in flight, or have had no call yet"
    slots.count_call(0, -1)
    assert taken(slots, 7, "newest") == 0
    slots.count_call(0, 1)
    assert len(slots) == 3, "a connection that ended is not counted again"


def test_owner_with_additional_certificate_names_gets_no_additional_slots() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(2)
    assert [taken(slots, number, "a", f"extra {number}") for number in range(3)] == [None, None, -1]
    assert taken(slots, 3, "b") == 1


@given(st.integers(1, 8), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef")), max_size=40))
def test_connection_slots_are_divided_fairly_among_owners(limit: int, changes: list[tuple[bool, str]]) -> None:
    """No owner is refused while another owner has at least two connections more, and the limit is never exceeded."""
    slots: ConnectionSlots[int] = ConnectionSlots(limit)
    open_ones: dict[int, str] = {}
    for number, (ends, owner) in enumerate(changes):
        if ends and open_ones:
            slots.remove(first := next(iter(open_ones)))
            del open_ones[first]
            continue
        counts = Counter(open_ones.values())
        evicted = taken(slots, number, owner)
        if evicted == -1:
            assert len(open_ones) == limit
            assert max(counts.values()) <= counts[owner] + 1
            continue
        if evicted is not None:
            assert counts[open_ones.pop(evicted)] == max(counts.values()) > counts[owner] + 1
        open_ones[number] = owner
        assert len(slots) == len(open_ones) <= limit
