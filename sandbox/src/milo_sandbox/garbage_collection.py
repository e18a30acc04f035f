"""Garbage collection of objects whose owners do not exist. It runs immediately after each write."""

from collections.abc import Iterable
from typing import Protocol

from milo_sandbox.records import RecordedChange, SandboxRecord
from milo_sandbox.resources import Document, ResourceDefinition

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
FINALIZERS = {"Foreground": FOREGROUND, "Orphan": ORPHAN}
"""The finalizer by propagation policy, for the policies that delay the removal of the owner."""
_MENTIONS_OWNERS = b'"ownerReferences"'

Key = tuple[ResourceDefinition, str]


class DependentStore(Protocol):
    """The methods of a store that the collector uses."""

    def find(self, resource: ResourceDefinition, key: str) -> SandboxRecord | None: ...
    def discard(self, resource: ResourceDefinition, key: str, *, propagation: str = "") -> None: ...
    def edit_metadata(self, resource: ResourceDefinition, key: str, changes: Document) -> None: ...


class GarbageCollector:
    """Deletes objects whose owners are all deleted. It honors the propagation policies Foreground and Orphan."""

    def __init__(self, store: DependentStore) -> None:
        self._store = store
        self._by_uid: dict[str, Key] = {}
        self._dependents: dict[str, dict[Key, None]] = {}
        self._owners: dict[Key, frozenset[str]] = {}

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        """Update the index of owners after a write, and delete the objects that have no owner left."""
        key = (resource, event.record.key)
        before = self._owners.get(key, frozenset())
        owners = (
            frozenset() if event.deleted else frozenset(reference["uid"] for reference in _references(event.record))
        )
        self._index(key, before, owners)
        if event.deleted:
            self._by_uid.pop(event.record.uid, None)
            for dependent in tuple(self._dependents.get(event.record.uid, ())):
                self._collect(dependent)
        else:
            self._by_uid[event.record.uid] = key
            if owners != before:
                self._collect(key)
            self._propagate(key, event.record)
        for uid in before | owners:
            if (owner := self._by_uid.get(uid)) and (record := self._store.find(*owner)):
                self._propagate(owner, record)

    def _index(self, key: Key, before: frozenset[str], owners: frozenset[str]) -> None:
        for uid in before - owners:
            self._dependents[uid].pop(key, None)
        for uid in owners:
            self._dependents.setdefault(uid, {})[key] = None
        if owners:
            self._owners[key] = owners
        else:
            self._owners.pop(key, None)

    def _collect(self, key: Key) -> None:
        """Delete an object if all its owners are deleted; otherwise remove its references to those that are."""
        record = self._store.find(*key)
        references = _references(record) if record else []
        if record is None or not references:
            return
        present = [reference for reference in references if self._is_present(reference, record)]
        if not present:
            self._store.discard(*key)
        elif len(present) < len(references):
            self._store.edit_metadata(*key, {"ownerReferences": present})

    def _is_present(self, reference: Document, dependent: SandboxRecord) -> bool:
        owner = self._by_uid.get(reference["uid"])
        if owner is None:
            return False
        resource, key = owner
        # An owner in another namespace does not exist for the dependent.
        is_reachable = not resource.namespaced or key.rpartition("/")[0] == dependent.namespace
        return is_reachable and (resource.kind, key.rpartition("/")[2]) == (reference["kind"], reference["name"])

    def _propagate(self, key: Key, record: SandboxRecord) -> None:
        """Continue the deletion of an owner that waits for its dependents."""
        metadata = record.document()["metadata"]
        finalizers = metadata.get("finalizers", [])
        if not metadata.get("deletionTimestamp"):
            return
        dependents = tuple(self._dependents.get(record.uid, ()))
        if ORPHAN in finalizers:
            for dependent in dependents:
                self._forget_owner(dependent, record.uid)
            self._unfinalize(key, ORPHAN)
        elif FOREGROUND in finalizers:
            for dependent in dependents:
                if not self._is_terminating(dependent):
                    self._store.discard(*dependent, propagation="Foreground")
            if not any(self._blocks(dependent, record.uid) for dependent in self._dependents.get(record.uid, ())):
                self._unfinalize(key, FOREGROUND)

    def _unfinalize(self, key: Key, finalizer: str) -> None:
        if record := self._store.find(*key):
            held = record.document()["metadata"].get("finalizers", [])
            if finalizer in held:
                self._store.edit_metadata(*key, {"finalizers": [other for other in held if other != finalizer]})

    def _forget_owner(self, key: Key, uid: str) -> None:
        if record := self._store.find(*key):
            others = [reference for reference in _references(record) if reference["uid"] != uid]
            self._store.edit_metadata(*key, {"ownerReferences": others})

    def _is_terminating(self, key: Key) -> bool:
        record = self._store.find(*key)
        return record is None or "deletionTimestamp" in record.document()["metadata"]

    def _blocks(self, key: Key, uid: str) -> bool:
        record = self._store.find(*key)
        return record is not None and any(
            reference["uid"] == uid and reference.get("blockOwnerDeletion") for reference in _references(record)
        )


def _references(record: SandboxRecord) -> list[Document]:
    if _MENTIONS_OWNERS not in record.body:
        return []
    found: Iterable[Document] = record.document()["metadata"].get("ownerReferences") or ()
    return [reference for reference in found if "uid" in reference]
