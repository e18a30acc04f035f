"""Checks of the Host header and of the client's address, for an HTTP port."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from milo_kube import addresses

_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]*))(?::\d+)?")
_LOCAL = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
"""Client addresses on loopback. Other addresses in 127.0.0.0/8 can be proxies: Istio forwards from 127.0.0.6."""
_PRIVATE_DOMAINS = (".localhost", ".svc", ".cluster.local")
"""Domains in which an attacker cannot register hostnames for DNS rebinding."""


def is_own_host(host_header: str, names: Collection[str] = ()) -> bool:
    """Return whether the Host header may name this server. After DNS rebinding, it contains the attacker's domain.

    `names`, which are in lower case, are accepted too.
    """
    match = _HOST.fullmatch(host_header.lower())
    if match is None:
        return False
    host = match["v6"] or match["name"]
    return (
        "." not in host  # the short name of a Service in the same namespace, or HTTP/1.0 without a Host header
        or host in names
        or host.endswith(_PRIVATE_DOMAINS)
        or addresses.ip_address(host) is not None
    )


def is_on_loopback(peer: str) -> bool:
    """Return whether a client's address is 127.0.0.1 or ::1, so that it is on this machine or in this pod."""
    return addresses.ip_address(peer) in _LOCAL
