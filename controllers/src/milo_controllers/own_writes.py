"""Tracks the writes of reconcilers until the caches of the cluster contain them.

A cache lags behind the API server. A reconcile that starts before the cache contains the writes of the previous one
would, for example, not find the child that was just created, and create another.

Does no I/O and owns no cache: callers pass the informers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec

from milo_controllers.kinds import CacheKey, Document
from milo_controllers.object_cache import Change, ObjectCache, Place
from milo_kube.label_selector import parse
from milo_kube.reflect.versions import is_number, is_older

WITHIN_S = 10.0
"""Maximum time that an object is held if its cache does not receive the writes."""

_MAX_DELETIONS = 1000
"""Maximum number of deletions recorded while reconciles run. Eviction can delay a reconcile by at most WITHIN_S."""


class Write(NamedTuple):
    """The result of a write."""

    resource: str
    place: Place
    uid: str
    version: str
    """The resource version; empty if the object was deleted."""
    labels: tuple[tuple[str, str], ...] = ()
    unmatched: frozenset[str] = frozenset()
    """The field selectors of caches that are known not to select the object."""
    before: str = ""
    """Of a deletion: the resource version of the last write before it, which caches may lack too."""

    @classmethod
    def of_response(cls, resource: str, written: Document, caches: Iterable[CacheKey] = ()) -> Write | None:
        """Return the write whose response is this object; None if the response is not a valid object."""
        try:
            metadata = msgspec.convert(written.get("metadata"), _WrittenMetadata)
        except msgspec.ValidationError:
            return None
        if not metadata.name or not metadata.resourceVersion:
            return None
        labels = tuple((metadata.labels or {}).items())
        selectors = {key.field_selector for key in caches if key.resource == resource}
        unmatched = frozenset(selector for selector in selectors if not _may_match(selector, written))
        place = metadata.namespace, metadata.name
        return cls(resource, place, metadata.uid, metadata.resourceVersion, labels, unmatched)

    @classmethod
    def of_deletion(cls, resource: str, place: Place, uid: str, last: Write | None) -> Write:
        """Return the deletion of an object. `last`: the last write of the same reconcile to an object of this name."""
        if last is None or uid not in ("", last.uid):
            return cls(resource, place, uid, "")
        return last._replace(version="", before=last.version or last.before)

    @property
    def last_version(self) -> str:
        return self.version or self.before

    def is_newer(self, other: Write) -> bool:
        """Return whether this is known to be a later write of the same object."""
        return self.uid == other.uid != "" and (not self.version or is_older(other.version, self.version))


class _WrittenMetadata(msgspec.Struct):
    name: str
    resourceVersion: str  # noqa: N815
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None


_DECODER = msgspec.json.Decoder(_WrittenMetadata)
"""Prepares the type for `convert`."""


class Cached(Protocol):
    """The parts of an informer that this module reads."""

    @property
    def key(self) -> CacheKey: ...
    @property
    def cache(self) -> ObjectCache: ...


def is_seen(write: Write, informer: Cached) -> bool:
    """Return whether the cache contains the write, or is not expected to receive it."""
    key, found = informer.key, informer.cache.get(*write.place)
    if key.resource != write.resource or key.namespace not in ("", write.place[0]) or not informer.cache.synced:
        return True
    if found is None:
        # The object was deleted, is not in the cache yet, or does not match the selectors of the cache.
        is_unmatched = key.field_selector in write.unmatched or not matches(key.selector, write.labels)
        return not write.last_version or is_unmatched
    if found.uid != write.uid:
        return not (write.last_version and is_older(found.version, write.last_version))
    if not write.version:
        return False
    return _includes(informer.cache.newest_version(found), write.version)


def _includes(version: str, written: str) -> bool:
    """Return whether this version of an object is the written one, or a newer one."""
    if is_number(version) and is_number(written):
        return not is_older(version, written)
    return version == written


class _Deletion(NamedTuple):
    """The last deletion of an object that a cache reported."""

    uid: str
    version: str
    """The object's last resourceVersion in the cache."""


def _has_ended(write: Write, informer: Cached, deletion: _Deletion) -> bool:
    """Return whether the deletion is newer than the write, so that the cache will never have the write."""
    # In a cache with a selector, the object may have left the selector, and the write may have brought it back.
    has_selector = informer.key.selector or informer.key.field_selector
    if deletion.uid == write.uid and not (write.version and has_selector):
        return True
    are_comparable = is_number(deletion.version) and is_number(write.last_version)
    return are_comparable and not is_older(deletion.version, write.last_version)


_parsed = lru_cache(parse)
_OPERATOR = re.compile("(!=|==|=)")
_OTHER_NAMES = frozenset({"spec.host", "status.successful"})
"""Labels of fields that are named otherwise in the objects of Kubernetes: `nodeName` and `succeeded`."""


