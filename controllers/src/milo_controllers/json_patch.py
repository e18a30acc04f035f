"""Differences of JSON documents: as a JSON patch (RFC 6902), and carried over to another document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

Operation = dict[str, Any]


def patch(before: Any, after: Any, path: str = "") -> Iterator[Operation]:
    """Yield the operations that turn `before` into `after`. A list that changed is replaced as a whole."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() - after.keys():
            yield {"op": "remove", "path": f"{path}/{_token(name)}"}
        for name, value in after.items():
            place = f"{path}/{_token(name)}"
            if name not in before:
                yield {"op": "add", "path": place, "value": value}
            elif before[name] != value or _differ_in_type(before[name], value):
                yield from patch(before[name], value, place)
    elif before != after or _differ_in_type(before, after):
        yield {"op": "replace", "path": path, "value": after}


def applied(document: Any, operations: Sequence[Operation]) -> Any:
    """Return the document after operations as `patch` yields them."""
    root = {"": deepcopy(document)}
    for operation in operations:
        *parents, last = (_name(token) for token in operation["path"].split("/"))
        holder: Any = root
        for name in parents:
            holder = holder[int(name)] if isinstance(holder, list) else holder[name]
        if operation["op"] == "remove":
            del holder[last]
        else:
            holder[int(last) if isinstance(holder, list) else last] = operation["value"]
    return root[""]


def carried_over(original: Any, before: Any, after: Any) -> Any:
    """Return `original` with what differs between `before` and `after`.

    `before` and `after` may lack fields of `original`, such as those that a type does not declare: these are kept.
    """
    if isinstance(original, dict) and isinstance(before, dict) and isinstance(after, dict):
        kept = {name: value for name, value in original.items() if name in after or name not in before}
        changed = {
            name: carried_over(original.get(name), before.get(name), value)
            for name, value in after.items()
            if name not in before or before[name] != value
        }
        return kept | changed
    lists = (original, before, after)
    if all(isinstance(one, list) for one in lists) and len({len(one) for one in lists}) == 1:
        return [carried_over(*items) for items in zip(*lists, strict=True)]
    return original if before == after else after


def _differ_in_type(one: Any, other: Any) -> bool:
    """Return whether values that Python counts as equal are different JSON: 1 and true."""
    return isinstance(one, bool) != isinstance(other, bool)


def _name(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")


def _token(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
