"""Quotas of streams, kubeconfigs and filter bytes, and the delay of requests for unknown names."""

import pytest

from milo_discoveryd.rights import quota
from milo_discoveryd.rights.quota import (
    DELIVERIES_BYTES,
    FILTER_BYTES,
    FILTER_BYTES_EACH,
    HELD_BYTES,
    MAX_MISS_DELAY_S,
    MISS_BURST,
    QuotaLimits,
    Quotas,
    StreamDenial,
)


def reason(denial: StreamDenial | None) -> str:
    return "" if denial is None else denial.reason


def quotas(streams: int = 3, each: int = 2, per_minute: int = 60) -> Quotas:
    return Quotas(QuotaLimits(streams=streams, streams_each=each, per_minute_each=per_minute))


def test_stream_quota_limits_each_caller() -> None:
    asked = quotas()
    assert [asked.open_stream(["a"], None) for _ in range(2)] == [None, None]
    assert reason(asked.open_stream(["a"], None)) == "TOO_MANY_STREAMS"
    assert asked.open_streams(["a"]) == 2
    assert asked.open_stream(["b"], None) is None


def test_stream_quota_enforces_limit_of_rule() -> None:
    asked = quotas()
    assert asked.open_stream(["a"], 1) is None
    assert asked.open_stream(["a"], 1) is not None


def test_stream_quota_limits_all_callers_together() -> None:
    asked = quotas(streams=2)
    assert (asked.open_stream(["a"], None), asked.open_stream(["b"], None)) == (None, None)
    assert reason(asked.open_stream(["c"], None)) == "TOO_MANY_STREAMS"
    asked.close_stream(["a"])
    assert asked.open_stream(["c"], None) is None


def test_stream_quota_gives_a_caller_at_most_half_of_the_streams_that_other_callers_leave_free() -> None:
    asked, taken = quotas(streams=16, each=16), {}
    for caller in "abcde":
        taken[caller] = 0
        while asked.open_stream([caller], None) is None:
            taken[caller] += 1
    assert taken == {"a": 8, "b": 4, "c": 2, "d": 1, "e": 1}


def test_closed_stream_frees_stream_quota() -> None:
    asked = quotas()
    asked.open_stream(["a"], None)
    asked.open_stream(["a"], None)
    asked.close_stream(["a"])
    assert asked.open_stream(["a"], None) is None
    asked.close_stream(["a"])
    asked.close_stream(["a"])
    assert asked.open_streams(["a"]) == 0


