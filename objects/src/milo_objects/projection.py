"""Projections: what is kept of an object, by dotted paths of its fields. Pure.

The paths become msgspec types, so that the other fields of an object are skipped and not decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from milo_kube.label_selector import Selector
from milo_kube.reflect.wire import Decoder, is_named

T = TypeVar("T")
Place: TypeAlias = tuple[str, str]
"""Namespace and name of an object."""

_IDENTITY_FIELDS: Final = (
    ("name", str, ""),
    ("namespace", str, ""),
    ("uid", str, ""),
    ("resourceVersion", str, ""),
    ("generation", int, 0),
    ("creationTimestamp", datetime | None, None),
    ("deletionTimestamp", datetime | None, None),
)
_KEPT: Final = frozenset(name for name, _, _ in _IDENTITY_FIELDS)
_STEP = re.compile(r"(?:^|\.)((?:[^.\[\]\\]|\\.)+)|(\[\*\])")
_ESCAPED = re.compile(r"\\(.)")
_FORM = r"write KEY.KEY, KEY[*].KEY for the elements of a list, and \. for a dot in a key"
_ABSENT: Final = msgspec.Raw()
_DIGEST: Final = b"#"
"""What a digest begins with, and no JSON."""
# msgspec raises UnicodeError for invalid text and RecursionError for deep nesting.
_UNDECODABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
_MOST_ELEMENTS: Final = 20_000
"""Maximum number of elements that the paths of a kind enter in one object, of all its lists. Each takes up to two
microseconds of the event loop."""


class ProjectedObject(msgspec.Struct, frozen=True, gc=False):
    """An object without the fields that are not named. What identifies it is always kept."""

    namespace: str
    name: str
    uid: str
    content: bytes = b"{}"
    """The named fields that the object has, at their places within it, as JSON."""
    version: str = ""
    """The resource version of the state that was sent last. The object may have a newer one, since a change of other
    fields sends nothing: unusable as a precondition."""
    generation: int = 0
    """The generation of the state that was sent last."""
    created_at: datetime | None = None
    deletion_requested_at: datetime | None = None

    @property
    def place(self) -> Place:
        return self.namespace, self.name

    @property
    def fields(self) -> dict[str, Any]:
        """The named fields that the object has, at their places within it. Decoded at each use."""
        found: dict[str, Any] = msgspec.json.decode(self.content)
        return found

    def equals(self, other: ProjectedObject) -> bool:
        """Return whether nothing that is kept differs, other than the resource version and the generation."""
        return (
            self.uid == other.uid
            and (self.content == other.content or self._has_digest_of(other) or other._has_digest_of(self))
            and self.deletion_requested_at == other.deletion_requested_at
            and self.created_at == other.created_at
        )

    def _has_digest_of(self, other: ProjectedObject) -> bool:
        return self.content.startswith(_DIGEST) and self.content == _digest(other.content)

    def digested(self) -> ProjectedObject:
        """Return the object with a digest in place of its fields, which only `equals` understands."""
        return msgspec.structs.replace(self, content=_digest(self.content))


def _digest(content: bytes) -> bytes:
    """Return a digest of what is longer than one; one of a digest is itself."""
    if len(content) <= 1 + blake2b.MAX_DIGEST_SIZE:
        return content
    return _DIGEST + blake2b(content).digest()


class SeenObject(msgspec.Struct, frozen=True, gc=False):
    """An object as a list or a watch contained it."""

    name: str
    namespace: str
    uid: str
    version: str
    projected: ProjectedObject | None = None
    """None if the object is outside of the label selector, or could not be decoded."""
    problem: str = ""
    """Why the object could not be decoded; empty if it could."""


# --- paths ---


class _Node:
    """A field of the objects: kept as a whole, or with some fields of its own, or of its elements."""

    __slots__ = ("each", "fields", "is_metadata", "is_whole")

    def __init__(self) -> None:
        self.fields: dict[str, _Node] = {}
        self.each: _Node | None = None
        self.is_whole = False
        self.is_metadata = False

    def add(self, steps: list[str | None]) -> None:
        """Add a path: keys, and None for the elements of a list. Raises ValueError."""
        if self.is_whole:
            return
        if not steps:
            self.is_whole, self.fields, self.each = True, {}, None
            return
        key, *rest = steps
        if (self.fields and key is None) or (self.each and key is not None):
            raise ValueError("one path has it as an object, and another one as a list")
        if key is None:
            self.each = self.each or _Node()
            self.each.add(rest)
        else:
            self.fields.setdefault(key, _Node()).add(rest)

    def sort(self) -> None:
        """Sort the fields, so that all objects of a kind have them in the same order."""
        self.fields = dict(sorted(self.fields.items()))
        for child in (*self.fields.values(), *([self.each] if self.each else ())):
            child.sort()


def is_of_metadata(path: str) -> bool:
    """Return whether a path names a field of the metadata."""
    return _steps(path)[0] == "metadata"


def _steps(path: str) -> list[str | None]:
    """Return the keys of a path, with None for the elements of a list. Raises ValueError."""
    steps: list[str | None] = []
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None or (not steps and step[2]):
            break
        steps.append(None if step[2] else _ESCAPED.sub(r"\1", step[1]))
        position = step.end()
    if position < len(path) or not steps:
        raise ValueError(f"{path!r} is not the path of a field: {_FORM}")
    while steps[-1] is None:  # all elements, which is the list
        steps.pop()
    return steps


def _tree(paths: Iterable[str]) -> _Node:
    root = _Node()
    for path in paths:
        steps = _steps(path)
        if steps == ["metadata"]:
            raise ValueError("'metadata' as a whole changes with each write: name its fields, as in metadata.labels")
        if steps[0] == "metadata" and steps[1] in _KEPT:
            raise ValueError(f"{path!r} is kept of every object: leave it out")
        try:
            root.add(steps)
        except ValueError as error:
            raise ValueError(f"{path!r}: {error}") from None
    return root


# --- decoding ---


class _Elements:
    """Counts the elements of an object's lists, of which the API server determines the number."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def enter(self, elements: list[Any]) -> None:
        """Raises ValidationError."""
        self._count += len(elements)
        if self._count > _MOST_ELEMENTS:
            raise msgspec.ValidationError(f"more than {_MOST_ELEMENTS} elements in the lists of its paths")


