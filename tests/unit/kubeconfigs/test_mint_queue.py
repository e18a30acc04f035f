"""The queue of leases to mint for: clusters that fail or hang do not delay others."""

import sys
import weakref
from collections.abc import Iterator
from math import inf
from types import FrameType
from typing import Any

import pytest
from msgspec.structs import replace

from milo_discoveryd.kubeconfigs import mint_queue
from milo_discoveryd.kubeconfigs.mint_queue import MintQueue
from milo_discoveryd.model.cluster import Cluster, DeclaredTarget
from tests.unit.kubeconfigs.backend import a_cluster


class Entry:
    def __init__(self, cluster: Cluster | None) -> None:
        self.cluster = cluster

    @property
    def name(self) -> str:
        return "all" if self.cluster is None else self.cluster.target.name


def entry(number: int, organization: str = "", *, source: str = "") -> Entry:
    cluster = a_cluster(f"p{number}", number)
    return Entry(replace(cluster, target=replace(cluster.target, organization=organization, source=source)))


def first(queue: MintQueue[Entry], *entries: Entry, caller: str = "") -> None:
    for queued in entries:
        queue.add(queued, ends_at=-inf, failures=0, caller=caller)


def taken(queue: MintQueue[Entry], now: float = -inf) -> list[str]:
    """Take each lease that may be minted now, and return the names of their clusters."""
    found = []
    while (each := queue.next_to_mint(now)) is not None:
        found.append(each.name)
    return found


def test_credential_queue_takes_leases_without_a_credential_first_then_by_expiry() -> None:
    queue = MintQueue[Entry](10)
    queue.add(entry(1), ends_at=20.0, failures=0)
    queue.add(entry(2), ends_at=10.0, failures=0)
    first(queue, entry(3), entry(4))
    assert taken(queue) == ["p3", "p4", "p2", "p1"]


def test_renewals_of_what_expires_soon_precede_first_credentials_in_three_quarters_of_the_slots() -> None:
    """A caller that wants very many lifetimes delayed renewals until the credentials had expired."""
    queue = MintQueue[Entry](4)
    for number in range(1, 10):
        queue.add(entry(number), ends_at=1290.0 + number, failures=0)
    queue.add(entry(10), ends_at=1301.0, failures=0)
    first(queue, entry(11), entry(12))
    assert taken(queue, now=1000.0) == ["p1", "p2", "p3", "p11"]
    for number in (1, 2, 3, 11):
        queue.done(entry(number))
    assert [*in_order(queue, now=1000.0)] == ["p4", "p5", "p6", "p7", "p8", "p9", "p12", "p10"]


def in_order(queue: MintQueue[Entry], now: float = -inf) -> Iterator[str]:
    """Take all leases, one after the other, and yield the names of their clusters."""
    while (each := queue.next_to_mint(now)) is not None:
        yield each.name
        queue.done(each)


def test_caller_that_wants_very_many_credentials_delays_those_of_no_other_caller() -> None:
    queue = MintQueue[Entry](1)
    first(queue, *map(entry, range(1, 50)), caller="mallory")
    order = in_order(queue)
    assert [next(order) for _ in range(10)] == [f"p{number}" for number in range(1, 11)]
    first(queue, entry(50), entry(51), caller="alice")
    assert [next(order) for _ in range(4)] == ["p50", "p11", "p51", "p12"]
    assert [*order] == [f"p{number}" for number in range(13, 50)]


def test_credential_that_another_caller_wants_moves_forward_in_the_queue() -> None:
    queue = MintQueue[Entry](1)
    entries = [*map(entry, range(1, 50))]
    first(queue, *entries, caller="mallory")
    for caller in ("mallory", "alice", "alice"):
        queue.advance(entries[-1], ends_at=-inf, failures=0, caller=caller)
    queue.advance(entry(60), ends_at=-inf, failures=0, caller="alice")
    assert [*in_order(queue)] == ["p1", "p49", *(f"p{number}" for number in range(2, 49))]


