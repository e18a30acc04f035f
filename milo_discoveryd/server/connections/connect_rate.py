"""Rate limit for new connections, by network: a TLS handshake costs the server more than the client. Pure."""

from milo_kube.rate_limit import KeyedBuckets, Rate

RATE = Rate(per_second=50.0, burst=500.0)
FAILURE_COST = 10.0
"""The number of tokens that a failed connection costs. Connections of well-behaved clients rarely fail."""
MAX_NETWORKS = 1_000


class ConnectRateLimiter:
    def __init__(self, rate: Rate = RATE, *, failure_cost: float = FAILURE_COST) -> None:
        self._rate = rate
        self._failure_cost = failure_cost
        self._buckets: KeyedBuckets[str] = KeyedBuckets(MAX_NETWORKS)

    def admit(self, network: str, now: float) -> bool:
        return self._buckets.bucket(network, self._rate, now).take(now) == 0

    def failed(self, network: str, now: float) -> None:
        """Charge for a connection that was admitted and failed."""
        # The debt is limited, so that a client that was fixed is soon admitted again.
        bucket = self._buckets.bucket(network, self._rate, now)
        bucket.charge(now, self._failure_cost - 1, max_debt=self._rate.burst)
