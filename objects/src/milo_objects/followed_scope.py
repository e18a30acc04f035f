"""The sink of one followed scope: what its lists and watches mean for the objects that are known. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    SourceEvent,
    Unlisted,
)
from milo_kube.reflect.messages import ObjectChanged as Observed
from milo_objects.projection import Place, ProjectedObject, SeenObject
from milo_objects.scope import Gone, ObjectChanged, ObjectGone, ObjectStore, Scope

_OBJECT_BYTES = 640
"""Estimated memory of an object besides the JSON of its fields."""


class FollowedScope:
    """Turns source events into changes of the objects of one scope.

    It keeps no objects but those of the store, to which the caller applies each change before the next one.
    """

    __slots__ = ("_bytes", "_listed", "_store", "scope", "synced")

    def __init__(self, scope: Scope, store: ObjectStore) -> None:
        self.scope = scope
        self._store = store
        self._bytes = sum(map(_size, self._held.values()))
        self.synced = False
        """Whether a complete list was applied."""
        self._listed: set[Place] | None = None
        """The objects that the list in progress has contained so far."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size(self) -> int:
        """Approximate bytes that all objects take, with their values in indexes."""
        return self._bytes + self._store.index_bytes(self.scope)

    @property
    def _held(self) -> Mapping[Place, ProjectedObject]:
        return self._store.objects(self.scope)

    def clear(self) -> None:
        """Begin as before the first list. The caller ends the scope, and so drops the objects."""
        self._bytes, self.synced, self._listed = 0, False, None

    def apply(self, event: SourceEvent[SeenObject]) -> Iterator[ObjectChanged | ObjectGone]:
        match event:
            case Observed(seen):
                yield from self._seen(seen)
            case Listed(seen):
                if self._listed is not None:
                    self._listed.add((seen.namespace, seen.name))
                yield from self._seen(seen)
            case DeletionReported(name, uid, namespace):
                held = self._held.get((namespace, name))
                if held is not None and uid in ("", held.uid):
                    yield self._gone(held, Gone.OBJECT_DELETED)
            case Unlisted(name, namespace):
                if self._listed is not None:
                    self._listed.discard((namespace, name))
                held = self._held.get((namespace, name))
                if held is not None:
                    yield self._gone(held, Gone.OBJECT_DELETED)
            case ListStarted():
                self._listed = set()
            case ListEnded():
                listed, self._listed = self._listed, None
                if listed is not None:
                    for held in [held for place, held in self._held.items() if place not in listed]:
                        yield self._gone(held, Gone.MISSING)
                self.synced = True

    def _seen(self, seen: SeenObject) -> Iterator[ObjectChanged | ObjectGone]:
        held = self._held.get((seen.namespace, seen.name))
        if seen.problem and (held is None or seen.uid in ("", held.uid)):
            return  # the last valid state stays
        if held is not None and held.uid != seen.uid:
            yield self._gone(held, Gone.OBJECT_DELETED)
            held = None
        found = seen.projected
        if found is None:
            if held is not None:
                yield self._gone(held, Gone.OUT_OF_SELECTOR)
        elif held is None or not found.equals(held):
            self._bytes += _size(found) - (0 if held is None else _size(held))
            yield ObjectChanged(self.scope, found, held)

    def _gone(self, held: ProjectedObject, reason: Gone) -> ObjectGone:
        self._bytes -= _size(held)
        return ObjectGone(self.scope, held, reason)


def _size(found: ProjectedObject) -> int:
    return len(found.content) + _OBJECT_BYTES