_Pruned: TypeAlias = Callable[[Any, _Elements], bool]
"""Removes objects without any named field from a decoded value; returns whether nothing of it is left."""


def _compiled(node: _Node, identity: Iterable[tuple[str, Any, Any]] = ()) -> tuple[Any, Any, _Pruned]:
    """Return the type of a field, its default, and what prunes its values."""
    if node.is_whole:
        return msgspec.Raw, _ABSENT, lambda *_: False
    if node.each is not None:
        element, _, prune_element = _compiled(node.each)

        def prune_list(value: list[Any], elements: _Elements) -> bool:
            elements.enter(value)
            for found in value:
                if found is not None:
                    prune_element(found, elements)  # an element without any named field stays, or the others would move
            return False

        return list[element] | None, None, prune_list  # type: ignore[valid-type]
    fields: list[tuple[str, Any, Any]] = list(identity)
    inner: list[tuple[str, Any, _Pruned | None]] = []
    for number, (key, child) in enumerate(node.fields.items()):
        child_type, default, prune_child = _compiled(child, _IDENTITY_FIELDS if child.is_metadata else ())
        fields.append((f"field_{number}", child_type, msgspec.field(default=default, name=key)))
        inner.append((f"field_{number}", default, None if child.is_whole else prune_child))
    struct = msgspec.defstruct("Projected", fields, omit_defaults=True, gc=False)

    def prune(value: Any, elements: _Elements) -> bool:
        is_empty = True
        for name, default, prune_child in inner:
            found = getattr(value, name)
            if found is default:
                continue
            if prune_child is not None and prune_child(found, elements):
                setattr(value, name, default)
            else:
                is_empty = False
        return is_empty

    return struct | None, None, prune


class _LooseMetadata(msgspec.Struct):
    """What is decoded of an object with a field that has another type than its paths say."""

    name: str
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815
    generation: msgspec.Raw = _ABSENT
    creationTimestamp: msgspec.Raw = _ABSENT  # noqa: N815
    deletionTimestamp: msgspec.Raw = _ABSENT  # noqa: N815


class _LooseObject(msgspec.Struct):
    metadata: _LooseMetadata


_LOOSE_OBJECT = msgspec.json.Decoder(_LooseObject)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT: Final = ord("{")
_LIST: Final = ord("[")
_NUMBER = msgspec.json.Decoder(int)
_TIME = msgspec.json.Decoder(datetime)


