"""Rate limits of connections by network or user, and of calls by owner; addresses of peers. Pure.

A TLS handshake costs the server more than the client, and a refused call costs the server as much as the client.
"""

from collections.abc import Iterable
from ipaddress import IPv6Network, ip_address

from milo_kube.rate_limit import KeyedBuckets, Rate, TokenBucket

CONNECT_RATE = Rate(per_second=50.0, burst=500.0)
LOCAL_CONNECT_RATE = Rate(per_second=200.0, burst=500.0)
"""The rate limit without handshakes. After a restart, all clients of a machine connect at once, often as one user."""
FAILURE_COST = 10.0
"""The number of tokens that a failed connection costs. Connections of well-behaved clients rarely fail."""
MAX_ORIGINS = 1_000
REFUSED_CALL_RATE = Rate(per_second=50.0, burst=500.0)
"""The rate limit for refused calls: far above the rate of clients that back off before they retry."""
CANCELED_CALL_COST = 0.25
"""The number of tokens that a canceled call costs. gRPC queues the calls of all clients together, with those that were
canceled before their turn: a client that cancels ten thousands a second would lock out all others."""
CALL_RATE = Rate(per_second=1000.0, burst=500.0)
"""The rate limit for calls, whatever becomes of them: less than an idle daemon can serve. From 1000 calls on in the
queue of gRPC, which all clients share, gRPC cancels new ones of any client at random."""
MAX_DEBT = 500.0
"""The maximum debt, which limits the pause to ten seconds: a client that was fixed is soon served again."""
MAX_OWNERS = 10_000
EXCESS = "too many calls were refused or canceled"


class ConnectRateLimiter:
    """The rate limit for new connections of each origin: a network, or a user of this machine."""

    def __init__(self, rate: Rate, *, failure_cost: float = FAILURE_COST) -> None:
        self._rate = rate
        self._failure_cost = failure_cost
        self._buckets: KeyedBuckets[str] = KeyedBuckets(MAX_ORIGINS)

    def admit(self, origin: str, now: float) -> bool:
        return self._buckets.bucket(origin, self._rate, now).take(now) == 0

    def failed(self, origin: str, now: float) -> None:
        """Charge the origin for a connection that was admitted and then failed."""
        # The debt is limited, so that a client that was fixed is soon admitted again.
        bucket = self._buckets.bucket(origin, self._rate, now)
        bucket.charge(now, self._failure_cost - 1, max_debt=self._rate.burst)


class PausedError(Exception):
    """A connection is refused because too many calls of its owner were refused or canceled."""


class RefusedCallLimiter:
    """The rate limit for refused calls, and for those that clients cancel."""

    def __init__(self) -> None:
        self._buckets: KeyedBuckets[str] = KeyedBuckets(MAX_OWNERS)

    def charge(self, owners: Iterable[str], now: float, cost: float = 1.0) -> float:
        """Count a refused call, and return the seconds for which its owners must pause; 0 if the rate limit is not
        exceeded."""
        return max(bucket.charge(now, cost, max_debt=MAX_DEBT) for bucket in self._buckets_of(owners, now))

    def admit(self, owners: Iterable[str], now: float) -> None:
        """Admit a new connection. Raises PausedError if one of its owners must still pause."""
        if pause_s := max(bucket.wait_s(now, 0) for bucket in self._buckets_of(owners, now)):
            raise PausedError(f"{EXCESS}; connect again in {pause_s:.1f} s")

    def _buckets_of(self, owners: Iterable[str], now: float) -> list[TokenBucket]:
        return [self._buckets.bucket(owner, REFUSED_CALL_RATE, now) for owner in owners]


class CallRateLimiter:
    """The rate limit for calls of each owner."""

    def __init__(self) -> None:
        self._buckets: KeyedBuckets[str] = KeyedBuckets(MAX_OWNERS)

    def take(self, owners: Iterable[str], cost: float, now: float) -> float:
        """Count what was read together, which costs as much as so many calls, and return 0; or the seconds until it may
        be served, uncounted."""
        buckets = [self._buckets.bucket(owner, CALL_RATE, now) for owner in owners]
        if wait_s := max(bucket.wait_s(now, 0) for bucket in buckets):
            return wait_s
        for bucket in buckets:
            bucket.charge(now, cost)
        return 0.0


def peer_address(address: object) -> str:
    """Format a socket address as gRPC does. The client end of a Unix socket has no address."""
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
    address = ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return f"ipv4:{mapped}" if mapped else str(IPv6Network((int(address), 64), strict=False))
