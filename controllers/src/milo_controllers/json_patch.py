"""Differences of JSON documents: as a JSON patch (RFC 6902), and carried over to another document."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import msgspec

Operation = dict[str, Any]

_KEYS = ("name", "type", "key")
_LONGEST_NAME = 100


class PartialListError(ValueError):
    """A changed list whose elements are held in part, so that their other fields would be lost."""


def patch(before: Any, after: Any) -> Iterator[Operation]:
    """Yield the operations that turn `before` into `after`. A list that changed is replaced as a whole."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() - after.keys():
            yield {"op": "remove", "path": f"/{_token(name)}"}
        for name, value in after.items():
            if name not in before:
                yield {"op": "add", "path": f"/{_token(name)}", "value": value}
                continue
            # Only what changed has a path: a tenant's document can have a long name around very many short ones.
            for operation in patch(before[name], value):
                yield operation | {"path": f"/{_token(name)}{operation['path']}"}
    elif not are_same(before, after):
        yield {"op": "replace", "path": "", "value": after}


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


def carried_over(original: Any, before: Any, after: Any, *, name: str = "") -> Any:
    """Return `original` with what differs between `before` and `after`.

    `before` and `after` may lack fields of `original`, such as those that a type does not declare: these are kept, also
    in the elements of a list that is extended, shortened or reordered. Raises PartialListError if that leaves open
    which element a changed one was. `name`: of the field, for that error.
    """
    if isinstance(original, dict) and isinstance(before, dict) and isinstance(after, dict):
        kept = {field: value for field, value in original.items() if field in after or field not in before}
        changed = {
            field: carried_over(original.get(field), before.get(field), value, name=field)
            for field, value in after.items()
            if field not in before or not are_same(before[field], value)
        }
        return kept | changed
    lists = (original, before, after)
    if all(isinstance(one, list) for one in lists) and len(original) == len(before):

        def carried(at: int, value: Any) -> Any:
            # What is equal is not compared level by level: each would be encoded again, and a tenant chooses how many.
            if are_same(before[at], value):
                return original[at]
            return carried_over(original[at], before[at], value, name=name)

        found = _positions(before, after)
        if _is_ambiguous(original, before, after, found):
            raise PartialListError(
                f"{name[:_LONGEST_NAME]} is a list of which elements were removed or moved, and it is open which "
                "stayed: what their type lacks would be lost; use a type with all of their fields"
            )
        return [value if at is None else carried(at, value) for at, value in zip(found, after, strict=True)]
    return original if are_same(before, after) else after


def _positions(before: Sequence[Any], after: Sequence[Any]) -> Sequence[int | None]:
    """Return where each element of `after` is in `before`; None for one that is new.

    Elements are the same if they are equal, or else have the same key, or else, without a key of one of them, the same
    position in a list that was not shortened. Takes linear time, since the elements are a tenant's.
    """
    found: list[int | None] = [None] * len(after)
    left = dict.fromkeys(range(len(before)))

    def match(here: int, there: int) -> None:
        found[here] = there
        del left[there]

    for identify in (_encoded, _key):
        places: dict[object, deque[int]] = {}
        for there in left:
            if (identity := identify(before[there])) is not None:
                places.setdefault(identity, deque()).append(there)
        rest = [(here, places.get(identify(after[here]))) for here in range(len(after)) if found[here] is None]
        for here, _ in rest:  # first at the same position, since elements may be equal
            if here in left and identify(before[here]) == identify(after[here]) is not None:
                match(here, here)
        for here, theirs in rest:
            while found[here] is None and theirs:
                if (there := theirs.popleft()) in left:
                    match(here, there)
    for here in range(len(after) if len(after) >= len(before) else 0):
        if found[here] is None and here in left and None in (_key(before[here]), _key(after[here])):
            match(here, here)
    return found


def _is_ambiguous(
    original: Sequence[Any], before: Sequence[Any], after: Sequence[Any], found: Sequence[int | None]
) -> bool:
    """Return whether an element that is found nowhere in `after`, and has fields that `before` lacks, may be in it."""
    kept = set(found)
    lost = [at for at in range(len(before)) if at not in kept and not has_all_of(before[at], original[at])]
    if not lost:
        return False
    if any(at is None and _key(value) is None for at, value in zip(found, after, strict=True)) and any(
        _key(before[at]) is None for at in lost
    ):
        return True
    originals: dict[bytes, set[bytes]] = {}
    for at, value in enumerate(before):
        originals.setdefault(_encoded(value), set()).add(_encoded(original[at]))
    stayed = {_encoded(before[at]) for at in kept if at is not None}
    return any(len(originals[equal]) > 1 for at in lost if (equal := _encoded(before[at])) in stayed)


def _key(element: Any) -> str | None:
    """Return what identifies an element of a list in Kubernetes, mostly."""
    named = element if isinstance(element, dict) else {}
    return next((value for name in _KEYS if isinstance(value := named.get(name), str)), None)


def has_all_of(part: Any, whole: Any) -> bool:
    """Return whether the part has every field of the whole, if with values in another form."""
    if isinstance(whole, dict):
        return isinstance(part, dict) and all(
            value is None or (name in part and has_all_of(part[name], value)) for name, value in whole.items()
        )
    if isinstance(whole, list):
        return (
            isinstance(part, list)
            and len(part) == len(whole)
            and all(has_all_of(mine, other) for mine, other in zip(part, whole, strict=True))
        )
    return part is not None or whole is None


def are_same(one: Any, other: Any) -> bool:
    """Return whether two values are the same JSON. Python counts 1 and true as equal."""
    return _encoded(one) == _encoded(other)


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _name(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")


def _token(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
