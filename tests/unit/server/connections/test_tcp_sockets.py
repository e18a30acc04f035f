"""The sockets of TCP hosts."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from milo_discoveryd.server.connections.tcp_sockets import bound
from tests.support.ports import free_port, loopback_addresses


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    sockets = bound(host, port)
    try:
        for each in sockets:
            each.listen()
        yield sockets
    finally:
        for each in sockets:
            each.close()


def test_localhost_is_bound_at_each_loopback_address_of_the_machine() -> None:
    with listening("localhost", 0) as sockets:
        [port] = {each.getsockname()[1] for each in sockets}
        for address in loopback_addresses():
            socket.create_connection((address, port), timeout=20).close()


class WithoutIpv6Loopback(socket.socket):
    """A socket on a machine with IPv6 in its kernel, and no ::1."""

    def bind(self, address: tuple[str, int]) -> None:
        if address[0] == "::1":
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        super().bind(address)


def test_loopback_address_that_the_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", WithoutIpv6Loopback)
    with listening("localhost", 0) as sockets:
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.1"]
    with pytest.raises(OSError, match="Cannot assign"):
        bound("::1", 0)


@pytest.mark.parametrize("taken", loopback_addresses())
def test_localhost_is_in_use_if_another_process_has_the_port_at_one_of_its_addresses(taken: str) -> None:
    port = free_port()
    with listening(taken, port), pytest.raises(OSError, match="in use"):
        bound("localhost", port)
    with listening("localhost", port):
        pass
