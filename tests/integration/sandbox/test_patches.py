"""JSON merge patch, JSON patch and strategic merge patch, with the examples of the RFCs."""

from typing import Any

import pytest

from milo_sandbox import patches
from milo_sandbox.refusals import RefusalError


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"a": "foo"}, "bar", "bar"),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_is_applied(target: Any, patch: Any, result: Any) -> None:
    assert patches.merge(target, patch) == result


def test_strategic_patch_ignores_ordering_directives() -> None:
    patch = {"data": {"a": None, "b": "2"}, "$setElementOrder/finalizers": ["x"], "$retainKeys": ["y"]}
    assert patches.strategic({"data": {"a": "1"}}, patch) == {"data": {"b": "2"}}
    with pytest.raises(RefusalError, match=r"\$patch"):
        patches.strategic({}, {"data": {"$patch": "replace"}})


@pytest.mark.parametrize(
    ("order", "changes", "result"),
    [
        (
            [{"name": "a"}, {"name": "b"}],
            [{"name": "b", "x": 3}],
            [{"name": "a", "x": 1}, {"name": "b", "x": 3, "y": 2}],
        ),
        (
            [{"name": "c"}, {"name": "a"}],
            [{"name": "c"}],
            [{"name": "c"}, {"name": "a", "x": 1}, {"name": "b", "y": 2}],
        ),
        ([{"name": "a"}], [{"$patch": "delete", "name": "b"}], [{"name": "a", "x": 1}]),
        ([], [{"$patch": "delete", "name": "a"}, {"$patch": "delete", "name": "b"}], []),
    ],
)
def test_strategic_patch_merges_a_list_whose_order_names_its_key(order: Any, changes: Any, result: Any) -> None:
    target = {"list": [{"name": "a", "x": 1}, {"name": "b", "y": 2}]}
    assert patches.strategic(target, {"list": changes, "$setElementOrder/list": order}) == {"list": result}


def test_strategic_patch_adds_to_a_list_of_texts_in_its_order() -> None:
    patch = {"finalizers": ["new"], "$setElementOrder/finalizers": ["new", "a"]}
    assert patches.strategic({"finalizers": ["a", "b"]}, patch) == {"finalizers": ["new", "a", "b"]}
    assert patches.strategic({"finalizers": ["a", "b"]}, {"finalizers": ["new"]}) == {"finalizers": ["new"]}


def test_strategic_patch_of_an_element_without_the_key_is_refused() -> None:
    patch = {"list": [{"x": 1}], "$setElementOrder/list": [{"name": "a"}]}
    with pytest.raises(RefusalError, match="merged by 'name'"):
        patches.strategic({}, patch)


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ({"op": "add", "path": "/new", "value": 1}, {"a": [1, 2], "b": {"c/d": "x"}, "new": 1}),
        ({"op": "add", "path": "/a/1", "value": 9}, {"a": [1, 9, 2], "b": {"c/d": "x"}}),
        ({"op": "add", "path": "/a/-", "value": 9}, {"a": [1, 2, 9], "b": {"c/d": "x"}}),
        ({"op": "add", "path": "", "value": {}}, {}),
        ({"op": "remove", "path": "/a/0"}, {"a": [2], "b": {"c/d": "x"}}),
        ({"op": "remove", "path": "/b/c~1d"}, {"a": [1, 2], "b": {}}),
        ({"op": "replace", "path": "/a/0", "value": 7}, {"a": [7, 2], "b": {"c/d": "x"}}),
        ({"op": "move", "from": "/b/c~1d", "path": "/a/0"}, {"a": ["x", 1, 2], "b": {}}),
        ({"op": "copy", "from": "/a", "path": "/b/e"}, {"a": [1, 2], "b": {"c/d": "x", "e": [1, 2]}}),
        ({"op": "test", "path": "/a/1", "value": 2}, {"a": [1, 2], "b": {"c/d": "x"}}),
    ],
)
def test_json_patch_is_applied(operation: dict[str, Any], result: Any) -> None:
    target = {"a": [1, 2], "b": {"c/d": "x"}}
    assert patches.apply_operations(target, [operation]) == result
    assert target == {"a": [1, 2], "b": {"c/d": "x"}}


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ({}, 400),
        ([1], 400),
        ([{"op": "jump", "path": "/a"}], 400),
        ([{"op": "add", "path": "a", "value": 1}], 400),
        ([{"op": "add", "path": "/a"}], 400),
        ([{"op": "remove", "path": ""}], 400),
        ([{"op": "remove", "path": "/x"}], 422),
        ([{"op": "replace", "path": "/x", "value": 1}], 422),
        ([{"op": "add", "path": "/a/7", "value": 1}], 422),
        ([{"op": "add", "path": "/a/0/x", "value": 1}], 422),
        ([{"op": "test", "path": "/a/0", "value": 2}], 422),
    ],
)
def test_invalid_json_patch_is_refused(operations: Any, code: int) -> None:
    with pytest.raises(RefusalError) as error:
        patches.apply_operations({"a": [1]}, operations)
    assert error.value.code == code
