"""How much is kept of what clients do not read."""

from milo_discoveryd.server.connections.unread import FEW, LARGE, SMALL, UnreadLimit


def test_limit_is_small_while_many_clients_do_not_read() -> None:
    unread, limits = UnreadLimit(), dict[int, int]()
    for side in range(100):
        unread.add(side, lambda size, side=side: limits.update({side: size}))  # type: ignore[misc]
    for side in range(FEW):
        unread.note(side, is_stalled=True)
    assert set(limits.values()) == {LARGE}
    unread.note(FEW, is_stalled=True)
    assert set(limits.values()) == {SMALL}
    unread.add(100, lambda size: limits.update({100: size}))
    assert limits[100] == SMALL
    unread.note(0, is_stalled=False)
    assert set(limits.values()) == {LARGE}


def test_closed_connection_does_not_count() -> None:
    unread, limits = UnreadLimit(), list[int]()
    unread.add("reader", limits.append)
    for side in range(FEW + 1):
        unread.note(side, is_stalled=True)
    unread.remove(0)
    unread.remove("reader")
    unread.note(0, is_stalled=True)
    assert limits == [LARGE, SMALL, LARGE]
