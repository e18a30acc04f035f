"""The objects that clusters have named in others."""

from milo_controllers.named_objects import NamedObjects
from milo_controllers.work_queue import ObjectKey

GREEDY, MODEST, HUB = ("greedy", 1), ("modest", 1), ("hub", 1)


def key(name: str) -> ObjectKey:
    return ObjectKey("hub", 1, "default", name)


def test_object_counts_once_for_the_cluster_that_has_named_it() -> None:
    named = NamedObjects(lambda _: True)
    assert [named.add(GREEDY, key(name)) for name in ("a", "a", "b")] == [1, 1, 2]
    assert named.add(MODEST, key("a")) == 1
    assert (named.by(GREEDY), named.by(MODEST), named.within(HUB)) == (2, 1, 3)
    assert named.take(GREEDY) == {key("b")}
    assert named.take(GREEDY) == frozenset()
    assert (named.by(GREEDY), named.exact(MODEST), named.within(HUB)) == (0, 1, 1)


def test_objects_that_do_not_wait_any_longer_are_forgotten() -> None:
    waiting: set[ObjectKey] = set()
    named = NamedObjects(waiting.__contains__)
    for number in range(1000):
        assert named.add(GREEDY, key(f"{number}")) <= 65
    assert named.exact(GREEDY) == 0
    assert named.within(HUB) == 0
    waiting |= {key(f"{number}") for number in range(1000)}
    for number in range(1000):
        named.add(GREEDY, key(f"{number}"))
    assert named.exact(GREEDY) == named.within(HUB) == 1000


def test_object_that_waits_for_its_own_cluster_counts_for_no_other_one() -> None:
    named = NamedObjects(lambda _: True)
    named.disown(key("own"))
    assert named.add(GREEDY, key("own"), has_waited=True) == 0
    assert [named.add(GREEDY, key(name)) for name in ("a", "b")] == [1, 2]
    assert named.add(MODEST, key("a"), has_waited=True) == 1
    named.disown(key("a"))
    assert (named.by(GREEDY), named.by(MODEST), named.within(HUB)) == (1, 0, 1)
    assert named.take(GREEDY) == {key("b")}