class Projection:
    """The fields of a kind that are kept, by their paths. Raises ValueError."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._tree = _tree(paths)
        self._keeps_none = not self._tree.fields
        metadata = self._tree.fields.setdefault("metadata", _Node())
        metadata.is_metadata = True
        self._tree.sort()
        object_type, _, self._prune = _compiled(self._tree)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(object_type)
        self._metadata = f"field_{list(self._tree.fields).index('metadata')}"

    def of(self, raw: bytes | msgspec.Raw) -> ProjectedObject:
        """Return the projection of an object. Raises DecodeError if it has no metadata with a name."""
        try:
            found = self._decoder.decode(raw)
        except msgspec.ValidationError:
            return self._loosely(raw)
        metadata = getattr(found, self._metadata)
        if metadata is None:
            raise msgspec.ValidationError("the object has no metadata")
        identity = (metadata.namespace, metadata.name, metadata.uid)
        sent = (metadata.resourceVersion, metadata.generation, metadata.creationTimestamp, metadata.deletionTimestamp)
        content = b"{}"
        if not self._keeps_none:
            for name, _, default in _IDENTITY_FIELDS:
                setattr(metadata, name, default)
            self._prune(found, _Elements())
            content = msgspec.json.encode(found)
        return _projected(identity, content, sent)

    def _loosely(self, raw: bytes | msgspec.Raw) -> ProjectedObject:
        """Project an object that has a list or a text where the paths have an object: it lacks these fields."""
        metadata = _LOOSE_OBJECT.decode(raw).metadata
        identity = (metadata.namespace, metadata.name, metadata.uid)
        sent = (
            metadata.resourceVersion,
            _read(_NUMBER, metadata.generation) or 0,
            _read(_TIME, metadata.creationTimestamp),
            _read(_TIME, metadata.deletionTimestamp),
        )
        found = _loose(self._tree, bytes(raw).lstrip(), _Elements())
        return _projected(identity, msgspec.json.encode(found or {}), sent)


def _projected(
    identity: tuple[str, str, str], content: bytes, sent: tuple[str, int, datetime | None, datetime | None]
) -> ProjectedObject:
    """Raises one of _UNDECODABLE for fields that cannot be decoded: an API server chooses them, and readers decode
    them later, among those of all clusters."""
    msgspec.json.decode(content)  # what is kept undecoded may be no UTF-8, or numbers out of range
    namespace, name, uid = identity
    version, generation, *times = sent
    return ProjectedObject(_shared(namespace), name, uid, content, version, generation, *map(_instant, times))


def _instant(time: datetime | None) -> datetime | None:
    """Return a time that can be compared with others; None for one without a time zone, or out of range."""
    if time is None or time.tzinfo is UTC:
        return time
    try:
        return time.astimezone(UTC) if time.tzinfo is not None else None
    except OverflowError:
        return None


@lru_cache(maxsize=4096)
def _shared(namespace: str) -> str:
    """Return a shared instance of a namespace, to save memory. Some versions of Python never free interned strings."""
    return namespace


def _read(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw) -> T | None:
    try:
        return decoder.decode(raw)
    except _UNDECODABLE:
        return None


def _loose(node: _Node, raw: bytes | msgspec.Raw, elements: _Elements) -> Any:
    """Return the named fields of a value; None if it has none of them.

    The first byte says whether it is a list or an object: an exception for each element would take ten times as long.
    """
    if node.is_whole:
        return raw
    first = memoryview(raw)[0]
    if node.each is not None:
        if first != _LIST:
            return None
        items, each = _ITEMS.decode(raw), node.each
        elements.enter(items)
        return [_loose_element(each, item, elements) for item in items]
    if first != _OBJECT:
        return None
    fields, found = _FIELDS.decode(raw), {}
    for key, child in node.fields.items():
        if key in fields and (value := _loose(child, fields[key], elements)) is not None:
            found[key] = value
    return found or None


def _loose_element(node: _Node, raw: msgspec.Raw, elements: _Elements) -> Any:
    found = _loose(node, raw, elements)
    return {} if found is None and bytes(raw) != b"null" else found


class _Labels(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Labeled(msgspec.Struct):
    metadata: _Labels


_LABELED = msgspec.json.Decoder(_Labeled)


def object_decoder(paths: Iterable[str], selector: Selector) -> Decoder[msgspec.Raw, SeenObject]:
    """Return the decoder of a kind's objects. Raises ValueError for an invalid path."""
    project, matches = Projection(paths).of, selector.matches

    def observe(raw: msgspec.Raw) -> SeenObject:
        found = project(raw)
        if not is_named(found):
            return malformed("", "", "", "")
        is_selected = not selector or matches(tuple((_LABELED.decode(raw).metadata.labels or {}).items()))
        return SeenObject(found.name, found.namespace, found.uid, found.version, found if is_selected else None)

    def malformed(key: str, uid: str, version: str, problem: str) -> SeenObject:
        namespace, _, name = key.rpartition("/")
        return SeenObject(name, namespace, uid, version, problem=problem)

    return Decoder(msgspec.Raw, observe, malformed, key=lambda namespace, name: f"{namespace}/{name}")
