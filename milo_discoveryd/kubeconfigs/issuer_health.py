"""The state of a credential issuer, for metrics, the status page and GetServerInfo."""

from collections.abc import Mapping

import msgspec


class IssuerHealth(msgspec.Struct, frozen=True):
    name: str
    type: str
    problem: str
    """Why the last attempt failed, apart from failures of one cluster; empty if it did not."""
    expires_at: float | None
    """Earliest expiry of the credentials held from this issuer; None if none is held."""
    leases: int
    failing: Mapping[str, int] = {}
    """The number of clusters that get no credential of their own, or whose API servers reject it, by reason."""
    sources: frozenset[str] = frozenset()
    """The sources of the issuer's clusters; all if empty."""
