"""Metrics of a daemon in a shard group."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class MeasuredShard(Protocol):
    @property
    def members(self) -> int:
        """The number of members among which the clusters are distributed."""

    def valid_s(self) -> float | None: ...

    def unsettled_s(self) -> float: ...

    @property
    def problems(self) -> int:
        """The number of problems that this daemon sees in the group."""

    def unowned(self) -> int:
        """Return the number of ready clusters that are assigned to this daemon and not engaged."""


class Unsharded:
    """The state of a daemon that is not in a shard group."""

    members = 0
    problems = 0

    def valid_s(self) -> None:
        return None

    def unsettled_s(self) -> float:
        return 0.0

    def unowned(self) -> int:
        return 0


class ShardCollector(Collector):
    def __init__(self, shard: MeasuredShard) -> None:
        self._shard = shard

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "milo_discoveryd_shard_members",
            "Members of the shard group among which the clusters are distributed, as this daemon sees them.",
            value=self._shard.members,
        )
        yield GaugeMetricFamily(
            "milo_discoveryd_shard_ownership_held",
            "1 while this daemon's Lease is renewed, so that it may engage the clusters that it owns.",
            value=self._shard.valid_s() is not None,
        )
        yield GaugeMetricFamily(
            "milo_discoveryd_shard_view_unsettled_seconds",
            "How long the shard group has been changing its view, or waiting for its members to acknowledge it; 0 if"
            " the view is settled.",
            value=self._shard.unsettled_s(),
        )
        yield GaugeMetricFamily(
            "milo_discoveryd_shard_problems",
            "Problems that this daemon sees in its shard group: Leases that cannot be read or written or that other"
            " programs changed; a member name that two processes use; members with different sources or selectors.",
            value=self._shard.problems,
        )
        yield GaugeMetricFamily(
            "milo_discoveryd_shard_unowned_clusters",
            "Ready clusters that are assigned to this daemon and not engaged, such as those that their former owner has"
            " not released.",
            value=self._shard.unowned(),
        )
