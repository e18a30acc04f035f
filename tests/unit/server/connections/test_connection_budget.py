"""Connection limits by file descriptors, and connection slots."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.server.connections.connection_budget import (
    RESERVED,
    ConnectionLimitError,
    ConnectionSlots,
    fit_connections,
)
from milo_discoveryd.server.connections.listener import Listener, UnixSocket


def listener(connections: int, *, peer_credentials: bool = False) -> Listener:
    address = UnixSocket(Path("/run/d.sock"))
    return Listener(name="a", address=address, connections=connections, peer_credentials=peer_credentials)


def connections(*listeners: Listener, descriptors: int) -> list[int]:
    return [each.connections for each in fit_connections(listeners, descriptors)]


def test_connection_budget_unchanged_with_enough_descriptors() -> None:
    assert connections(listener(1000), listener(500), descriptors=2 * RESERVED + 1500) == [1000, 500]


def test_connection_budget_reserves_descriptors() -> None:
    assert connections(listener(100_000), descriptors=10_000) == [10_000 - RESERVED]


def test_connection_budget_reserves_half_of_few_descriptors() -> None:
    assert connections(listener(1000), descriptors=64) == [32]


def test_connection_budget_counts_three_descriptors_per_proxied_connection() -> None:
    assert connections(listener(1000, peer_credentials=True), descriptors=2 * 300) == [100]


def test_connection_budget_is_shared_in_proportion() -> None:
    assert connections(listener(300), listener(100), descriptors=400) == [150, 50]


@given(
    st.lists(st.builds(listener, st.integers(1, 100_000), peer_credentials=st.booleans()), min_size=1, max_size=5),
    st.integers(64, 1 << 20),
)
def test_connection_budget_is_at_least_one_and_at_most_the_setting(listeners: list[Listener], descriptors: int) -> None:
    found = fit_connections(listeners, descriptors)
    assert all(1 <= each.connections <= asked.connections for each, asked in zip(found, listeners, strict=True))
    taken = sum(each.connections * each.descriptors for each in found)
    one_each = sum(each.descriptors for each in listeners)
    assert taken <= max(descriptors - RESERVED, (descriptors + 1) // 2) + one_each
    assert [each.address for each in found] == [each.address for each in listeners]


def test_unauthenticated_connections_get_at_most_half_and_the_oldest_is_evicted() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(6)
    assert [slots.admit(number) for number in range(5)] == [None, None, None, 0, 1]
    assert len(slots) == 3
    for number in (2, 3, 4):
        slots.authenticate(number, [str(number)])
    assert [slots.admit(number) for number in range(5, 9)] == [None, None, None, 5]


def connect(slots: ConnectionSlots[int], *owners: str) -> bool:
    number = len(slots)
    try:
        slots.admit(number)
        slots.authenticate(number, owners)
    except ConnectionLimitError:
        slots.remove(number)
        return False
    return True


def test_connection_is_refused_when_all_slots_are_authenticated() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(2)
    assert [connect(slots, "a"), connect(slots, "b")] == [True, True]
    with pytest.raises(ConnectionLimitError):
        slots.admit(2)
    slots.remove(0)
    assert slots.admit(2) is None


def test_owner_takes_at_most_as_many_slots_as_it_leaves_free_however_many_names_it_has() -> None:
    slots: ConnectionSlots[int] = ConnectionSlots(16)
    taken = {}
    for owner in "abcde":
        taken[owner] = 0
        while connect(slots, owner, "a") if owner == "b" else connect(slots, owner):
            taken[owner] += 1
    assert taken == {"a": 8, "b": 0, "c": 4, "d": 2, "e": 1}
