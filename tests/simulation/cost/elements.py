"""Counts the elements that are read from large lists, tuples and dicts in Python and in C, whichever object holds them.

A profile cannot show that `sum`, `sorted` or a copy reads the whole fleet. Each large list, tuple or dict that is an
attribute of one of the product's objects is replaced by a subclass that counts, so the test needs no names of
attributes.
Sets, deques and containers that are only in local variables are not counted.
"""

import gc
import traceback
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import suppress
from types import BuiltinMethodType
from typing import Any, SupportsIndex

import msgspec


class Reads:
    """The number of elements that one callback read."""

    def __init__(self, stack_above: int) -> None:
        self.count = 0
        self.stack = ""
        """The stack of the first callback that read more than `stack_above` elements, at that time."""
        self._stack_above = stack_above

    def add(self, elements: int) -> None:
        self.count += elements
        if not self.stack and self.count > self._stack_above:
            self.stack = "".join(traceback.format_stack(limit=8)[:-1])


class _Counted:
    reads: Reads

    def _each(self, elements: Iterable[Any]) -> Iterator[Any]:
        for element in elements:
            self.reads.add(1)
            yield element


def _whole(method: Callable[..., Any]) -> Any:
    """Return a method of a built-in type that counts all elements."""

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        self.reads.add(len(self))
        return method(self, *arguments, **options)

    return counted


def _getitem(self: Any, key: SupportsIndex | slice) -> Any:
    self.reads.add(len(range(*key.indices(len(self)))) if isinstance(key, slice) else 1)
    return super(type(self), self).__getitem__(key)


class CountedList(list[Any], _Counted):
    __hash__ = None  # type: ignore[assignment]
    __contains__, __eq__, __add__ = map(_whole, (list.__contains__, list.__eq__, list.__add__))
    copy, index, count, sort = map(_whole, (list.copy, list.index, list.count, list.sort))
    __getitem__ = _getitem

    def __iter__(self) -> Iterator[Any]:
        return self._each(super().__iter__())

    def __reversed__(self) -> Iterator[Any]:
        return self._each(super().__reversed__())


class CountedTuple(tuple[Any, ...], _Counted):
    __hash__ = None  # type: ignore[assignment]
    __contains__, __eq__, __add__ = map(_whole, (tuple.__contains__, tuple.__eq__, tuple.__add__))
    __getitem__ = _getitem

    def __iter__(self) -> Iterator[Any]:
        return self._each(super().__iter__())


class CountedDict(dict[Any, Any], _Counted):
    """A dict that counts the elements of iterations, but not lookups."""

    __hash__ = None  # type: ignore[assignment]
    __eq__ = _whole(dict.__eq__)

    def __iter__(self) -> Iterator[Any]:
        return self._each(super().__iter__())

    def __reversed__(self) -> Iterator[Any]:
        return self._each(super().__reversed__())

    def keys(self) -> Any:
        return KeysView(self)

    def values(self) -> Any:
        return ValuesView(self)

    def items(self) -> Any:
        return ItemsView(self)

    def __or__(self, other: dict[Any, Any]) -> dict[Any, Any]:
        return self.copy() | other

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())


_COUNTED: dict[type, Any] = {list: CountedList, tuple: CountedTuple, dict: CountedDict}


def count_reads(least: int, stack_above: int) -> Reads:
    """Replace each list, tuple and dict of at least `least` elements that is an attribute of the product's objects."""
    reads = Reads(stack_above)
    replaced: dict[int, Any] = {}
    attributes = [(obj, name, value) for obj in _objects() for name, value in _attributes(obj)]
    for obj, name, value in attributes:
        kind = _COUNTED.get(type(value))
        if kind is not None and len(value) >= least:
            if id(value) not in replaced:
                replaced[id(value)] = counted = kind(value)
                counted.reads = reads
            _set(obj, name, replaced[id(value)])
    for obj, name, value in attributes:
        # A bound method that is cached, such as `self._append = self._entries.append`.
        if isinstance(value, BuiltinMethodType) and id(value.__self__) in replaced:
            _set(obj, name, getattr(replaced[id(value.__self__)], value.__name__))
    return reads


def _objects() -> Iterator[Any]:
    for obj in gc.get_objects():
        module: object = type(obj).__module__  # a descriptor if `obj` is a metaclass
        if isinstance(module, str) and module.startswith("milo_"):
            yield obj


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    names = {name for kind in type(obj).__mro__ for name in _slots(kind)} | {*getattr(obj, "__dict__", ())}
    for name in names:
        with suppress(AttributeError):  # a slot may be empty
            yield name, getattr(obj, name)


def _slots(kind: type) -> Iterable[str]:
    if issubclass(kind, msgspec.Struct):
        return getattr(kind, "__struct_fields__", ())
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [
        f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
    ]


def _set(obj: Any, name: str, value: Any) -> None:
    if isinstance(obj, msgspec.Struct):
        msgspec.structs.force_setattr(obj, name, value)
    else:
        object.__setattr__(obj, name, value)