def matches(selector: str, labels: tuple[tuple[str, str], ...]) -> bool:
    return _parsed(selector).matches(labels)


def _may_match(field_selector: str, written: Document) -> bool:
    """Return whether a field selector may select an object: also if the field is no text, since the API server may
    compare it otherwise. It compares a field that the object lacks as an empty text or, if it knows that it is no text,
    as `false` or `0`. Labels of one word may be other names of a field."""
    if "\\" in field_selector:
        return True
    for term in filter(None, field_selector.split(",")):
        path, operator, value = (*_OPERATOR.split(term, maxsplit=1), "", "")[:3]
        if path in _OTHER_NAMES:
            continue
        found: Any = written
        for name in path.split("."):
            if found is not None:
                found = found.get(name) if isinstance(found, dict) else True
        if found is None and "." in path and value not in ("false", "0"):
            found = ""
        if operator and isinstance(found, str) and (found == value) is (operator == "!="):
            return False
    return True


_Where = tuple[CacheKey, Place]


class HeldObject(msgspec.Struct, eq=False):
    """An object whose reconcile has written what caches lack."""

    unseen: dict[_Where, Write]
    """The writes that caches lack; a reconcile can make thousands, of which each cache receives one at a time."""
    settle: Callable[[], None]


class OwnWrites:
    """The writes in one cluster that its caches do not contain yet."""

    __slots__ = ("_deleted", "_held", "_reconciles")

    def __init__(self) -> None:
        self._held: dict[_Where, list[HeldObject]] = {}
        self._deleted: dict[_Where, _Deletion] = {}
        """Deletions reported while reconciles run. Some may be of objects that these reconciles wrote."""
        self._reconciles = 0

    def __bool__(self) -> bool:
        return bool(self._held or self._reconciles)

    def reconcile_began(self) -> None:
        self._reconciles += 1

    def reconcile_ended(self) -> None:
        """Record the end of a reconcile, after `hold` was called for its writes."""
        self._reconciles -= 1
        if not self._reconciles:
            self._deleted.clear()

    def hold(
        self, writes: Iterable[Write], informers: Iterable[Cached], settle: Callable[[], None]
    ) -> HeldObject | None:
        """Hold an object if caches lack any of its writes, one of each place. `settle` is called when they have all of
        them."""
        caches: dict[str, list[Cached]] = {}
        for informer in informers:
            caches.setdefault(informer.key.resource, []).append(informer)
        unseen = {
            (informer.key, write.place): write
            for write in writes
            for informer in caches.get(write.resource, ())
            if not is_seen(write, informer) and not self._is_deleted(write, informer)
        }
        if not unseen:
            return None
        held = HeldObject(unseen, settle)
        for where in unseen:
            self._held.setdefault(where, []).append(held)
        return held

    def give_up(self, held: HeldObject) -> None:
        """Forget the writes that caches still lack: they did not receive them in time."""
        for where in held.unseen:
            others = [other for other in self._held.pop(where, ()) if other is not held]
            if others:
                self._held[where] = others

    def changed(self, informer: Cached, change: Change) -> None:
        """Settle the held objects whose writes are now in the cache, or will never be."""
        where = informer.key, change.current.place
        deletion = None if change.new else _Deletion(change.current.uid, change.current.version)
        if deletion is not None and self._reconciles:
            self._note_deletion(where, deletion)
        for held in self._held.pop(where, ()):
            write = held.unseen[where]
            if is_seen(write, informer) or (deletion is not None and _has_ended(write, informer, deletion)):
                del held.unseen[where]
            else:
                self._held.setdefault(where, []).append(held)
            if not held.unseen:
                held.settle()

    def is_past(self, write: Write, informer: Cached) -> bool:
        """Return whether the cache has the written object, or a newer state of it, or has received its deletion."""
        key, cache = informer.key, informer.cache
        found = cache.get(*write.place)
        if found is None:
            # With a selector, the write may have made the object leave it.
            return cache.synced and not (key.selector or key.field_selector) and self._is_deleted(write, informer)
        if found.uid != write.uid and not is_older(write.version, found.version):
            return False  # it may be the object that the written one has replaced
        return cache.synced and (found.uid != write.uid or _includes(found.version, write.version))

    def clear(self) -> None:
        """Settle all held objects: their cluster is disengaged."""
        for held in {each for where in self._held.values() for each in where}:
            held.settle()
        self._held.clear()
        self._deleted.clear()

    def _is_deleted(self, write: Write, informer: Cached) -> bool:
        deletion = self._deleted.get((informer.key, write.place))
        return (
            deletion is not None and informer.cache.get(*write.place) is None and _has_ended(write, informer, deletion)
        )

    def _note_deletion(self, where: _Where, deletion: _Deletion) -> None:
        self._deleted.pop(where, None)
        self._deleted[where] = deletion
        if len(self._deleted) > _MAX_DELETIONS:
            del self._deleted[next(iter(self._deleted))]
