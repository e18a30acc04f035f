"""The objects of one collection, as the informer last received them.

Does no I/O: it applies source events and returns changes. Objects are kept as bytes and decoded when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from milo_controllers.errors import text_of
from milo_controllers.kinds import NoObject, Transform, transformed
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    SourceEvent,
    Unlisted,
)
from milo_kube.reflect.wire import Decoder, ListPage, ObjectSeen, WatchEvent, bounded_name, cut, is_named, text_bytes
from milo_objects.object_index import IndexFunction, ObjectIndex


class Index(NamedTuple):
    """An index function, and the decoder of the objects that it takes: dicts or, for a Kind with a model, instances of
    the model."""

    function: IndexFunction
    decode: Callable[[bytes], Any]


Place = tuple[str, str]
"""Namespace and name of an object."""


class OwnerReference(NamedTuple):
    """A reference from an object to one of its owners."""

    uid: str
    name: str
    group: str = ""
    kind: str = ""


class CachedObject(msgspec.Struct, frozen=True, gc=False):
    """An object, with the fields that the cache itself reads."""

    name: str
    namespace: str
    uid: str
    version: str
    raw: bytes = b""
    owners: tuple[OwnerReference, ...] = ()
    problem: str = ""
    """Why the object could not be decoded; empty if it could. With a `raw`, that is its last valid state."""
    deletion: bytes = b""
    """The deletionTimestamp of an object that could not be decoded, as JSON; empty if it has none."""

    @property
    def place(self) -> Place:
        return self.namespace, self.name


class Change(NamedTuple):
    """A change of an object. At least one of `old` and `new` is set."""

    old: CachedObject | None
    new: CachedObject | None
    is_live: bool
    """False for a change that was received as part of a list, before the list was complete."""

    @property
    def current(self) -> CachedObject:
        """The current object, or its last state if it was deleted."""
        found = self.new or self.old
        assert found is not None
        return found


_ABSENT = msgspec.Raw()
LARGEST_OBJECT = 4 << 20
"""Maximum bytes of an object, more than any API server stores. A decoded object can take 20 times as much memory."""
_OBJECT_BYTES = 512
"""Estimated memory of an object besides its JSON, its name and its references to owners."""
_OWNER_BYTES = 304
"""Estimated memory of a reference besides its texts."""
_LONGEST_PROBLEM = 300
_LONGEST_TIMESTAMP = 64
_VALUE_BYTES = 128
"""Estimated memory of a value in an index, beyond those that `_OBJECT_BYTES` covers."""
_VALUES_COVERED = 2
_TOO_LARGE = f"it is larger than {LARGEST_OBJECT} bytes"
_MOST_OWNER_BYTES = 64 << 10
"""Maximum bytes of the references to owners, each of which takes more time and memory than its bytes."""
_TOO_MANY_OWNERS = f"its ownerReferences are larger than {_MOST_OWNER_BYTES} bytes"


class _OwnerReference(msgspec.Struct, gc=False):
    uid: str
    name: str
    kind: str = ""
    apiVersion: str = ""  # noqa: N815


class _Metadata(msgspec.Struct, gc=False):
    name: str
    uid: str
    resourceVersion: str  # noqa: N815
    namespace: str = ""
    ownerReferences: msgspec.Raw = _ABSENT  # noqa: N815
    managedFields: msgspec.Raw = _ABSENT  # noqa: N815


class _Object(msgspec.Struct, gc=False):
    metadata: _Metadata


_OBJECT = msgspec.json.Decoder(_Object)
_OWNERS = msgspec.json.Decoder(list[_OwnerReference] | None)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_METADATA_FIELDS = frozenset({"apiVersion", "kind", "metadata"})
_METADATA_KIND = "PartialObjectMetadata"
"""The kind of the representation in which API servers send metadata alone, instead of the object's."""


class _TypeMeta(msgspec.Struct, gc=False):
    kind: str = ""
    apiVersion: str = ""  # noqa: N815


_TYPE_META = msgspec.json.Decoder(_TypeMeta)


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]


