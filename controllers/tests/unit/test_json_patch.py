"""Differences of JSON documents."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_controllers.json_patch import PartialListError, applied, carried_over, patch

LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "ü"])
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b/c", "d~e", ""]), inner),
    max_leaves=12,
)
A, B = {"name": "a", "size": 1}, {"name": "b", "size": 2}
C = {**A, "size": 3}
DOCUMENTS = st.dictionaries(st.sampled_from(["a", "b/c", "d~e"]), JSON)


@given(DOCUMENTS, DOCUMENTS)
def test_patch_turns_one_document_into_the_other(before: Any, after: Any) -> None:
    turned = applied(before, list(patch(before, after)))
    assert (turned, repr(turned).count("True")) == (after, repr(after).count("True"))


@given(DOCUMENTS)
def test_patch_of_equal_documents_is_empty(document: Any) -> None:
    assert list(patch(document, document)) == []


def test_long_name_around_many_fields_costs_little() -> None:
    """A tenant chooses the names, and other reviews wait meanwhile."""
    fields = dict.fromkeys(map(str, range(20_000)), 0)

    def cost_s(name: str) -> float:
        document = {"a": {name: fields}}
        began = time.thread_time()
        assert list(patch(document, document | {"b": 1})) == [{"op": "add", "path": "/b", "value": 1}]
        return time.thread_time() - began

    assert cost_s("n" * 1_000_000) < 10 * cost_s("n")


def test_deeply_nested_list_beside_a_changed_element_costs_little() -> None:
    def cost_s(depth: int) -> float:
        nested: Any = dict.fromkeys(map(str, range(5000)), 0)
        for _ in range(depth):
            nested = [nested]
        began = time.thread_time()
        assert carried_over([{**A, "more": 1}, nested], [A, nested], [C, nested]) == [{**C, "more": 1}, nested]
        return time.thread_time() - began

    assert cost_s(200) < 10 * cost_s(1)


def test_patch_tells_true_from_one() -> None:
    assert list(patch({"a": 1}, {"a": True})) == [{"op": "replace", "path": "/a", "value": True}]
    assert list(patch({"a": {"b": 1}}, {"a": {"b": True}})) == [{"op": "replace", "path": "/a/b", "value": True}]
    assert list(patch({"a": [1]}, {"a": [True]})) == [{"op": "replace", "path": "/a", "value": [True]}]


@given(DOCUMENTS, DOCUMENTS)
def test_change_carried_over_to_its_own_document_is_the_change(before: Any, after: Any) -> None:
    assert carried_over(before, before, after) == after


def test_change_keeps_fields_that_a_type_does_not_declare() -> None:
    original = {"spec": {"size": 1, "extra": True, "parts": [{"name": "a", "more": 1}]}, "other": 1}
    before = {"spec": {"size": 1, "parts": [{"name": "a"}]}}
    after = {"spec": {"size": 2, "parts": [{"name": "a", "size": 1}], "color": "red"}}
    assert carried_over(original, before, after) == {
        "spec": {"size": 2, "extra": True, "parts": [{"name": "a", "size": 1, "more": 1}], "color": "red"},
        "other": 1,
    }


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([A, B, {"name": "c"}], [{**A, "more": 1}, {**B, "more": 2}, {"name": "c"}]),
        ([{"name": "c"}, A, B], [{"name": "c"}, {**A, "more": 1}, {**B, "more": 2}]),
        ([B], [{**B, "more": 2}]),
        ([B, A], [{**B, "more": 2}, {**A, "more": 1}]),
        ([{**B, "size": 5}, {"name": "c"}], [{**B, "size": 5, "more": 2}, {"name": "c"}]),
        ([A, {"name": "c"}], [{**A, "more": 1}, {"name": "c"}]),  # another in the place of one that was removed
        ([A, {"port": 1}], [{**A, "more": 1}, {"port": 1, "more": 2}]),
        ([], []),
    ],
)
def test_elements_keep_undeclared_fields_in_a_list_that_is_extended_shortened_or_reordered(
    after: Any, expected: Any
) -> None:
    assert carried_over([{**A, "more": 1}, {**B, "more": 2}], [A, B], after) == expected


def test_elements_without_a_key_keep_undeclared_fields_in_a_list_that_is_extended() -> None:
    assert carried_over([{"port": 1, "more": 1}], [{"port": 1}], [{"port": 2}, {"port": 3}]) == [
        {"port": 2, "more": 1},
        {"port": 3},
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1, 2], [3]),  # one was removed, and the other changed
        ([1, 2], [9, 1]),  # moved and changed
        ([1, 2], [9, 1, 3]),
        ([1, 1], [1]),  # either of two that look the same
    ],
)
def test_elements_without_a_key_are_not_taken_for_others_in_a_list_that_is_shortened_or_reordered(
    before: list[int], after: list[int]
) -> None:
    """Their undeclared fields were lost."""
    old, new = ([{"port": port} for port in ports] for ports in (before, after))
    original = [{"port": port, "cidr": at} for at, port in enumerate(before)]
    with pytest.raises(PartialListError, match=r"^rules is a list"):
        carried_over({"spec": {"rules": original}}, {"spec": {"rules": old}}, {"spec": {"rules": new}})
    # With all fields, or without those that others have, nothing can be lost.
    assert carried_over(old, old, new) == new
    alike = [{**one, "cidr": 0} for one in old]
    assert carried_over(alike[:1] * 2, old[:1] * 2, old[:1]) == alike[:1]


def test_true_is_carried_over_in_place_of_one() -> None:
    carried = carried_over({"a": [1], "b": {"c": 1}}, {"a": [1], "b": {"c": 1}}, {"a": [True], "b": {"c": True}})
    assert repr(carried) == "{'a': [True], 'b': {'c': True}}"


def test_removed_field_is_removed_and_one_that_was_never_declared_is_kept() -> None:
    assert carried_over({"a": 1, "b": 2}, {"a": 1}, {}) == {"b": 2}


def test_element_that_is_equal_to_a_matched_one_is_matched_with_the_next() -> None:
    original = [{**A, "more": 1}, {**B, "more": 2}, {**A, "more": 3}]
    assert carried_over(original, [A, B, A], [A, A]) == [{**A, "more": 1}, {**A, "more": 3}]
