"""The objects that clusters have named in others."""

from milo_controllers.named_objects import NamedObjects
from milo_controllers.work_queue import ObjectKey

GREEDY, MODEST, HUB = ("greedy", 1), ("modest", 1), ("hub", 1)


def key(name: str) -> ObjectKey:
    return ObjectKey("hub", 1, "default", name)


def test_object_counts_once_for_each_cluster_that_has_named_it() -> None:
    waiting: set[ObjectKey] = set()
    named = NamedObjects(waiting.__contains__)
    for by, name in ((GREEDY, "a"), (GREEDY, "a"), (GREEDY, "b"), (MODEST, "a")):
        named.add(by, key(name))
        waiting.add(key(name))
    assert (named.by(GREEDY), named.by(MODEST), named.within(HUB)) == (2, 1, 2)
    assert named.take(GREEDY) == {key("b")}
    assert named.take(GREEDY) == frozenset()
    assert (named.by(GREEDY), named.exact(MODEST), named.within(HUB)) == (0, 1, 1)
    assert named.take(MODEST) == {key("a")}
    assert named.within(HUB) == 0


def test_object_that_waits_for_another_reason_counts_for_no_cluster_that_names_it() -> None:
    waiting = {key("before")}
    named = NamedObjects(waiting.__contains__)
    for name in ("before", "after"):
        named.add(GREEDY, key(name))
        waiting.add(key(name))
    assert (named.by(GREEDY), named.within(HUB)) == (1, 1)
    named.waits_anyway(key("after"))
    named.add(MODEST, key("after"))
    assert (named.take(GREEDY), named.take(MODEST), named.within(HUB)) == (frozenset(), frozenset(), 0)


def test_objects_that_do_not_wait_any_longer_are_forgotten() -> None:
    waiting: set[ObjectKey] = set()
    named = NamedObjects(waiting.__contains__)
    for number in range(1000):
        named.add(GREEDY, key(f"{number}"))
        assert named.by(GREEDY) <= 64
    assert named.exact(GREEDY) == 0
    assert named.within(HUB) == 0
    for number in range(1000):
        named.add(GREEDY, key(f"{number}"))
        waiting.add(key(f"{number}"))
    assert named.exact(GREEDY) == named.within(HUB) == 1000
