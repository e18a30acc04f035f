"""Serves the resources of the stored CustomResourceDefinitions."""

from typing import Protocol

from milo_sandbox.collection import StoredCollection
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS, resource_of
from milo_sandbox.records import RecordedChange, SandboxRecord
from milo_sandbox.resources import Document, ResourceDefinition

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


class DefinitionStore(Protocol):
    """The part of a store that definitions use."""

    def __getitem__(self, resource: ResourceDefinition) -> StoredCollection: ...
    def find(self, resource: ResourceDefinition, key: str) -> SandboxRecord | None: ...
    def discard(self, resource: ResourceDefinition, key: str, *, propagation: str = "") -> None: ...
    def edit_metadata(self, resource: ResourceDefinition, key: str, changes: Document) -> None: ...
    def edit_status(self, resource: ResourceDefinition, key: str, status: Document) -> None: ...
    def define(self, resource: ResourceDefinition) -> None: ...
    def undefine(self, resource: ResourceDefinition) -> None: ...
    def timestamp(self) -> str: ...


class Definitions:
    """The controller that serves the resources of the stored definitions, and deletes their objects with them."""

    def __init__(self, store: DefinitionStore) -> None:
        self._store = store
        self._served: dict[str, tuple[Document, ResourceDefinition]] = {}

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        """Handle a write."""
        if resource == CUSTOM_RESOURCE_DEFINITIONS:
            self._follow(event.record.name, None if event.deleted else event.record.document())
        elif event.deleted and (name := self._defined_by(resource)):
            self._follow(name, self._document(name))

    def _defined_by(self, resource: ResourceDefinition) -> str | None:
        name = resource.qualified
        return name if name in self._served else None

    def _document(self, name: str) -> Document | None:
        record = self._store.find(CUSTOM_RESOURCE_DEFINITIONS, name)
        return record.document() if record else None

    def _follow(self, name: str, definition: Document | None) -> None:
        if definition is None:
            if name in self._served:
                self._store.undefine(self._served.pop(name)[1])
            return
        metadata, spec = definition["metadata"], definition["spec"]
        if metadata.get("deletionTimestamp"):
            self._clean_up(name, metadata)
            return
        if CLEANUP_FINALIZER not in metadata.get("finalizers", ()):
            finalizers = [*metadata.get("finalizers", ()), CLEANUP_FINALIZER]
            self._store.edit_metadata(CUSTOM_RESOURCE_DEFINITIONS, name, {"finalizers": finalizers})
        if name in self._served and self._served[name][0] == spec:
            return
        defined = resource_of(definition)
        if name in self._served and self._served[name][1].version != defined.version:
            self._store.undefine(self._served[name][1])
        self._served[name] = spec, defined
        self._store.define(defined)
        self._store.edit_status(CUSTOM_RESOURCE_DEFINITIONS, name, self._status(spec, defined))

    def _clean_up(self, name: str, metadata: Document) -> None:
        served = self._served.get(name)
        if served is not None:
            collection = self._store[served[1]]
            for record in tuple(collection):
                if "deletionTimestamp" not in record.document()["metadata"]:
                    self._store.discard(served[1], record.key)
            if len(collection):
                return
        finalizers = [each for each in metadata.get("finalizers", ()) if each != CLEANUP_FINALIZER]
        if len(finalizers) < len(metadata.get("finalizers", ())):
            self._store.edit_metadata(CUSTOM_RESOURCE_DEFINITIONS, name, {"finalizers": finalizers})

    def _status(self, spec: Document, defined: ResourceDefinition) -> Document:
        now = self._store.timestamp()
        conditions = [
            {"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}
            for type_, reason, message in (
                ("NamesAccepted", "NoConflicts", "no conflicts found"),
                ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            )
        ]
        accepted = {"singular": defined.singular, "listKind": f"{defined.kind}List", **spec["names"]}
        return {"conditions": conditions, "acceptedNames": accepted, "storedVersions": [defined.version]}
