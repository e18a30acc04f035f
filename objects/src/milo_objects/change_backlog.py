"""The changes that a reader has not taken yet, merged: a slow reader gets each object's present state. Pure.

It is bounded by the number of objects that exist, or that the reader has seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from milo_objects.scope import (
    Change,
    ClusterChanged,
    ClusterEnded,
    ObjectChanged,
    ObjectGone,
    Scope,
    ScopeChanged,
    ScopeEnded,
    ScopeState,
)

_Engagement = tuple[str, str]
"""Name and incarnation of a cluster."""


class ChangeBacklog:
    """A queue of changes for one reader. What begins and ends before the reader saw it is left out."""

    def __init__(self) -> None:
        self._changes: OrderedDict[Hashable, Change] = OrderedDict()
        self._of_scope: dict[Scope, dict[Hashable, None]] = {}
        """The keys of the pending changes of each scope."""
        self._of_engagement: dict[_Engagement, dict[Scope, None]] = {}
        """The scopes with pending changes, by their engagement."""
        self._seen: dict[Scope, ScopeState] = {}
        """The state in which the reader knows each scope whose end is not pending."""
        self._engaged: set[_Engagement] = set()
        """The engagements that the reader knows, and whose end is not pending."""

    def __len__(self) -> int:
        return len(self._changes)

    def take(self) -> Change | None:
        """Return the next change; None if there is none."""
        if not self._changes:
            return None
        key, change = self._changes.popitem(last=False)
        match change:
            case ClusterChanged(cluster):
                self._engaged.add((cluster.name, cluster.incarnation))
            case ScopeChanged(scope, state):
                self._seen[scope] = state
                self._forget(scope, key)
            case ObjectChanged(scope) | ObjectGone(scope):
                self._forget(scope, key)
        return change

    def add(self, change: Change) -> None:
        match change:
            case ObjectChanged():
                self._object_changed(change)
            case ObjectGone():
                self._object_gone(change)
            case ScopeChanged(scope, state):
                is_begin = scope not in self._seen and (scope, "began") not in self._changes
                self._put(scope, (scope, "began" if is_begin else "state"), change, is_last=True)
                if self._seen.get(scope) == state:
                    self._remove(scope, (scope, "state"))
            case ScopeEnded(scope):
                self._drop(scope)
                if self._seen.pop(scope, None) is not None:
                    self._changes[scope, "ended"] = change
            case ClusterChanged(cluster):
                self._changes[cluster.name, cluster.incarnation] = change
            case ClusterEnded(cluster):
                self._cluster_ended((cluster.name, cluster.incarnation), change)
            case _:
                self._changes["fleet"] = change
                self._changes.move_to_end("fleet")

    def _object_changed(self, change: ObjectChanged) -> None:
        scope, found, before = change.scope, change.object, change.before
        key = (scope, found.place, found.uid)
        match self._changes.get(key):
            case ObjectChanged(_, _, first):
                before = first
            case ObjectGone(_, gone, _):
                before = gone
                self._remove(scope, key)
        if before is not None and found.equals(before):
            self._remove(scope, key)
        else:
            self._put(scope, key, ObjectChanged(scope, found, before))

    def _object_gone(self, change: ObjectGone) -> None:
        key = (change.scope, change.object.place, change.object.uid)
        match self._changes.get(key):
            case ObjectChanged(_, _, None):
                self._remove(change.scope, key)
            case ObjectChanged(scope, _, before) if before is not None:
                self._put(scope, key, ObjectGone(scope, before, change.reason))
            case _:
                self._put(change.scope, key, change)

    def _cluster_ended(self, engagement: _Engagement, change: ClusterEnded) -> None:
        for scope in (*self._of_engagement.get(engagement, ()), *self._seen_scopes(engagement)):
            self._drop(scope)
            self._seen.pop(scope, None)
        if engagement in self._engaged:
            self._engaged.discard(engagement)
            self._changes[engagement, "ended"] = change
        self._changes.pop(engagement, None)

    def _seen_scopes(self, engagement: _Engagement) -> list[Scope]:
        return [scope for scope in self._seen if (scope.cluster, scope.incarnation) == engagement]

    def _put(self, scope: Scope, key: Hashable, change: Change, *, is_last: bool = False) -> None:
        self._changes[key] = change
        if is_last:
            self._changes.move_to_end(key)
        self._of_scope.setdefault(scope, {})[key] = None
        self._of_engagement.setdefault((scope.cluster, scope.incarnation), {})[scope] = None

    def _remove(self, scope: Scope, key: Hashable) -> None:
        if self._changes.pop(key, None) is not None:
            self._forget(scope, key)

    def _drop(self, scope: Scope) -> None:
        for key in tuple(self._of_scope.get(scope, ())):
            self._remove(scope, key)

    def _forget(self, scope: Scope, key: Hashable) -> None:
        keys = self._of_scope[scope]
        del keys[key]
        if not keys:
            del self._of_scope[scope]
            engagement = (scope.cluster, scope.incarnation)
            del self._of_engagement[engagement][scope]
            if not self._of_engagement[engagement]:
                del self._of_engagement[engagement]
