"""Reads of large containers in attributes of any name are counted, in Python and in C."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation.cost.elements import CountedDict, CountedList, count_reads

SIZE = 1000


class Holder:
    __module__ = "milo_discoveryd.example"
    __slots__ = ("_append", "_by_name", "_frozen", "_in_order", "_small")

    def __init__(self) -> None:
        self._in_order = [*range(SIZE)]
        self._append = self._in_order.append
        self._by_name = {str(number): number for number in range(SIZE)}
        self._frozen = (*range(SIZE),)
        self._small = [1]


@pytest.mark.parametrize(
    "scan",
    [
        sum,
        sorted,
        list,
        tuple,
        max,
        set,
        lambda found: [*found],
        lambda found: [*map(str, found)],
        lambda found: [*zip(found, range(SIZE), strict=True)],
        lambda found: found[:],
        lambda found: found.copy(),
        lambda found: -1 in found,
        lambda found: found + [1],  # noqa: RUF005
        lambda found: found == found[:0],
        lambda found: [*reversed(found)],
    ],
)
def test_scan_of_large_list_is_counted(scan: Callable[[Any], object]) -> None:
    holder = Holder()
    reads = count_reads(SIZE, stack_above=SIZE * 10)
    scan(holder._in_order)
    assert SIZE <= reads.count <= SIZE + 1


@pytest.mark.parametrize(
    "scan",
    [
        list,
        dict,
        lambda found: {**found},
        lambda found: found.copy(),
        lambda found: [*found.keys()],
        lambda found: sum(found.values()),
        lambda found: sorted(found.items()),
        lambda found: found | {},
        lambda found: found.keys() - {"1"},
    ],
)
def test_scan_of_large_dict_is_counted(scan: Callable[[Any], object]) -> None:
    holder = Holder()
    reads = count_reads(SIZE, stack_above=SIZE * 10)
    scan(holder._by_name)
    assert SIZE <= reads.count <= SIZE + 1


@pytest.mark.parametrize(
    "scan",
    [
        sum,
        list,
        set,
        lambda found: [*found],
        lambda found: [number for number in found],  # noqa: C416
        lambda found: found[:],
        lambda found: -1 in found,
        lambda found: (*found, 1),
    ],
)
def test_scan_of_large_tuple_is_counted(scan: Callable[[Any], object]) -> None:
    holder = Holder()
    reads = count_reads(SIZE, stack_above=SIZE * 10)
    scan(holder._frozen)
    assert SIZE <= reads.count <= SIZE + 1


def test_binary_search_and_dict_lookup_read_few_elements() -> None:
    holder = Holder()
    reads = count_reads(SIZE, stack_above=SIZE)
    assert bisect_right(holder._in_order, 500) == 501
    assert holder._by_name["500"] == holder._by_name.get("500") == 500
    assert "500" in holder._by_name
    assert len(holder._by_name.values()) == SIZE
    assert reads.count <= 11


def test_counted_container_behaves_like_the_builtin_container_that_it_replaces() -> None:
    holder = Holder()
    count_reads(SIZE, stack_above=SIZE)
    holder._append(SIZE)
    assert (type(holder._in_order), type(holder._by_name), type(holder._small)) == (CountedList, CountedDict, list)
    assert holder._in_order == [*range(SIZE + 1)]
    del holder._in_order[:SIZE]
    holder._by_name.clear()
    assert (holder._in_order, holder._by_name) == ([SIZE], {})


def test_stack_shows_the_scan_that_exceeded_the_limit_of_reads() -> None:
    holder = Holder()
    reads = count_reads(SIZE, stack_above=SIZE // 2)
    assert reads.stack == ""
    assert sum(holder._in_order)
    assert "sum(holder._in_order)" in reads.stack
