"""Removals by tenant: which of them count for another one."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.model.tenant_counts import TenantCounts, in_turns

TENANTS = "abc"


@given(st.lists(st.tuples(st.sampled_from(TENANTS), st.booleans())))
def test_all_count_but_those_of_another_tenant_that_has_the_most(changes: list[tuple[str, bool]]) -> None:
    counts, expected = TenantCounts(), Counter[str]()
    for tenant, is_added in changes:
        if is_added:
            counts.add(tenant)
            expected[tenant] += 1
        elif expected[tenant]:
            counts.remove(tenant)
            expected[tenant] -= 1
        most = max(expected.values(), default=0)
        assert counts.total == expected.total()
        for each in TENANTS:
            others = 0 if expected[each] == most else most
            assert counts.counted_for(each) == counts.total - others
            other = counts.not_counted_for(each)
            assert others == (0 if other is None else expected[other])
            assert other != each


def test_tenants_take_turns() -> None:
    assert in_turns(["a1", "a2", "a3", "b1", "c1", "c2"], lambda removal: removal[0]) == [
        *("a1", "b1", "c1"),
        *("a2", "c2"),
        "a3",
    ]
