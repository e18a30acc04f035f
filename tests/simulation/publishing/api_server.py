"""The API server of published objects: preconditions, server-side apply of one manager, finalizers, other clients."""

import copy
from collections.abc import Callable
from typing import Any

import msgspec

from milo_publishing.errors import TargetRefused
from milo_publishing.objects import INCARNATION, MANAGED_BY, Identity, ObservedObject
from milo_publishing.records import Apply, Create, DeleteObject, ReadObject, Request

Document = dict[str, Any]


class ApiServer:
    """Objects by name. `deleted` is called with each object that a publisher deletes, and `written` with each that it
    writes, before and after."""

    def __init__(
        self,
        deleted: Callable[[Document], None],
        written: Callable[[Document, Document], None],
        breach: Callable[[str], None],
    ) -> None:
        self.objects: dict[str, Document] = {}
        self.written: dict[str, dict[str, str]] = {}
        """The annotations that publishers have written last, by the UID of each object that they have created."""
        self.has_versions = True
        """Whether the preconditions on resource versions are verified; a mutant has none."""
        self.hides_finalizers = False
        """Whether a deletion is answered as if the object were gone; a mutant does that."""
        self._deleted = deleted
        self._written = written
        self._breach = breach
        self._numbers = 0

    def own(self) -> dict[str, Document]:
        """Return the objects that publishers have created, and those with their label."""
        return {
            name: obj for name, obj in self.objects.items() if is_own(obj) or obj["metadata"]["uid"] in self.written
        }

    def list(self, identity: Identity | None = None) -> list[ObservedObject]:
        """Return the objects with the labels of a publisher, or of any."""
        labels = identity.labels() if identity else {}
        return [
            _observed(obj)
            for obj in self.objects.values()
            if is_own(obj) and labels.items() <= obj["metadata"]["labels"].items()
        ]

    def apply(self, request: Request) -> ObservedObject | None:
        """Perform a request of a publisher. Raises TargetRefused."""
        match request:
            case ReadObject(name):
                return _observed(self.objects[name]) if name in self.objects else None
            case Create(body):
                name = body["metadata"]["name"]
                if name in self.objects:
                    raise TargetRefused("it exists", 409)
                created = self.put(name, body)
                self.written[created["metadata"]["uid"]] = body["metadata"]["annotations"]
                return _observed(created)
            case DeleteObject(name, uid, version):
                if name not in self.objects:
                    return None
                found = self._unchanged(name, uid, version)
                self._deleted(found)
                left = self.delete(name)
                return None if self.hides_finalizers else left
            case Apply(uid, version, body, status):
                name = (body or status or {})["metadata"]["name"]
                found = self._unchanged(name, uid, version)
                metadata = {**found["metadata"], **({} if body is None else body["metadata"])}
                if body is not None:
                    self.written[uid] = body["metadata"]["annotations"]
                    metadata["labels"] = {**_others(found), **body["metadata"]["labels"]}
                changed = {**found, **(body or {}), "metadata": metadata}
                after = self.put(name, changed | ({} if status is None else {"status": status["status"]}))
                self._written(found, after)
                return _observed(after)
            case _:
                raise AssertionError(request)

    def put(self, name: str, document: Document) -> Document:
        """Create or change an object, as any client."""
        stored = copy.deepcopy(document)
        metadata = stored["metadata"]
        metadata["uid"] = self.objects.get(name, {}).get("metadata", {}).get("uid") or self._number()
        before = self.objects.get(name, {}).get("metadata", {}).get("resourceVersion", "")
        if {**metadata, "resourceVersion": before} != self.objects.get(name, {}).get("metadata") or any(
            stored.get(key) != self.objects[name].get(key) for key in ("spec", "status", "data")
        ):
            metadata["resourceVersion"] = self._number()
        self.objects[name] = stored
        return stored

    def touch(self, name: str, labels: dict[str, str]) -> None:
        """Change labels, as another client."""
        found = copy.deepcopy(self.objects[name])
        found["metadata"]["labels"] = {**(found["metadata"].get("labels") or {}), **labels}
        self.put(name, found)

    def change(self, name: str, field: str, key: str, value: str | None) -> None:
        """Change or remove a label or an annotation, as another client."""
        found = copy.deepcopy(self.objects[name])
        found["metadata"][field] = {**(found["metadata"].get(field) or {}), key: value}
        if value is None:
            del found["metadata"][field][key]
        self.put(name, found)

    def add_finalizer(self, name: str) -> None:
        found = copy.deepcopy(self.objects[name])
        if "deletionTimestamp" not in found["metadata"]:
            found["metadata"]["finalizers"] = ["example.com/slow"]
            self.put(name, found)

    def remove_finalizers(self) -> None:
        for name, obj in [*self.objects.items()]:
            if obj["metadata"].pop("finalizers", None) and "deletionTimestamp" in obj["metadata"]:
                del self.objects[name]

    def delete(self, name: str) -> ObservedObject | None:
        """Delete an object, as any client: at once, or when its finalizers are gone."""
        found = copy.deepcopy(self.objects[name])
        if not found["metadata"].get("finalizers"):
            del self.objects[name]
            return None
        found["metadata"]["deletionTimestamp"] = "now"
        return _observed(self.put(name, found))

    def _unchanged(self, name: str, uid: str, version: str) -> Document:
        found = self.objects.get(name)
        if found is None:
            raise TargetRefused("it does not exist", 404)
        metadata = found["metadata"]
        if metadata["uid"] != uid or (self.has_versions and metadata["resourceVersion"] != version):
            raise TargetRefused("it has changed", 409)
        if name not in self.own():
            self._breach(f"{name}, an object of another program, is written or deleted")
        return found

    def _number(self) -> str:
        self._numbers += 1
        return str(self._numbers)


def is_own(document: Document) -> bool:
    return MANAGED_BY in (document["metadata"].get("labels") or {})


def incarnation(document: Document) -> str:
    return str((document["metadata"].get("annotations") or {}).get(INCARNATION, ""))


def _others(document: Document) -> Document:
    return {key: value for key, value in document["metadata"].get("labels", {}).items() if key.startswith("other")}


def _observed(document: Document) -> ObservedObject:
    return ObservedObject.of(msgspec.json.encode(document))
