"""Peer addresses as gRPC formats them, and their networks for rate limits. Pure."""

from ipaddress import IPv6Network, ip_address


def peer_address(address: object) -> str:
    """Format a socket address as gRPC does. The client end of a Unix socket has none."""
    if not isinstance(address, tuple):
        return "unix:"
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def network(peer: str) -> str:
    """Return the network to rate limit: the IPv4 address, or the /64 of an IPv6 address, which one host can own."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    if kind != "ipv6":
        return f"{kind}:{host}"
    found = ip_address(host)
    mapped = getattr(found, "ipv4_mapped", None)
    return f"ipv4:{mapped}" if mapped else str(IPv6Network((int(found), 64), strict=False))