def is_named_by(owner: OwnerReference, group: str, found: CachedObject) -> bool:
    """Return whether a reference that has the name of an object of this group is to it, or to a former one."""
    if found.uid == owner.uid:
        return True
    meta = _type_meta(found.raw)
    return owner.group == group and (meta is None or meta.kind in ("", owner.kind))  # a partial cache may lack the kind


def _type_meta(raw: bytes) -> _TypeMeta | None:
    try:
        try:
            return _TYPE_META.decode(raw)
        except RecursionError:  # one of the objects of a list
            return _TYPE_META.decode(cut(raw))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


class ObjectDecoder(Decoder[msgspec.Raw, CachedObject]):
    """A decoder of objects that adds apiVersion and kind if a list omits them, as lists of built-in kinds do, and then
    calls `transform`."""

    def __init__(
        self,
        observe: Callable[[msgspec.Raw], CachedObject],
        malformed: Callable[[str, str, str, str], CachedObject],
        transform: Transform | None,
    ) -> None:
        super().__init__(msgspec.Raw, observe, malformed, _key)
        self._transform = transform

    def page(self, body: bytes) -> tuple[ListPage, Iterator[CachedObject | None]]:
        page, objects = super().page(body)
        meta = _type_meta(body) or _TypeMeta()
        if meta.kind == f"{_METADATA_KIND}List":
            return page, objects
        # In the order in which API servers send them on watches, so that a list has the same bytes.
        of_items = {"kind": meta.kind.removesuffix("List"), "apiVersion": meta.apiVersion}
        prefix = msgspec.json.encode(of_items)[:-1] + b","
        return page, (None if found is None else self._transformed(_typed(found, prefix)) for found in objects)

    def line(self, line: bytes | bytearray) -> WatchEvent[CachedObject]:
        event = super().line(line)
        if self._transform is None or not isinstance(event, ObjectSeen):
            return event
        return ObjectSeen(self._transformed(event.observation))

    def _transformed(self, found: CachedObject) -> CachedObject:
        if self._transform is None or found.problem:
            return found
        try:
            raw = msgspec.json.encode(transformed(self._transform, msgspec.json.decode(found.raw)))
        except NoObject as error:
            problem = text_of(error)
        except Exception as error:  # noqa: BLE001  (the author's code: an error there affects only this object)
            problem = f"transform= raised {type(error).__name__}: {text_of(error)}"
        else:
            return msgspec.structs.replace(found, raw=raw)
        return _undecoded(found, problem[:_LONGEST_PROBLEM], found.raw)

    def _unusable(self, raw: bytes | msgspec.Raw, problem: str) -> CachedObject | None:
        found = super()._unusable(raw, problem)
        return None if found is None else _undecoded(found, found.problem, raw)


def _undecoded(found: CachedObject, problem: str, whole: bytes | msgspec.Raw) -> CachedObject:
    """Return what is known of an object that cannot be cached."""
    return CachedObject(
        found.name, found.namespace, found.uid, found.version, problem=problem, deletion=_deletion(bytes(whole))
    )


def _typed(found: CachedObject, prefix: bytes) -> CachedObject:
    if found.problem:
        return found
    meta = _type_meta(found.raw)
    if meta is None:
        return _undecoded(found, "its kind or apiVersion is not a string", found.raw)
    if meta.kind:
        return found
    return msgspec.structs.replace(found, raw=prefix + found.raw.lstrip()[1:])


