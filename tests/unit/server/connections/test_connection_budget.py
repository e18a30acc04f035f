"""How many connections there is room for."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.server.connections.connection_budget import RESERVED, fit_connections
from milo_discoveryd.server.connections.listener import Listener, UnixAddress


def listener(connections: int, *, peer_credentials: bool = False) -> Listener:
    address = UnixAddress(Path("/run/d.sock"))
    return Listener(name="a", address=address, connections=connections, peer_credentials=peer_credentials)


def connections(*listeners: Listener, descriptors: int) -> list[int]:
    return [each.connections for each in fit_connections(listeners, descriptors)]


def test_where_there_are_descriptors_for_all_that_is_set_it_stays_as_it_is() -> None:
    assert connections(listener(1000), listener(500), descriptors=2 * RESERVED + 1500) == [1000, 500]


def test_some_are_kept_for_what_is_no_connection() -> None:
    assert connections(listener(100_000), descriptors=10_000) == [10_000 - RESERVED]


def test_where_there_are_few_half_of_them_are_kept() -> None:
    assert connections(listener(1000), descriptors=64) == [32]


def test_a_connection_that_we_pass_on_takes_three() -> None:
    assert connections(listener(1000, peer_credentials=True), descriptors=2 * 300) == [100]


def test_listeners_share_what_there_is_by_what_they_ask_for() -> None:
    assert connections(listener(300), listener(100), descriptors=400) == [150, 50]


@given(
    st.lists(st.builds(listener, st.integers(1, 100_000), peer_credentials=st.booleans()), min_size=1, max_size=5),
    st.integers(64, 1 << 20),
)
def test_never_more_than_set_and_never_none(listeners: list[Listener], descriptors: int) -> None:
    found = fit_connections(listeners, descriptors)
    assert all(1 <= each.connections <= asked.connections for each, asked in zip(found, listeners, strict=True))
    taken = sum(each.connections * each.descriptors for each in found)
    one_each = sum(each.descriptors for each in listeners)
    assert taken <= max(descriptors - RESERVED, (descriptors + 1) // 2) + one_each
    assert [each.address for each in found] == [each.address for each in listeners]
