"""The sockets of a TCP host: one for each of its IP addresses, such as both of `localhost`."""

import errno
import socket

_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What the kernel reports of addresses that this machine lacks, such as ::1 without IPv6."""


def bound(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each IP address of the host that this machine has, all with one port. An empty host means all
    interfaces. Raises OSError."""
    made: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in _addresses(host, port):
            try:
                made.append(_bound(family, address, made[0].getsockname()[1] if made else port, host))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
        if absent is not None and not made:
            raise absent
    except OSError:
        for each in made:
            each.close()
        raise
    return made


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if not host:
        return [(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET, "")]
    if host == "localhost":  # whatever this machine's hosts file says: that of a client may be another
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bound(family: socket.AddressFamily, address: str, port: int, host: str) -> socket.socket:
    # asyncio sets TCP_NODELAY only on connections of sockets that were created with IPPROTO_TCP. Without it, one event
    # in twenty waits 30 ms or more for an acknowledgment.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(host))
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made
