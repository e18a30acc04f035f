"""Limits of the objects that wait to be reconciled."""

from milo_controllers.waiting_limits import WaitingLimits
from milo_kube.cache_budget import CacheLimits


def test_objects_of_one_cluster_are_limited_and_those_that_others_name_more_so() -> None:
    limits = WaitingLimits(CacheLimits(objects=10))
    assert [limits.exceeded(waiting, is_own=True) for waiting in (0, 20)] == ["", ""]
    assert limits.exceeded(21, is_own=True) == "20 objects of the cluster (twice CacheLimits.objects)"
    assert limits.exceeded(10, is_own=False) == ""
    assert limits.exceeded(11, is_own=False) == "10 objects of the cluster (CacheLimits.objects)"


def test_objects_of_all_clusters_are_counted_at_times_and_limited_by_their_memory() -> None:
    limits = WaitingLimits(CacheLimits(total_bytes=1 << 20))
    due = [limits.is_count_due() for _ in range(2018)]
    assert [number for number, is_due in enumerate(due, 1) if is_due] == [1009, 2018]
    assert limits.exceeded_by_all(1024) == ""
    assert limits.exceeded_by_all(1025) == "1024 objects of all clusters (CacheLimits.total_bytes)"


def test_objects_that_wait_on_take_half_of_the_memory_of_all_at_most() -> None:
    assert WaitingLimits(CacheLimits(objects=10)).kept(1) == 10
    assert WaitingLimits(CacheLimits(total_bytes=1 << 20)).kept(4) == 128
