"""The time limits of a shard group, the same for all members."""

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    renew_interval_s: float = 10.0
    read_interval_s: float = 12.0
    unsettled_read_interval_s: float = 0.5
    """Interval between reads, and between batches of releases, while a view changes. A cluster that moves may wait for
    both."""
    retry_interval_s: float = 1.0
    longest_retry_s: float = 30.0
    """The longest delay before a retry that a server can request: other members wait for this one."""
    last_renewals_s: float = 4.0
    """The time before the fence that no request of a server takes from the renewals."""
    fence_after_s: float = 20.0
    evict_after_s: float = 33.0
    debounce_s: float = 5.0
    retention_s: float = 3600.0
    """How long the Lease of a member that left the group or was evicted is kept."""

    @property
    def longest_debounce_s(self) -> float:
        """How long a view waits at most while ever more members join."""
        return 3 * self.debounce_s

    @property
    def margin_s(self) -> float:
        """The time between the fence and the eviction, in which the subscribers' handlers must end."""
        return self.evict_after_s - self.fence_after_s


TIMING = Timing()