def test_lease_whose_credential_expired_while_it_was_queued_moves_forward_in_the_queue() -> None:
    queue = MintQueue[Entry](1)
    expiring = entry(3)
    queue.add(entry(1), ends_at=10.0, failures=0)
    queue.add(expiring, ends_at=20.0, failures=0)
    queue.advance(expiring, ends_at=20.0, failures=0, caller="alice")
    queue.advance(expiring, ends_at=-inf, failures=0, caller="alice")
    assert [*in_order(queue)] == ["p3", "p1"]


def test_retries_use_at_most_a_quarter_of_the_credential_queue_slots() -> None:
    queue = MintQueue[Entry](8)
    for number in range(1, 20):
        queue.add(entry(number), ends_at=-inf, failures=1)
    assert len(taken(queue)) == 2
    first(queue, *(entry(number) for number in range(20, 40)))
    assert len(taken(queue)) == 4, "retries leave slots for first credentials"
    for number in range(40, 50):
        queue.add(entry(number), ends_at=5.0, failures=0)
    assert len(taken(queue)) == 2, "first credentials and retries leave slots for renewals"


def test_organization_takes_at_most_half_of_the_credential_queue_slots_that_other_organizations_leave_free() -> None:
    queue = MintQueue[Entry](10)
    first(
        queue, *(entry(number, "shop") for number in range(1, 20)), *(entry(number, "bank") for number in range(20, 40))
    )
    assert taken(queue) == ["p1", "p20", "p2", "p21", "p3", "p22"]
    first(queue, entry(40, "farm"))
    assert taken(queue) == ["p40"]
    first(queue, entry(41, "mill"))
    assert taken(queue) == ["p41"], "first credentials use at most eight of ten slots"


def test_source_takes_no_slots_of_another_source_whose_organizations_it_names() -> None:
    queue = MintQueue[Entry](10)
    queue.add(entry(1, "shop", source="honest"), ends_at=1.0, failures=0)
    assert taken(queue) == ["p1"]
    first(queue, *(entry(number, "shop", source="hostile") for number in range(2, 20)))
    first(queue, *(entry(number, f"o{number}", source="hostile") for number in range(20, 40)))
    assert len(taken(queue)) == 4
    first(queue, *(entry(number, "shop", source="honest") for number in range(40, 43)))
    assert taken(queue) == ["p40", "p41"]


def test_only_source_takes_all_slots() -> None:
    queue = MintQueue[Entry](10)
    for number in range(1, 20):
        queue.add(entry(number, source="named"), ends_at=1.0, failures=0)
    assert len(taken(queue)) == 10


def test_source_whose_backend_is_down_takes_one_slot() -> None:
    down = {"a"}
    queue = MintQueue[Entry](10, down.__contains__)
    waiting = [entry(number, f"o{number}", source="a") for number in range(1, 5)]
    first(queue, *waiting, entry(5, source="b"), entry(6, source="b"))
    assert taken(queue) == ["p1", "p5", "p6"]
    queue.done(waiting[0])
    assert taken(queue) == ["p2"]
    down.clear()
    assert taken(queue) == ["p3", "p4"]


def of_two_callers(queue: MintQueue[Entry], *entries: Entry) -> None:
    for caller, added in zip(("one", "other"), entries, strict=True):
        queue.add(added, ends_at=-inf, failures=0, caller=caller)


def test_organizations_whose_last_mint_failed_wait_for_those_whose_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """One owner of 20 namespaces whose objects hang delayed each first credential of others by minutes. Only within a
    round: otherwise a caller that asks for very many others would delay one that failed once by minutes."""
    monkeypatch.setattr(mint_queue, "_MOST_FAILING", 1)
    queue = MintQueue[Entry](1)

    def fails(failing: Entry) -> None:
        first(queue, failing)
        assert queue.next_to_mint() is failing
        queue.done(failing, has_failed=True)

    fails(entry(1, "hangs"))
    of_two_callers(queue, entry(2, "hangs"), entry(3, "calm"))
    assert [*in_order(queue)] == ["p3", "p2"]
    of_two_callers(queue, entry(4, "hangs"), entry(5, "calm"))
    assert [*in_order(queue)] == ["p4", "p5"], "it has recovered"
    fails(entry(6, "hangs"))
    queue.add(entry(7, "calm"), ends_at=2.0, failures=0)
    queue.add(entry(8, "hangs"), ends_at=1.0, failures=0)
    assert [*in_order(queue)] == ["p8", "p7"], "no renewal waits for one that has more time"
    fails(entry(9, "hangs"))
    fails(entry(10, "fails"))
    of_two_callers(queue, entry(11, "fails"), entry(12, "hangs"))
    assert [*in_order(queue)] == ["p12", "p11"], "only the latest are remembered"


