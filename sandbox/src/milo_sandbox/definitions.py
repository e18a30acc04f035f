"""Serves the resources of the stored CustomResourceDefinitions: at the root, and in every control plane."""

from collections.abc import Callable, Iterator

from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.records import RecordedChange
from milo_sandbox.resources import Document, ResourceDefinition, resource_of
from milo_sandbox.store import Store

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


class Definitions:
    """A controller that serves the resources of stored definitions, and deletes the objects of deleted definitions."""

    def __init__(self, store: Store, others: Callable[[], list[Store]] = list) -> None:
        """`store` contains the definitions. Their resources are served in `store` and in `others`."""
        self._store = store
        self._others = others
        self._served: dict[str, tuple[Document, ResourceDefinition]] = {}

    def serve_in(self, store: Store) -> None:
        """Serve the defined resources in another store."""
        for _, resource in self._served.values():
            store.define(resource)

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        """Handle a write to one of the stores."""
        if resource == CUSTOM_RESOURCE_DEFINITIONS:
            self._follow(event.record.name, None if event.deleted else event.record.document())
        elif event.deleted and (name := self._defined_by(resource)):
            self._follow(name, self._document(name))

    def _stores(self) -> Iterator[Store]:
        yield self._store
        yield from self._others()

    def _defined_by(self, resource: ResourceDefinition) -> str | None:
        name = resource.qualified
        return name if name in self._served else None

    def _document(self, name: str) -> Document | None:
        record = self._store.find(CUSTOM_RESOURCE_DEFINITIONS, name)
        return record.document() if record else None

    def _follow(self, name: str, definition: Document | None) -> None:
        if definition is None:
            if name in self._served:
                self._undefine(self._served.pop(name)[1])
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
            self._undefine(self._served[name][1])
        self._served[name] = spec, defined
        for store in self._stores():
            store.define(defined)
        self._store.edit_status(CUSTOM_RESOURCE_DEFINITIONS, name, self._status(spec, defined))

    def _undefine(self, resource: ResourceDefinition) -> None:
        for store in self._stores():
            store.undefine(resource)

    def _clean_up(self, name: str, metadata: Document) -> None:
        if name in self._served and self._remain(self._served[name][1]):
            return
        if self._document(name) is None:  # the definition was deleted together with its last object
            return
        finalizers = [finalizer for finalizer in metadata.get("finalizers", ()) if finalizer != CLEANUP_FINALIZER]
        if len(finalizers) < len(metadata.get("finalizers", ())):
            self._store.edit_metadata(CUSTOM_RESOURCE_DEFINITIONS, name, {"finalizers": finalizers})

    def _remain(self, resource: ResourceDefinition) -> bool:
        """Delete all objects; return whether some of them have finalizers and remain."""
        found = [(store, record) for store in self._stores() for record in store[resource]]
        for store, record in found:
            if "deletionTimestamp" not in record.document()["metadata"]:
                store.discard(resource, record.key)
        return any(resource in store and len(store[resource]) for store in self._stores())

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
