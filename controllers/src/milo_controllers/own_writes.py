"""The writes of reconcilers that the caches of their cluster do not have yet.

A cache trails the API server. A reconcile that begins before it has the writes of the previous one would see, for
example, that the child which it created is missing, and create another.

Pure: callers pass the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

import msgspec

from milo_controllers.kinds import CacheKey, Document
from milo_controllers.object_cache import Change, ObjectCache, Place
from milo_kube.label_selector import SelectorError, parse
from milo_kube.reflect.versions import is_number, is_older

WITHIN_S = 10.0
"""How long an object is held at most, if its cache does not get the writes."""


class Write(NamedTuple):
    """The result of a write."""

    resource: str
    place: Place
    uid: str
    version: str
    """The resource version; empty if the object was deleted."""
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, resource: str, written: Document) -> Write | None:
        """Return the write that an API server answered with this object; None if it is not one."""
        metadata = written.get("metadata") or {}
        if not metadata.get("name") or not metadata.get("resourceVersion"):
            return None
        place = metadata.get("namespace", ""), metadata["name"]
        labels = tuple((metadata.get("labels") or {}).items())
        return cls(resource, place, metadata.get("uid", ""), metadata["resourceVersion"], labels)


class Cached(Protocol):
    """An informer."""

    @property
    def key(self) -> CacheKey: ...
    @property
    def cache(self) -> ObjectCache: ...


def is_seen(write: Write, informer: Cached) -> bool:
    """Return whether the cache has the write, or never will."""
    key, found = informer.key, informer.cache.get(*write.place)
    if key.resource != write.resource or key.namespace not in ("", write.place[0]) or not informer.cache.synced:
        return True
    if found is None:
        # The object is deleted, or not created yet in the cache; or it does not belong in this cache.
        return not write.version or bool(key.field_selector) or not matches(key.selector, write.labels)
    if found.uid != write.uid:
        return not (write.version and is_older(found.version, write.version))
    if not write.version:
        return False
    if is_number(found.version) and is_number(write.version):
        return not is_older(found.version, write.version)
    return found.version == write.version


_parsed = lru_cache(parse)


def matches(selector: str, labels: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a label selector matches; False for an invalid one."""
    try:
        return _parsed(selector).matches(labels)
    except SelectorError:
        return False


class _Held(msgspec.Struct, eq=False):
    unseen: set[tuple[CacheKey, Write]]
    settle: Callable[[], None]


class OwnWrites:
    """The writes in one cluster that its caches do not have yet."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[tuple[CacheKey, Place], list[_Held]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def hold(self, writes: Iterable[Write], informers: Iterable[Cached], settle: Callable[[], None]) -> bool:
        """Return whether caches lack any of the writes. If so, `settle` is called when they have all of them."""
        caches = list(informers)
        unseen = [(each, write) for write in writes for each in caches if not is_seen(write, each)]
        if not unseen:
            return False
        held = _Held({(each.key, write) for each, write in unseen}, settle)
        for each, write in unseen:
            self._held.setdefault((each.key, write.place), []).append(held)
        return True

    def changed(self, informer: Cached, change: Change) -> None:
        """Note a change of a cache."""
        place = change.current.place
        for held in self._held.pop((informer.key, place), ()):
            here = {(key, write) for key, write in held.unseen if (key, write.place) == (informer.key, place)}
            seen = {(key, write) for key, write in here if change.new is None or is_seen(write, informer)}
            held.unseen -= seen
            if here - seen:
                self._held.setdefault((informer.key, place), []).append(held)
            if not held.unseen:
                held.settle()

    def clear(self) -> None:
        self._held.clear()
