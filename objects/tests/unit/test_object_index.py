"""Indexes find keys by the values that a function returned."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from milo_objects.object_index import ObjectIndex


def index(**values: Any) -> ObjectIndex[str]:
    made: ObjectIndex[str] = ObjectIndex("color", lambda given: given)
    for key, returned in values.items():
        made.put(key, returned)
    return made


def test_index_finds_each_key_under_each_of_its_values() -> None:
    found = index(a=["red"], b=["red", "blue", "red"], c=["red"], d=[])

    assert [*found.keys("red")] == ["a", "b", "c"]
    assert [*found.keys("blue")] == ["b"]
    assert [*found.keys("green")] == []


def test_values_of_a_key_are_counted_and_a_cleared_index_has_none() -> None:
    found = index(a=["red", "blue", "red"])
    assert (found.count("a"), found.count("b")) == (2, 0)
    found.clear()
    assert ([*found.keys("red")], found.count("a")) == ([], 0)


def test_removed_and_changed_keys_are_no_longer_found() -> None:
    found = index(a=["red"], b=["red", "blue"], c=["blue"])
    found.put("b", ["blue"])
    found.remove("a")
    found.remove("a")
    found.remove("unknown")
    assert [*found.keys("red")] == []
    assert [*found.keys("blue")] == ["c", "b"]

    for key in ("b", "c"):
        found.remove(key)
    assert [*found.keys("blue")] == []


@pytest.mark.parametrize(
    ("returned", "remedy"),
    [
        ("red", "the function returned the string 'red'; return a list: ['red']"),
        (b"red", "the function returned the bytes b'red'; return a list: [b'red']"),
        ({"red": 1}, "the function returned the dict {'red': 1}; return a list: ['red']"),
    ],
)
def test_key_for_which_the_function_returns_no_list_is_reported_with_the_remedy_and_missing(
    returned: Any, remedy: str
) -> None:
    failures: list[str] = []
    found: ObjectIndex[str] = ObjectIndex(
        "color", lambda given: given, lambda *failure: failures.append(str(failure[2]))
    )
    found.put("a", returned)
    found.put("b", ["red"])
    assert [*found.keys("red")] == ["b"]
    assert failures == [remedy]
    found.put("a", ["red"])
    assert [*found.keys("red")] == ["b", "a"]
    found.put("a", returned)
    assert [*found.keys("red")] == ["b"]


def test_key_for_which_the_function_raises_is_reported_and_missing() -> None:
    failures: list[tuple[str, str, str]] = []
    found: ObjectIndex[str] = ObjectIndex(
        "size", lambda given: [given["size"]], lambda *failure: failures.append((*failure[:2], repr(failure[2])))
    )
    found.put("a", {"size": 1})
    found.put("a", {})
    found.put("b", {"size": []})

    assert [*found.keys(1)] == []
    assert failures == [("size", "a", "KeyError('size')"), ("size", "b", "TypeError(\"unhashable type: 'list'\")")]


@pytest.mark.parametrize("raised", [SystemExit, asyncio.CancelledError])
def test_generator_that_raises_no_exception_is_reported_as_other_functions_are(raised: type[BaseException]) -> None:
    """Found by a reader: it ended the process, or the informer without a sign."""
    failures: list[str] = []

    def sizes(given: Any) -> Iterator[int]:
        yield 1
        if given == "bad":
            raise raised(2)

    found: ObjectIndex[str] = ObjectIndex("size", sizes, lambda *failure: failures.append(repr(failure[2])))
    found.put("a", "bad")
    found.put("b", "good")
    assert [*found.keys(1)] == ["b"]
    assert failures == [f"RuntimeError('{raised.__name__}: 2')"]
