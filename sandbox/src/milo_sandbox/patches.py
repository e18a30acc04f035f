"""JSON merge patches (RFC 7396), JSON patches (RFC 6902), and strategic merge patches."""

from copy import deepcopy
from typing import Any

from milo_sandbox import refusals
from milo_sandbox.resources import Document

MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

_ORDER = "$setElementOrder/"
_HINTS = (_ORDER, "$retainKeys")


def merge(target: Any, patch: Any) -> Any:
    """Return the patched target; the target itself is not changed."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Any, patch: Any) -> Any:
    """Apply a strategic merge patch. Lists with $setElementOrder, which kubectl sends, are merged; others are replaced.

    The hint names the key of the list, so that no schema is needed. $retainKeys is ignored.
    """
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith(_HINTS):
            continue
        if key.startswith("$"):
            raise refusals.bad_request(f"the sandbox does not support the strategic merge directive {key!r}")
        if value is None:
            result.pop(key, None)
        elif isinstance(value, list) and (order := patch.get(f"{_ORDER}{key}")) is not None:
            result[key] = _merged_list(result.get(key) or [], value, order)
        else:
            result[key] = strategic(result.get(key), value)
    return result


def _merged_list(items: list[Any], changes: list[Any], order: list[Any]) -> list[Any]:
    first = next(iter(order or changes), None)
    if not isinstance(first, dict):
        found = [*items, *(one for one in changes if one not in items)]
        return sorted(found, key=lambda one: order.index(one) if one in order else len(order))
    key = next(name for name in first if name != "$patch")
    if not all(isinstance(one, dict) and key in one for one in (*items, *changes, *order)):
        raise refusals.bad_request(f"each element of a list that is merged by {key!r} must have it")
    merged = {item[key]: item for item in items}
    for change in changes:
        if change.get("$patch") == "delete":
            merged.pop(change[key], None)
        else:
            merged[change[key]] = strategic(merged.get(change[key]), change)
    wanted = [one[key] for one in order]
    return sorted(merged.values(), key=lambda one: wanted.index(one[key]) if one[key] in wanted else len(wanted))


def apply_operations(target: Document, operations: Any) -> Any:
    """Return the target after all operations, or raise if one fails."""
    if not isinstance(operations, list):
        raise refusals.bad_request("a JSON patch must be a list of operations")
    result: Any = deepcopy(target)
    for operation in operations:
        if not isinstance(operation, dict):
            raise refusals.bad_request("each operation of a JSON patch must be an object")
        result = _operate(result, operation)
    return result


def _operate(document: Any, operation: Document) -> Any:
    path = _pointer(operation, "path")
    match operation.get("op"):
        case "add":
            return _put(document, path, _value(operation), insert=True)
        case "replace":
            _find(document, path)
            return _put(document, path, _value(operation), insert=False)
        case "remove":
            return _remove(document, path)
        case "move":
            origin = _pointer(operation, "from")
            moved = _find(document, origin)
            return _put(_remove(document, origin), path, moved, insert=True)
        case "copy":
            return _put(document, path, deepcopy(_find(document, _pointer(operation, "from"))), insert=True)
        case "test":
            if _find(document, path) != _value(operation):
                raise _impossible(f"testing value {operation['path']} failed")
            return document
        case other:
            raise refusals.bad_request(f"unknown JSON patch operation {other!r}")


def _value(operation: Document) -> Any:
    if "value" not in operation:
        raise refusals.bad_request(f"JSON patch operation {operation.get('op')!r} needs a value")
    return deepcopy(operation["value"])


def _pointer(operation: Document, member: str) -> list[str]:
    text = operation.get(member)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise refusals.bad_request(f"JSON patch: {member!r} is not a JSON pointer: {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _step(container: Any, part: str, path: list[str]) -> Any:
    if isinstance(container, dict) and part in container:
        return container[part]
    if isinstance(container, list):
        return container[_index(part, len(container) - 1, path)]
    raise _impossible(f"no value exists at /{'/'.join(path)}")


def _find(document: Any, path: list[str]) -> Any:
    for part in path:
        document = _step(document, part, path)
    return document


def _put(document: Any, path: list[str], value: Any, *, insert: bool) -> Any:
    if not path:
        return value
    parent = _find(document, path[:-1])
    last = path[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list):
        index = len(parent) if insert and last == "-" else _index(last, len(parent) - (not insert), path)
        parent[index : index if insert else index + 1] = [value]
    else:
        raise _impossible(f"no value can be set at /{'/'.join(path)}")
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        raise refusals.bad_request("JSON patch: the whole object cannot be removed")
    _find(document, path)
    parent = _find(document, path[:-1])
    del parent[path[-1] if isinstance(parent, dict) else int(path[-1])]
    return document


def _index(part: str, highest: int, path: list[str]) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) > highest:
        raise _impossible(f"no such index: /{'/'.join(path)}")
    return int(part)


def _impossible(why: str) -> refusals.RefusalError:
    return refusals.RefusalError(
        422, "Invalid", f"the server rejected our request due to an error in our request: {why}"
    )