def test_organization_that_failed_waits_for_no_later_round() -> None:
    queue, failed = MintQueue[Entry](1), entry(1, "failed")
    first(queue, failed)
    assert queue.next_to_mint() is failed
    queue.done(failed, has_failed=True)
    first(queue, *(entry(number, f"o{number}") for number in range(2, 9)), caller="of many")
    first(queue, entry(9, "failed"), caller="of one")
    assert [*in_order(queue)][1] == "p9"


def test_slow_mints_leave_their_slots_to_others_as_far_as_there_is_room() -> None:
    down = set[str]()
    queue = MintQueue[Entry](4, down.__contains__, most_slow=3)
    hanging = [entry(number, f"o{number}") for number in range(1, 8)]
    first(queue, *hanging)
    assert taken(queue) == ["p1", "p2", "p3"]
    queue.leave_slot(hanging[0])
    queue.leave_slot(hanging[0])
    assert taken(queue) == ["p4"]
    down.add("")
    queue.leave_slot(hanging[1])
    down.clear()
    assert taken(queue) == [], "a source whose backend is down has one mint at a time"
    for slow in hanging[1:4]:
        queue.leave_slot(slow)
    assert taken(queue) == ["p5", "p6"], "there are as many slow ones as there may be"
    queue.done(hanging[0])
    assert taken(queue) == [], "it had left its slot"
    queue.leave_slot(hanging[3])
    assert taken(queue) == ["p7"]
    assert not queue


def test_retries_of_organizations_whose_last_mint_was_slow_leave_a_slot_to_others() -> None:
    queue = MintQueue[Entry](12)
    hanging = [entry(number, f"o{number}") for number in range(1, 7)]
    first(queue, *hanging)
    assert len(taken(queue)) == 6
    for failing in hanging:
        queue.done(failing, has_failed=True, is_slow=failing is not hanging[-1])
        queue.add(failing, ends_at=-inf, failures=1)
    assert taken(queue) == ["p1", "p2", "p6"]
    queue.done(hanging[0], has_failed=True)
    assert taken(queue) == ["p3"]


def test_organization_with_slow_mints_begins_no_more_than_its_share() -> None:
    queue = MintQueue[Entry](4, most_slow=20)
    hanging = [entry(number, "hangs") for number in range(1, 20)]
    first(queue, *hanging)
    for _ in range(10):
        for _ in taken(queue):
            queue.leave_slot(hanging.pop(0))
    assert 19 - len(hanging) == 3
    first(queue, entry(30, "other"))
    assert taken(queue) == ["p30"]


def test_retry_that_is_slow_keeps_its_slot() -> None:
    queue = MintQueue[Entry](4, most_slow=20)
    hanging = entry(1)
    queue.add(hanging, ends_at=-inf, failures=1)
    queue.add(entry(2), ends_at=-inf, failures=1)
    assert taken(queue) == ["p1"]
    queue.leave_slot(hanging)
    assert taken(queue) == []


def test_clusters_of_one_namespace_take_at_most_half_of_the_slots_that_others_leave_free() -> None:
    def declared(number: int, namespace: str) -> Entry:
        target = DeclaredTarget(
            name=f"p{number}",
            uid=f"u{number}",
            place=("https://p.test",),
            organization="acme",
            object_namespace=namespace,
            object_name=f"p{number}",
        )
        return Entry(replace(a_cluster("p", number), target=target))

    queue = MintQueue[Entry](10)
    first(queue, *(declared(number, "hangs") for number in range(1, 50)))
    hanging = taken(queue)
    first(queue, declared(50, "other"))
    assert (len(hanging), taken(queue)) == (4, ["p50"])