def test_kubeconfig_quota_allows_burst_of_one_minute() -> None:
    asked = quotas(per_minute=2)
    assert [asked.take_kubeconfig(["a"], None, 0.0) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert asked.take_kubeconfig(["a"], None, 15.0) == pytest.approx(15.0)
    assert asked.take_kubeconfig(["a"], None, 30.0) == 0.0
    assert asked.take_kubeconfig(["a"], None, 30.0) == pytest.approx(30.0)


def test_renewals_leave_half_of_the_kubeconfig_quota_to_other_kubeconfigs() -> None:
    asked = quotas(per_minute=60)

    def renewals(now: float) -> int:
        count = 0
        while not asked.take_kubeconfig(["a"], None, now, is_renewal=True):
            count += 1
        return count

    assert renewals(0.0) == 31, "half of the burst, and the first of the other half"
    assert asked.take_kubeconfig(["a"], None, 0.0, is_renewal=True) == pytest.approx(2.0)
    assert sum(renewals(1.0 + second) for second in range(60)) == 60, "the whole rate, while nothing else has it"
    assert [asked.take_kubeconfig(["a"], None, 61.0) for _ in range(29)] == [0.0] * 29


@pytest.mark.parametrize("are_first", [True, False])
def test_renewals_have_half_of_the_kubeconfig_rate_while_calls_exhaust_the_quota(are_first: bool) -> None:
    """Found by a reader: calls that asked more often took each kubeconfig before a renewal did."""
    asked = quotas(per_minute=60)
    renewed = served = 0
    for step in range(2400):
        if step % 2 != are_first:
            while not asked.take_kubeconfig(["a"], None, step // 2 / 10):
                served += 1
        else:
            renewed += not asked.take_kubeconfig(["a"], None, step // 2 / 10, is_renewal=True)
    assert 55 <= renewed <= 61
    assert renewed + served >= 60 + 118


@pytest.mark.parametrize("per_minute", [1, 2, 3])
def test_renewals_of_a_caller_with_a_small_kubeconfig_quota_are_possible(per_minute: int) -> None:
    asked = quotas(per_minute=per_minute)
    assert asked.take_kubeconfig(["a"], None, 0.0, is_renewal=True) == 0.0


def test_unused_kubeconfig_quota_accumulates_for_one_minute_at_most() -> None:
    asked = quotas(per_minute=2)
    asked.take_kubeconfig(["a"], None, 0.0)
    assert [asked.take_kubeconfig(["a"], None, 1000.0) for _ in range(3)] == [0.0, 0.0, 30.0]


def test_kubeconfig_quota_is_per_caller_and_enforces_rate_of_rule() -> None:
    asked = quotas(per_minute=1)
    assert asked.take_kubeconfig(["a"], None, 0.0) == 0.0
    assert asked.take_kubeconfig(["b"], None, 0.0) == 0.0
    assert [asked.take_kubeconfig(["c"], 2, 0.0) for _ in range(3)] == [0.0, 0.0, 30.0]


def test_quota_evicts_least_recently_used_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_KEYS", 2)
    asked = quotas(per_minute=1)
    for name in "abac":
        asked.take_kubeconfig([name], None, 0.0)
    assert asked.take_kubeconfig(["a"], None, 0.0) > 0, "the latest caller is not evicted"
    assert asked.take_kubeconfig(["b"], None, 0.0) == 0.0


def test_rare_requests_for_unknown_names_are_not_delayed() -> None:
    asked = quotas()
    assert [asked.count_miss(["a"], 0.0) for _ in range(MISS_BURST)] == [0.0] * MISS_BURST
    assert all(asked.count_miss(["b"], 0.2 * number) == 0 for number in range(1000))


def test_frequent_requests_for_unknown_names_are_delayed_up_to_a_maximum() -> None:
    asked = quotas()
    waits = [asked.count_miss(["a"], 0.0) for _ in range(MISS_BURST + 1000)]
    assert waits[MISS_BURST : MISS_BURST + 3] == pytest.approx([0.1, 0.2, 0.3])
    assert waits[-1] == MAX_MISS_DELAY_S
    assert asked.count_miss(["a"], 10.0) == 0, "the delay ends after a pause"
    assert asked.count_miss(["b"], 0.0) == 0


def test_quota_is_counted_for_every_key_of_a_caller() -> None:
    asked = quotas(per_minute=1)
    assert asked.open_stream(["dns:a", "dns:b"], 1) is None
    for keys in (["dns:a", "dns:c"], ["dns:c", "dns:a"]):
        assert reason(asked.open_stream(keys, 1)) == "TOO_MANY_STREAMS"
    assert asked.open_stream(["dns:c"], 1) is None
    asked.close_stream(["dns:a", "dns:b"])
    assert asked.open_stream(["dns:a"], 1) is None
    assert asked.take_kubeconfig(["dns:a", "dns:b"], None, 0.0) == 0.0
    assert asked.take_kubeconfig(["dns:b", "dns:c"], None, 0.0) > 0
    assert asked.take_kubeconfig(["dns:c"], None, 0.0) == 0.0, "a denied request costs nothing"


def test_filter_bytes_are_limited_per_caller_and_in_total() -> None:
    asked = quotas(streams=1000, each=1000)
    assert asked.open_stream(["a"], None, FILTER_BYTES_EACH) is None
    assert reason(asked.open_stream(["a"], None, 1)) == "TOO_MANY_FILTER_BYTES"
    assert asked.open_stream(["a"], None) is None, "streams without a filter are not affected"
    others = [asked.open_stream([str(number)], None, FILTER_BYTES_EACH) for number in range(2)]
    assert [reason(other) for other in others] == ["", "TOO_MANY_FILTER_BYTES"]
    asked.close_stream(["a"], FILTER_BYTES_EACH)
    assert asked.open_stream(["b"], None, FILTER_BYTES_EACH) is None


def test_filters_and_deliveries_share_their_memory() -> None:
    asked = quotas(streams=1000, each=1000)
    assert asked.count_deliveries(DELIVERIES_BYTES)
    assert not asked.count_deliveries(1)
    assert asked.count_deliveries(-1)
    left = HELD_BYTES - DELIVERIES_BYTES - FILTER_BYTES_EACH
    assert asked.open_stream(["a"], None, FILTER_BYTES_EACH) is None
    assert reason(asked.open_stream(["b"], None, left + 1)) == "TOO_MANY_FILTER_BYTES"
    assert asked.open_stream(["b"], None, left) is None
    assert asked.held_bytes == HELD_BYTES
    asked.close_stream(["b"], left)
    assert asked.count_deliveries(-DELIVERIES_BYTES)
    assert asked.open_stream(["b"], None, FILTER_BYTES_EACH) is None
    left = FILTER_BYTES - 2 * FILTER_BYTES_EACH
    assert reason(asked.open_stream(["c"], None, left + 1)) == "TOO_MANY_FILTER_BYTES"
    assert asked.open_stream(["c"], None, left) is None
    assert asked.count_deliveries(HELD_BYTES - FILTER_BYTES)
    assert not asked.count_deliveries(1)
