"""Peer addresses, and the networks that they count as."""

import pytest

from milo_discoveryd.server.connections.connection_rates import network, peer_address


@pytest.mark.parametrize(
    ("address", "peer", "counts_as"),
    [
        (("192.0.2.1", 5), "ipv4:192.0.2.1:5", "ipv4:192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "ipv6:[2001:db8:1:2:3:4:5:6]:5", "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 7, 0, 0), "ipv6:[2001:db8:1:2::9]:7", "2001:db8:1:2::/64"),
        (("2001:db8:1:3::9", 7, 0, 0), "ipv6:[2001:db8:1:3::9]:7", "2001:db8:1:3::/64"),
        (("::ffff:192.0.2.1", 7, 0, 0), "ipv6:[::ffff:192.0.2.1]:7", "ipv4:192.0.2.1"),
        (("fe80::1%eth0", 7, 0, 2), "ipv6:[fe80::1%eth0]:7", "fe80::/64"),
        ("", "unix:", "unix:"),
    ],
)
def test_ipv6_peers_count_by_their_64_prefix(address: object, peer: str, counts_as: str) -> None:
    assert peer_address(address) == peer
    assert network(peer) == counts_as
