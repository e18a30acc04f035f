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