def object_decoder(*, metadata_only: bool = False, transform: Transform | None = None) -> ObjectDecoder:
    """Return a decoder whose results hold the object as bytes, without `managedFields`."""

    def observe(raw: msgspec.Raw) -> CachedObject:
        metadata = _OBJECT.decode(raw).metadata
        if not is_named(metadata):
            return malformed("", "", "", "")
        stripped = bytes(raw)
        namespace, references = _shared(metadata.namespace), metadata.ownerReferences
        has_too_many_owners = memoryview(references).nbytes > _MOST_OWNER_BYTES
        if has_too_many_owners or len(stripped) > LARGEST_OBJECT:
            known = CachedObject(metadata.name, namespace, metadata.uid, metadata.resourceVersion)
            return _undecoded(known, _TOO_MANY_OWNERS if has_too_many_owners else _TOO_LARGE, raw)
        found = None if references is _ABSENT else _OWNERS.decode(references)
        owners = tuple(
            OwnerReference(owner.uid, owner.name, _group(owner.apiVersion), owner.kind) for owner in found or ()
        )
        if metadata_only or metadata.managedFields is not _ABSENT:
            fields = _FIELDS.decode(raw)
            if metadata_only:
                is_metadata = bytes(fields.get("kind", _ABSENT)) == msgspec.json.encode(_METADATA_KIND)
                names = frozenset({"metadata"}) if is_metadata else _METADATA_FIELDS
                fields = {name: value for name, value in fields.items() if name in names}
            inner = _FIELDS.decode(fields["metadata"])
            inner.pop("managedFields", None)
            fields["metadata"] = msgspec.Raw(msgspec.json.encode(inner))
            stripped = msgspec.json.encode(fields)
        return CachedObject(metadata.name, namespace, metadata.uid, metadata.resourceVersion, stripped, owners)

    def malformed(place: str, uid: str, version: str, problem: str) -> CachedObject:
        namespace, _, name = place.rpartition("/")
        return CachedObject(name, namespace, uid, version, problem=problem)

    return ObjectDecoder(observe, malformed, transform)


