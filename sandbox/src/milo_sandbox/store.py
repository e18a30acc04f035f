"""The sandbox's store: all objects, one version counter, and the rules for writes."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from random import Random
from typing import Any, Protocol
from uuid import UUID

import msgspec

from milo_sandbox import admission, metadata, refusals, server_side_apply
from milo_sandbox.admission import Part, Preconditions
from milo_sandbox.collection import StoredCollection
from milo_sandbox.garbage_collection import FINALIZERS
from milo_sandbox.records import RecordedChange, SandboxRecord, record_of, restamped
from milo_sandbox.resources import NAMESPACES, Cause, Document, ResourceDefinition
from milo_sandbox.server_side_apply import APPLY, Writer

Change = Callable[[Document], Any]
"""A function that returns the new object, given the current one."""


class StoreController(Protocol):
    """A controller. It is called after each committed write, and may make writes itself."""

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None: ...


class StoreBackup(msgspec.Struct, frozen=True):
    """A backup: the version and all objects."""

    version: int
    records: dict[ResourceDefinition, list[SandboxRecord]]


class Store:
    """Objects of the given resources. Every write to any of them increments the version."""

    def __init__(
        self,
        resources: Sequence[ResourceDefinition],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        random: Random | None = None,
        history_limit: int = 20_000,
        first_version: int = 1,
    ) -> None:
        self._history_limit = history_limit
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - UIDs need not be secret
        self._collections = {resource: StoredCollection(resource, history_limit) for resource in resources}
        self._listeners: list[Callable[[], None]] = []
        self._controllers: list[StoreController] = []
        self._unfollowed: list[tuple[ResourceDefinition, RecordedChange]] | None = None
        self.version = first_version

    @property
    def resources(self) -> tuple[ResourceDefinition, ...]:
        return tuple(collection.resource for collection in self._collections.values())

    def __contains__(self, resource: ResourceDefinition) -> bool:
        return resource in self._collections

    def __getitem__(self, resource: ResourceDefinition) -> StoredCollection:
        return self._collections[resource]

    def listen(self, listener: Callable[[], None]) -> None:
        """Call a listener after each change of the store. The listener must not write."""
        self._listeners.append(listener)

    def add_controller(self, controller: StoreController) -> None:
        """Call a controller after each committed write, in order, before the next request is served."""
        self._controllers.append(controller)

    def define(self, resource: ResourceDefinition) -> None:
        """Serve a resource, or change the definition of one. A change ends its watches, which have to list again."""
        if resource in self._collections:
            self._collections[resource].resource = resource
            self.version += 1  # counts the write of the definition, which may be in another store
            self._collections[resource].history.compact(self.version)
        else:
            self._collections[resource] = StoredCollection(resource, self._history_limit)
        self._announce()

    def undefine(self, resource: ResourceDefinition) -> None:
        """Stop serving a resource, and drop its objects."""
        del self._collections[resource]
        self._announce()

    # Reading

    def get(self, resource: ResourceDefinition, name: str, namespace: str = "") -> SandboxRecord:
        record = self._collections[resource].get(name, namespace)
        if record is None:
            raise refusals.not_found(resource, name)
        return record

    def find(self, resource: ResourceDefinition, key: str) -> SandboxRecord | None:
        """Return the object with this key; None if it does not exist."""
        namespace, _, name = key.rpartition("/")
        return self._collections[resource].get(name, namespace) if resource in self._collections else None

    def read(self, resource: ResourceDefinition, name: str, namespace: str = "") -> Document:
        return self.get(resource, name, namespace).document()

    # Writing

    def create(
        self,
        resource: ResourceDefinition,
        document: Document,
        *,
        namespace: str = "",
        strict: bool = False,
        dry_run: bool = False,
        writer: Writer | None = None,
    ) -> SandboxRecord:
        wanted = admission.enveloped(resource, document, namespace)
        given = wanted["metadata"]
        if given.get("resourceVersion"):
            raise refusals.bad_request("resourceVersion should not be set on objects to be created")
        if not given.get("name") and given.get("generateName"):
            given["name"] = f"{given['generateName']}{self._random.getrandbits(20):05x}"
        if resource.has_status:
            wanted.pop("status", None)
        applied = deepcopy(wanted) if writer is not None and writer.operation == APPLY else None
        admission.validate(resource, wanted, strict=strict)
        if namespace:
            self._check_namespace(resource, given["name"], namespace)
        if self._collections[resource].get(given["name"], namespace) is not None:
            raise refusals.already_exists(resource, given["name"])
        born = self._born(resource, wanted, namespace)
        if writer is not None:
            # A manager that creates an object by apply does not own the fields that are set by default.
            born = server_side_apply.create(resource, born, applied or born, writer, self.timestamp())
        return self._commit(resource, None, born, dry_run=dry_run)

    def modify(
        self,
        resource: ResourceDefinition,
        name: str,
        change: Change,
        *,
        namespace: str = "",
        part: Part = Part.MAIN,
        strict: bool = False,
        dry_run: bool = False,
        writer: Writer | None = None,
    ) -> SandboxRecord:
        """Write the result of `change`, unless it equals the current object."""
        before = self.get(resource, name, namespace)
        current = before.document()
        requested = change(deepcopy(current))
        if not isinstance(requested, dict):
            raise refusals.bad_request("the changed object must be a JSON object")
        wanted = admission.enveloped(resource, requested, namespace)
        admission.check_identity(resource, before, wanted["metadata"])
        after = admission.combined(resource, current, wanted, part)
        admission.validate(resource, after, strict=strict)
        if current["metadata"].get("deletionTimestamp"):
            admission.refuse_new_finalizers(resource, current, after)
        if writer is not None and writer.operation == APPLY:
            after["metadata"]["managedFields"] = wanted["metadata"]["managedFields"]
        elif writer is not None and after != current:
            after = server_side_apply.update(resource, current, after, writer, self.timestamp())
        if after == current:
            return before
        is_intent_changed = admission.intent(resource, after) != admission.intent(resource, current)
        if part is Part.MAIN and resource.counts_generations and is_intent_changed:
            after["metadata"]["generation"] += 1
        if after["metadata"].get("deletionTimestamp") and not after["metadata"].get("finalizers"):
            # Watches report the last stored object; the response has the one with this write's changes.
            self._commit(resource, before, current, deleted=True, dry_run=dry_run)
            return record_of(after, before.version)
        return self._commit(resource, before, after, dry_run=dry_run)

    def apply(
        self,
        resource: ResourceDefinition,
        name: str,
        document: Document,
        *,
        namespace: str = "",
        part: Part = Part.MAIN,
        strict: bool = False,
        dry_run: bool = False,
        manager: str,
        force: bool = False,
    ) -> SandboxRecord:
        """Create or change an object by server-side apply."""
        wanted = admission.enveloped(resource, document, namespace)
        if wanted["metadata"].setdefault("name", name) != name:
            raise refusals.bad_request(f"the name of the object does not match the name on the URL ({name})")
        if wanted["metadata"].get("managedFields"):
            raise refusals.bad_request("metadata.managedFields must be nil")
        resource.prepare(wanted)
        writer = Writer(name=manager, operation=APPLY, subresource="status" if part is Part.STATUS else "")
        if part is Part.MAIN and self._collections[resource].get(name, namespace) is None:
            return self.create(resource, wanted, namespace=namespace, strict=strict, dry_run=dry_run, writer=writer)

        def change(live: Document) -> Document:
            now = self.timestamp()
            return server_side_apply.apply(resource, live, wanted, writer, part=part, force=force, now=now)

        return self.modify(
            resource, name, change, namespace=namespace, part=part, strict=strict, dry_run=dry_run, writer=writer
        )

    def replace(
        self,
        resource: ResourceDefinition,
        name: str,
        document: Document,
        *,
        namespace: str = "",
        part: Part = Part.MAIN,
        strict: bool = False,
        dry_run: bool = False,
        writer: Writer | None = None,
    ) -> SandboxRecord:
        """Replace an object, as PUT does."""
        given = document.get("metadata")
        if not resource.allows_blind_update and not (isinstance(given, dict) and given.get("resourceVersion")):
            cause = Cause(
                reason="FieldValueInvalid",
                message="Invalid value: 0x0: must be specified for an update",
                field="metadata.resourceVersion",
            )
            raise refusals.invalid(resource, name, [cause], kind=resource.plural)
        return self.modify(
            resource,
            name,
            lambda _: document,
            namespace=namespace,
            part=part,
            strict=strict,
            dry_run=dry_run,
            writer=writer,
        )

    def delete(
        self,
        resource: ResourceDefinition,
        name: str,
        *,
        namespace: str = "",
        preconditions: Preconditions | None = None,
        propagation: str = "",
        dry_run: bool = False,
    ) -> tuple[SandboxRecord, bool]:
        """Delete an object; return it, and whether it was removed. An object with finalizers, or a namespace that
        contains objects, is only marked as terminating."""
        before = self.get(resource, name, namespace)
        if preconditions:
            admission.check_preconditions(preconditions, resource, before)
        document = before.document()
        marked = document["metadata"]
        if marked.get("deletionTimestamp"):
            return before, False
        if propagation in FINALIZERS:
            marked["finalizers"] = [*marked.get("finalizers", ()), FINALIZERS[propagation]]
        if not marked.get("finalizers") and not (resource == NAMESPACES and self._contents(name)):
            return self._commit(resource, before, document, deleted=True, dry_run=dry_run), True
        marked["deletionTimestamp"] = self.timestamp()
        marked["deletionGracePeriodSeconds"] = 0
        if resource.counts_generations:
            marked["generation"] += 1
        if resource == NAMESPACES:
            document["status"] = {"phase": "Terminating"}
        record = self._commit(resource, before, document, dry_run=dry_run)
        if resource == NAMESPACES and not dry_run:
            for contained, inside in self._contents(name):
                self.discard(contained, inside.key)
        return record, False

    # Writes of controllers

    def discard(self, resource: ResourceDefinition, key: str, *, propagation: str = "") -> None:
        """Delete an object if it exists."""
        if record := self.find(resource, key):
            self.delete(resource, record.name, namespace=record.namespace, propagation=propagation)

    def edit_metadata(self, resource: ResourceDefinition, key: str, changes: Document) -> None:
        """Replace fields of an object's metadata."""
        self._edit(resource, key, lambda it: it | {"metadata": it["metadata"] | changes}, Part.MAIN)

    def edit_status(self, resource: ResourceDefinition, key: str, status: Document) -> None:
        """Replace an object's status."""
        self._edit(resource, key, lambda it: it | {"status": status}, Part.STATUS)

    def _edit(self, resource: ResourceDefinition, key: str, change: Change, part: Part) -> None:
        namespace, _, name = key.rpartition("/")
        self.modify(resource, name, change, namespace=namespace, part=part)

    def load(self, resource: ResourceDefinition, documents: Iterable[Document]) -> list[SandboxRecord]:
        """Create many objects with their status, without validation and without calls of controllers."""
        events = []
        for document in documents:
            if self._collections[resource].get(document["metadata"]["name"]) is not None:
                raise refusals.already_exists(resource, document["metadata"]["name"])
            self.version += 1
            record = record_of(self._born(resource, document, ""), self.version)
            events.append(RecordedChange(version=self.version, before=None, record=record))
        self._collections[resource].extend(events)
        self._announce()
        return [event.record for event in events]

    # Faults of the store

    def compact(self) -> None:
        """Drop the history, so that no watch can resume from a version seen so far."""
        # Increment first, as a write to another resource would: compaction at the last version would drop nothing.
        self.version += 1
        for collection in self._collections.values():
            collection.history.compact(self.version)
        self._announce()

    def snapshot(self) -> StoreBackup:
        return StoreBackup(self.version, {resource: list(kept) for resource, kept in self._collections.items()})

    def restore(self, snapshot: StoreBackup) -> None:
        """Restore a backup, including its version."""
        self.version = snapshot.version
        for resource, records in snapshot.records.items():
            self._collections[resource] = StoredCollection(resource, self._history_limit, records, snapshot.version)
        self._announce()

    def plant(self, resource: ResourceDefinition, name: str, body: bytes) -> None:
        """Store arbitrary bytes as an object, as a corrupt or hostile server would serve it."""
        self.version += 1
        before = self._collections[resource].get(name)
        uid, labels = (before.uid, before.labels) if before else ("", {})
        record = SandboxRecord(key=name, uid=uid, version=self.version, labels=labels, body=body)
        self._collections[resource].apply(RecordedChange(version=self.version, before=before, record=record))
        self._announce()

    def report_recreated(self, resource: ResourceDefinition, name: str, namespace: str = "") -> None:
        """Report a live object to watches as deleted and added again."""
        live = self.get(resource, name, namespace)
        self.version += 1
        gone = RecordedChange(version=self.version, before=live, record=restamped(live, self.version), deleted=True)
        self.version += 1
        back = RecordedChange(version=self.version, before=None, record=restamped(live, self.version))
        self._collections[resource].apply(gone)
        self._collections[resource].apply(back)
        self._announce()

    # Admission and commit

    def _born(self, resource: ResourceDefinition, document: Document, namespace: str) -> Document:
        given = document["metadata"]
        stamped: Document = {"name": given["name"]}
        if namespace:
            stamped["namespace"] = namespace
        stamped["uid"] = str(UUID(int=self._random.getrandbits(128), version=4))
        stamped["creationTimestamp"] = self.timestamp()
        if resource.counts_generations:
            stamped["generation"] = 1
        stamped |= {field: given[field] for field in metadata.WRITABLE if given.get(field)}
        return {**document, "metadata": stamped}

    def _commit(
        self,
        resource: ResourceDefinition,
        before: SandboxRecord | None,
        after: Document,
        *,
        deleted: bool = False,
        dry_run: bool,
    ) -> SandboxRecord:
        """Commit a write, unless it is a dry run, and call the listeners and controllers."""
        if dry_run:
            return record_of(after, before.version if before else 0)
        self.version += 1
        record = record_of(after, self.version)
        event = RecordedChange(version=self.version, before=before, record=record, deleted=deleted)
        self._collections[resource].apply(event)
        self._announce()
        self._follow(resource, event)
        return record

    def _follow(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        """Call the controllers, including for the writes that they make themselves."""
        if self._unfollowed is not None:
            self._unfollowed.append((resource, event))
            return
        self._unfollowed = [(resource, event)]
        try:
            for written, its_event in self._unfollowed:  # controllers append to the list when they write
                self._finish_namespace(written, its_event)
                for controller in self._controllers:
                    controller.after(written, its_event)
        finally:
            self._unfollowed = None

    def _announce(self) -> None:
        for listener in self._listeners:
            listener()

    def _contents(self, namespace: str) -> list[tuple[ResourceDefinition, SandboxRecord]]:
        namespaced = [collection for collection in self._collections.values() if collection.resource.namespaced]
        return [
            (collection.resource, record)
            for collection in namespaced
            for record in collection
            if record.namespace == namespace
        ]

    def _check_namespace(self, resource: ResourceDefinition, name: str, namespace: str) -> None:
        if "deletionTimestamp" in self.read(NAMESPACES, namespace)["metadata"]:
            raise refusals.namespace_terminating(resource, name, namespace)

    def _finish_namespace(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        """Remove a terminating namespace whose last object was removed."""
        namespace = event.record.namespace
        if not event.deleted or not namespace or self._contents(namespace):
            return
        before = self.get(NAMESPACES, namespace)
        document = before.document()
        if "deletionTimestamp" in document["metadata"] and not document["metadata"].get("finalizers"):
            self._commit(NAMESPACES, before, document, deleted=True, dry_run=False)

    def timestamp(self) -> str:
        return self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