def test_credential_queue_takes_the_organization_with_the_fewest_slots_next() -> None:
    queue = MintQueue[Entry](4)
    shop = [entry(number, "shop") for number in range(1, 20)]
    first(queue, *shop)
    assert taken(queue) == ["p1", "p2"]
    first(queue, entry(20, "bank"))
    queue.done(shop[0])
    assert taken(queue)[0] == "p20"


def test_credential_queue_limits_cluster_to_one_request_in_flight() -> None:
    queue = MintQueue[Entry](8)
    one, again, other = entry(1), entry(1), entry(2)
    first(queue, one, again, other)
    assert taken(queue) == ["p1", "p2"]
    queue.done(one)
    assert queue.next_to_mint() is again


def test_credential_queue_slot_is_reused_when_its_request_is_done() -> None:
    queue = MintQueue[Entry](4)
    entries = [entry(number, "shop") for number in range(1, 5)]
    first(queue, *entries)
    assert taken(queue) == ["p1", "p2"]
    queue.done(entries[0])
    assert taken(queue) == ["p3"]
    for queued in entries[1:3]:
        queue.done(queued)
    assert taken(queue) == ["p4"]


def test_credential_queue_frees_slot_of_cluster_whose_organization_changed_while_in_flight() -> None:
    queue = MintQueue[Entry](1)
    moved = entry(1, "shop")
    first(queue, moved)
    assert taken(queue) == ["p1"]
    moved.cluster = entry(1, "farm").cluster
    queue.done(moved)
    first(queue, entry(2, "shop"))
    assert taken(queue) == ["p2"]


def test_credential_queue_frees_slot_of_cluster_whose_organization_changed_while_queued() -> None:
    queue = MintQueue[Entry](1)
    moved = entry(1, "shop")
    first(queue, moved)
    moved.cluster = entry(1, "farm").cluster
    assert taken(queue) == ["p1"]
    queue.done(moved)
    first(queue, entry(2, "shop"))
    assert taken(queue) == ["p2"]


@pytest.mark.parametrize("failures", [0, 3])
def test_credential_queue_with_one_slot_serves_retries_and_renewals(failures: int) -> None:
    queue = MintQueue[Entry](1)
    shared = Entry(None)
    queue.add(shared, ends_at=-inf, failures=failures)
    assert taken(queue) == ["all"]
    queue.done(shared)
    queue.add(shared, ends_at=7.0, failures=0)
    assert taken(queue) == ["all"]


def test_next_lease_is_found_in_the_same_time_among_any_number_of_tenants() -> None:
    """Each mint went through all tenants that waited: 100,000 of them took 0.2 s, in which nothing else ran."""

    def instructions(tenants: int) -> int:
        queue, counted = MintQueue[Entry](10), 0
        first(queue, *(entry(number, f"tenant-{number}") for number in range(1, tenants)))
        queue.done(queue.next_to_mint() or entry(1))

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal counted
            frame.f_trace_opcodes = True
            counted += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            taken(queue)
        finally:
            sys.settrace(before)
        return counted

    assert instructions(500) <= instructions(50)


def test_lease_that_was_removed_from_credential_queue_is_not_minted_for_and_not_kept() -> None:
    queue, kept = MintQueue[Entry](10), [entry(number) for number in range(5)]
    first(queue, *kept)
    queue.advance(kept[1], ends_at=-inf, failures=0, caller="another")
    for each in kept[:2]:
        queue.remove(each)
        queue.remove(each)
    for number in range(10_000):
        removed = entry(number + 10, "flapping")
        first(queue, removed)
        queue.remove(removed)
    former = weakref.WeakSet(kept)
    del each, kept, removed
    assert sum(map(len, heaps(queue))) < 200
    assert taken(queue) == ["p2", "p3", "p4"]
    del queue
    assert not former


def heaps(queue: MintQueue[Entry]) -> Iterator[list[Any]]:
    waiting = (mints for by_kind in queue._waiting.values() for mints in by_kind.values())
    return (heap for mints in waiting for heap in mints.by_tenant.values())