def _key(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name


class ObjectCache:
    """The objects by namespace and name, with indexes. These contain each object from when it is put in: to build one
    when it is first used could decode all objects of a cluster in one step."""

    __slots__ = (
        "_index_failed",
        "_indexes",
        "_invalid",
        "_listed",
        "_objects",
        "_outdated",
        "_owners",
        "size",
        "synced",
    )

    def __init__(self, index_failed: Callable[[str, CachedObject, Exception], None] = lambda *_: None) -> None:
        """`index_failed` is called when an index function raises or returns no list; the object is then missing from
        that index."""
        self._index_failed = index_failed
        self._objects: dict[Place, CachedObject] = {}
        self._invalid: dict[Place, CachedObject] = {}
        """The objects that exist, and of which no valid state is known."""
        self._outdated: dict[Place, CachedObject] = {}
        """The newest states, which are not valid, of objects of which a former state is kept."""
        self.size = 0
        """Approximate bytes that all objects take."""
        self._listed: set[Place] | None = None
        """The objects that the list in progress has contained so far."""
        self._indexes: dict[str, ObjectIndex[Place]] = {}
        self._owners: ObjectIndex[Place] = ObjectIndex("owners", _owner_uids)
        self.synced = False

    def __len__(self) -> int:
        return len(self._objects) + len(self._invalid)

    def clear(self) -> None:
        """Drop all objects. The cache is then as it was before its first list."""
        self._objects.clear()
        self._invalid.clear()
        self._outdated.clear()
        for index in self._indexes.values():
            index.clear()
        self._owners.clear()
        self._listed = None
        self.size = 0
        self.synced = False

    def get(self, namespace: str, name: str) -> CachedObject | None:
        return self._objects.get((namespace, name))

    @property
    def invalid(self) -> str:
        """How many objects exist whose newest state is not valid, and why, for one of them; empty if there are none.
        Safe in any thread."""
        found = (*self._invalid.values(), *self._outdated.values())
        if not found:
            return ""
        return f"{len(found)} of its objects cannot be cached, such as {found[0].name}: {found[0].problem}"

    @property
    def is_filled(self) -> bool:
        """Whether a state of all objects that the cluster had at some time is known. Safe in any thread."""
        return self.synced and not self._invalid

    def problem(self, namespace: str, name: str) -> str:
        """Return why there is no valid state of an object that exists; empty if there is one, or no object."""
        name, namespace = bounded_name(name, namespace)
        found = self._invalid.get((namespace, name))
        return "" if found is None else found.problem

    def newest_version(self, held: CachedObject) -> str:
        """Return the version of the newest state of an object that is held, which may not be valid."""
        newest = self._outdated.get(held.place)
        return held.version if newest is None or newest.uid != held.uid else newest.version

    def places(self) -> frozenset[Place]:
        """Return the namespace and name of each object."""
        return frozenset(self._objects)

    def values(self, namespace: str | None = None) -> Iterator[CachedObject]:
        """Return the objects of a namespace, or all."""
        if namespace is None:
            return iter(tuple(self._objects.values()))
        return (found for found in tuple(self._objects.values()) if found.namespace == namespace)

    # --- indexes ---

    def add_index(
        self, name: str, function: IndexFunction, decode: Callable[[bytes], Any] = msgspec.json.decode
    ) -> None:
        """Add an index to an empty cache."""
        self._indexes[name] = ObjectIndex(name, lambda found: function(decode(found.raw)), self._failed)

    def indexed(self, name: str, value: Hashable) -> Iterator[CachedObject]:
        """Return the objects for which the index function returned this value. Raises KeyError for an unknown index."""
        index = self._indexes.get(name)
        if index is None:
            indexes = ", ".join(map(repr, self._indexes)) or "none"
            raise KeyError(
                f"index {name!r} does not exist (existing indexes: {indexes}); add it with Controllers.cache"
            )
        return iter([self._objects[place] for place in index.keys(value)])

    def owned_by(self, uid: str) -> Iterator[CachedObject]:
        return iter([self._objects[place] for place in self._owners.keys(uid)])

    # --- source events ---

    def apply(self, event: SourceEvent[CachedObject]) -> Iterable[Change]:
        match event:
            case ObjectChanged(seen):
                return self._put(seen, is_live=True)
            case Listed(seen):
                if self._listed is not None:
                    self._listed.add(seen.place)
                return self._put(seen, is_live=False)
            case DeletionReported(name, uid, namespace):
                place = namespace, name
                held = self._objects.get(place) or self._invalid.get(place)
                return self._remove(place, is_live=True) if held and (not uid or held.uid in ("", uid)) else []
            case Unlisted(name, namespace):
                if self._listed is not None:
                    self._listed.discard((namespace, name))
                return self._remove((namespace, name), is_live=False)
            case ListStarted():
                self._listed = set()
            case ListEnded():
                listed, self._listed = self._listed, None
                self.synced = True
                return () if listed is None else self._remove_unlisted(listed)
        return ()

    def _remove_unlisted(self, listed: set[Place]) -> Iterator[Change]:
        """Remove the objects that a list lacks while the changes are read: there may be a hundred thousand."""
        for place in (*self._objects, *self._invalid):
            # The namespace of a malformed list item is unknown: keep the objects with its name in all namespaces.
            if place not in listed and ("", place[1]) not in listed:
                yield from self._remove(place, is_live=True)

    def _put(self, seen: CachedObject, *, is_live: bool) -> list[Change]:
        old = self._objects.get(seen.place)
        if seen.problem:
            if old is not None and seen.uid in ("", old.uid):
                return self._keep_outdated(old, seen, is_live=is_live)
            removed = self._remove(seen.place, is_live=is_live)  # another object has its name now
            self._invalid[seen.place] = seen
            self.size += _size(seen)
            return removed
        self._drop_invalid(seen.place)
        # A server that was restored from a backup gives versions a second time.
        state = seen.uid, seen.version, seen.raw
        if old is not None and not old.problem and (old.uid, old.version, old.raw) == state:
            return []
        return self._replace(old, seen, is_live=is_live)

    def _replace(self, old: CachedObject | None, new: CachedObject, *, is_live: bool) -> list[Change]:
        self._objects[new.place] = new
        self.size += _size(new) - (_size(old) if old is not None else 0)
        self._reindex(old, new)
        return [Change(old, new, is_live)]

    def _keep_outdated(self, old: CachedObject, seen: CachedObject, *, is_live: bool) -> list[Change]:
        """Keep the last valid state, and report the change: it can be one that has to be reconciled."""
        before = self._outdated.get(seen.place)
        if before == seen and not is_live:
            return []
        self._outdated[seen.place] = seen
        self.size += _size(seen) - (_size(before) if before is not None else 0)
        return self._replace(old, _outdated(old, seen), is_live=is_live)

    def _drop_invalid(self, place: Place) -> None:
        for of_kind in (self._invalid, self._outdated):
            if (found := of_kind.pop(place, None)) is not None:
                self.size -= _size(found)

    def _remove(self, place: Place, *, is_live: bool) -> list[Change]:
        self._drop_invalid(place)
        old = self._objects.pop(place, None)
        if old is None:
            return []
        self.size -= _size(old)
        self._reindex(old, None)
        return [Change(old, None, is_live)]

    def _reindex(self, old: CachedObject | None, new: CachedObject | None) -> None:
        place = Change(old, new, is_live=True).current.place
        for index in self._indexes.values():
            before = index.count(place)
            if new is not None:
                index.put(place, new)
            else:
                index.remove(place)
            values = max(index.count(place), _VALUES_COVERED) - max(before, _VALUES_COVERED)
            self.size += _VALUE_BYTES * values
        if new is not None:
            self._owners.put(place, new)
        else:
            self._owners.remove(place)

    def _failed(self, name: str, place: Place, error: Exception) -> None:
        self._index_failed(name, self._objects[place], error)


def _size(found: CachedObject) -> int:
    owners = sum(_OWNER_BYTES + sum(map(text_bytes, owner)) for owner in found.owners)
    return len(found.raw) + text_bytes(found.name) + text_bytes(found.problem) + _OBJECT_BYTES + owners


@lru_cache(maxsize=4096)
def _shared(namespace: str) -> str:
    """Return a shared instance of a namespace, to save memory. Some versions of Python never free interned strings."""
    return namespace


def _owner_uids(found: CachedObject) -> list[str]:
    return [owner.uid for owner in found.owners]


class _Versioned(msgspec.Struct, gc=False):
    generation: int | None = None
    labels: msgspec.Raw = _ABSENT
    annotations: msgspec.Raw = _ABSENT
    deletionTimestamp: str | None = None  # noqa: N815


class _VersionedObject(msgspec.Struct, gc=False):
    metadata: _Versioned


_VERSIONED = msgspec.json.Decoder(_VersionedObject)
_LABELS = msgspec.json.Decoder(dict[str, Any] | None)


class _DeletionMetadata(msgspec.Struct, gc=False):
    deletionTimestamp: msgspec.Raw = _ABSENT  # noqa: N815


class _DeletedObject(msgspec.Struct, gc=False):
    metadata: _DeletionMetadata


_DELETED = msgspec.json.Decoder(_DeletedObject)
_TIMESTAMP = msgspec.json.Decoder(str)


def _deletion(raw: bytes) -> bytes:
    """Return the deletionTimestamp of an object, as JSON; empty if it has none, or none that can be read."""
    with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        found = bytes(_DELETED.decode(raw).metadata.deletionTimestamp)
        if len(found) <= _LONGEST_TIMESTAMP and _TIMESTAMP.decode(found):
            return found
    return b""


def _outdated(old: CachedObject, newest: CachedObject) -> CachedObject:
    """Return the last valid state of an object whose newest one is not valid, with what is known of that: whether the
    object is terminating decides what is reconciled, and is not taken from another object that has its name."""
    raw = old.raw
    if newest.deletion and newest.uid:
        fields = _FIELDS.decode(raw)
        metadata = {**_FIELDS.decode(fields["metadata"]), "deletionTimestamp": msgspec.Raw(newest.deletion)}
        raw = msgspec.json.encode({**fields, "metadata": metadata})
    return msgspec.structs.replace(old, raw=raw, problem=newest.problem)


def is_terminating(found: CachedObject) -> bool:
    """Return whether the object's deletion was requested. Reads nothing else, so that no other field can fail it."""
    return bytes(_DELETED.decode(found.raw).metadata.deletionTimestamp) not in {b"", b"null"}


def changed(part: Literal["generation", "labels", "annotations"], change: Change) -> bool:
    """Return whether a change affects this part of an object: always if it was created or deleted, or if its deletion
    was requested. For kinds without a generation, every change counts as a change of the generation."""
    if change.old is None or change.new is None or change.old.uid != change.new.uid:
        return True
    old, new = (_VERSIONED.decode(state.raw).metadata for state in (change.old, change.new))
    if old.deletionTimestamp != new.deletionTimestamp or (part == "generation" and new.generation is None):
        return True
    if part == "generation":
        return old.generation != new.generation
    before, after = (bytes(getattr(state, part)) or b"null" for state in (old, new))
    return before != after and _LABELS.decode(before) != _LABELS.decode(after)
