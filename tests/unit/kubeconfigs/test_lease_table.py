"""The memory of leases, of which there is one for each cluster, and the tasks that wait for them."""

import asyncio
import tracemalloc

from milo_discoveryd.kubeconfigs.lease_table import LeaseEntry, LeaseKey, LeaseTable
from tests.unit.fleet.fleets import cluster

LEASES = 1000
LEASE_BYTES = 1024


def key(number: int) -> LeaseKey:
    return LeaseKey("issuer", number, 600.0)


async def test_lease_that_no_task_waits_for_takes_less_than_1_kib() -> None:
    clusters = [cluster(str(number), incarnation=number) for number in range(LEASES)]
    keys, table = [key(number) for number in range(LEASES)], LeaseTable(lambda: 0.5, lambda _: None)
    tracemalloc.start()
    try:
        for number in range(LEASES):
            table.begin(keys[number], clusters[number]).wake()
        assert tracemalloc.get_traced_memory()[0] / LEASES < LEASE_BYTES
    finally:
        tracemalloc.stop()


async def test_all_tasks_that_wait_for_an_attempt_are_woken_once_it_ends() -> None:
    entry: LeaseEntry = LeaseTable(lambda: 0.5, lambda _: None).begin(key(1), cluster("a"))
    waiting = [asyncio.ensure_future(entry.attempt_ended()) for _ in range(2)]
    await asyncio.sleep(0)
    entry.wake()
    await asyncio.gather(*waiting)
    later = asyncio.ensure_future(entry.attempt_ended())
    await asyncio.sleep(0)
    assert not later.done()
    entry.drop()
    await later


def test_lease_of_an_ended_cluster_keeps_nothing_of_the_content_of_its_object() -> None:
    discarded: list[LeaseEntry] = []
    table, ended = LeaseTable(lambda: 0.5, discarded.append), cluster("a", labels={"large": "x" * 63})
    entry = table.begin(key(ended.incarnation), ended)
    table.drop(ended)
    assert discarded == [entry]
    assert entry.cluster is not None
    assert (entry.name, entry.cluster.incarnation, entry.cluster.target.labels) == ("a", ended.incarnation, ())
