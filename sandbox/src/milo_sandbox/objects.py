"""Direct reads and writes of one resource, without HTTP."""

from collections.abc import Iterable, Mapping
from random import Random

from milo_sandbox import patches
from milo_sandbox.admission import Part
from milo_sandbox.resources import PROJECTS, Document, ResourceDefinition
from milo_sandbox.store import Store

DEFAULT_ORGANIZATION = "acme"


class Objects:
    """The projects or the control planes, by name. Every write goes through the store."""

    def __init__(self, store: Store, resource: ResourceDefinition) -> None:
        self._store = store
        self.resource = resource

    def __len__(self) -> int:
        return len(self._store[self.resource])

    def __contains__(self, name: str) -> bool:
        return self._store[self.resource].get(name) is not None

    def names(self) -> list[str]:
        return [record.name for record in self._store[self.resource]]

    def pick(self, random: Random) -> str:
        """Return the name of a random object."""
        return random.choice(self._store[self.resource].keys)

    def read(self, name: str) -> Document:
        return self._store.read(self.resource, name)

    def create(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        finalizers: Iterable[str] = (),
        organization: str = DEFAULT_ORGANIZATION,
        ready: bool = False,
    ) -> Document:
        metadata = {
            "name": name,
            "labels": dict(labels or {}),
            "annotations": dict(annotations or {}),
            "finalizers": list(finalizers),
        }
        spec = {"ownerRef": {"kind": "Organization", "name": organization}} if self.resource is PROJECTS else {}
        record = self._store.create(self.resource, {"metadata": metadata, "spec": spec})
        if ready:
            return self.set_condition(name)
        return record.document()

    def condition(
        self,
        status: str = "True",
        *,
        type_: str = "",
        reason: str = "Sandbox",
        message: str = "",
        generation: int = 1,
    ) -> Document:
        """Return a condition with the current time, and with `generation` as its observedGeneration."""
        return {
            "type": type_ or self.resource.ready_condition,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": self._store.timestamp(),
            "observedGeneration": generation,
        }

    def set_condition(
        self, name: str, status: str = "True", *, type_: str = "", reason: str = "Sandbox", message: str = ""
    ) -> Document:
        """Set a condition in the status; the readiness condition by default."""

        def change(document: Document) -> Document:
            generation = document["metadata"].get("generation", 1)
            condition = self.condition(status, type_=type_, reason=reason, message=message, generation=generation)
            held = document.setdefault("status", {})
            others = [other for other in held.get("conditions", ()) if other["type"] != condition["type"]]
            held["conditions"] = [*others, condition]
            return document

        return self._store.modify(self.resource, name, change, part=Part.STATUS).document()

    def set_status(self, name: str, changes: Document) -> Document:
        """Merge fields into the status; None removes a field."""
        patch = {"status": changes}
        return self._store.modify(
            self.resource, name, lambda document: patches.merge(document, patch), part=Part.STATUS
        ).document()

    def label(self, name: str, changes: Mapping[str, str | None]) -> Document:
        """Set labels; None removes a label."""
        return self._patch_metadata(name, {"labels": dict(changes)})

    def annotate(self, name: str, changes: Mapping[str, str | None]) -> Document:
        return self._patch_metadata(name, {"annotations": dict(changes)})

    def finalize(self, name: str, finalizer: str) -> Document:
        """Add a finalizer."""
        held = self.read(name)["metadata"].get("finalizers", [])
        return self._patch_metadata(name, {"finalizers": [*held, finalizer]})

    def unfinalize(self, name: str, finalizer: str = "") -> Document:
        """Remove a finalizer, or all of them. A pending deletion is complete when no finalizer remains."""
        held = self.read(name)["metadata"].get("finalizers", [])
        kept = [other for other in held if finalizer and other != finalizer]
        return self._patch_metadata(name, {"finalizers": kept or None})

    def delete(self, name: str) -> bool:
        """Delete an object; return whether it was removed. With finalizers, it is only marked as terminating."""
        return self._store.delete(self.resource, name)[1]

    def discard(self, name: str) -> None:
        """Delete an object if it exists."""
        self._store.discard(self.resource, name)

    def _patch_metadata(self, name: str, change: Document) -> Document:
        patch = {"metadata": change}
        return self._store.modify(self.resource, name, lambda document: patches.merge(document, patch)).document()
