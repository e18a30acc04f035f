"""Milo's controllers of projects and of their suspensions, for sandboxes in which nothing else simulates them.

Unlike Milo's, they act immediately after each write. Only leftovers of a deletion are purged periodically.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

from milo_sandbox.control_planes import DEFAULT_NAMESPACE, ControlPlanes, purge
from milo_sandbox.milo import PROJECT_FINALIZER, Milo
from milo_sandbox.records import RecordedChange, SandboxRecord
from milo_sandbox.resources import (
    NAMESPACES,
    PROJECT_CONTROL_PLANES,
    PROJECT_SUSPENSIONS,
    PROJECTS,
    Document,
    ResourceDefinition,
)
from milo_sandbox.store import Store

PURGED_EVERY_S = 30.0
_MOST_BLOCKERS = 10
_WAITING = "Waiting for project resources to be removed"
_AWAITING = "CleanupAwaitingCompletion"


class ControllerManager:
    """The project controller, which creates and deletes control planes, and the controller of suspensions."""

    def __init__(self, store: Store, milo: Milo, control_planes: ControlPlanes) -> None:
        self._store = store
        self._milo = milo
        self._control_planes = control_planes
        self._queue: dict[str, None] = {}
        self._is_working = False
        control_planes.changed = self._enqueue
        store.add_controller(self)

    async def run(self) -> None:
        """Periodically purge the projects that are being deleted, until canceled."""
        while True:
            await asyncio.sleep(PURGED_EVERY_S)
            self.purge()

    def purge(self) -> None:
        """Delete what appeared in projects since their deletion began, as Milo does every 30 seconds."""
        for name in self._milo.projects.names():
            if self._is_awaiting(self._milo.projects.read(name)):
                purge(self._control_planes.of(name).store)

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        """Reconcile the project that a write affects."""
        if resource == PROJECT_SUSPENSIONS:
            self._enqueue(event.record.document()["spec"]["projectRef"]["name"])
        elif resource in (PROJECTS, PROJECT_CONTROL_PLANES):
            self._enqueue(event.record.name)

    def _enqueue(self, name: str) -> None:
        """Reconcile a project now, or after the one that is being reconciled."""
        self._queue[name] = None
        if self._is_working:
            return
        self._is_working = True
        try:
            while self._queue:
                self._reconcile(next(iter(self._queue)))
        finally:
            self._is_working = False

    def _reconcile(self, name: str) -> None:
        del self._queue[name]
        if name not in self._milo.projects:
            return
        if self._milo.projects.read(name)["metadata"].get("deletionTimestamp"):
            self._end(name)
        else:
            self._begin(name)
            self._propagate(name)

    # The project controller

    def _begin(self, name: str) -> None:
        metadata = self._milo.projects.read(name)["metadata"]
        if PROJECT_FINALIZER not in metadata.get("finalizers", ()):
            self._milo.projects.finalize(name, PROJECT_FINALIZER)
        self._milo.begin(name)
        self._control_planes.of(name)
        # Unlike Milo's controllers, leave a project that a test made not ready as it is.
        if _condition(self._milo.projects.read(name), "Ready").get("status") not in ("True", "False"):
            self._milo.provision(name)

    def _end(self, name: str) -> None:
        project = self._milo.projects.read(name)
        if PROJECT_FINALIZER not in project["metadata"].get("finalizers", ()):
            return
        if not self._is_awaiting(project):
            self._milo.report_cleanup(name, "CleanupStarted", "Issuing delete commands for project resources")
            purge(self._control_planes.of(name).store)
            self._milo.report_cleanup(name, _AWAITING, _WAITING)
            return
        blockers = sorted(_blockers(self._control_planes.of(name).store))
        if blockers:
            named = [text for _, text in blockers[:_MOST_BLOCKERS]]
            more = [f"and {len(blockers) - len(named)} more"] if len(blockers) > len(named) else []
            message = f"{_WAITING}: {'; '.join([*named, *more])}"
            if _condition(project, "ResourceCleanup")["message"] != message:
                self._milo.report_cleanup(name, _AWAITING, message)
            return
        self._milo.report_cleanup(name, "CleanupComplete", "Project resources have been deleted", status="False")
        self._milo.control_planes.discard(name)
        self._milo.projects.unfinalize(name, PROJECT_FINALIZER)

    def _is_awaiting(self, project: Document) -> bool:
        cleanup = _condition(project, "ResourceCleanup")
        return (cleanup.get("status"), cleanup.get("reason")) == ("True", _AWAITING)

    # The controller that propagates suspensions

    def _propagate(self, name: str) -> None:
        """Write a project's suspensions into its status."""
        found = [
            suspension for suspension in map(SandboxRecord.document, self._store[PROJECT_SUSPENSIONS])
            if suspension["spec"]["projectRef"]["name"] == name
        ]  # fmt: skip
        active = sorted(
            suspension["metadata"]["name"]
            for suspension in found
            if suspension.get("status", {}).get("phase", "Active") == "Active"
        )
        self._milo.report_suspensions(name, sorted(map(_listed, found), key=_reason_and_time), active)


def _blockers(store: Store) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yield a sort key and a text for each object that delays a deletion, to list them in a message."""
    for record in store[NAMESPACES]:
        if record.name != DEFAULT_NAMESPACE:
            yield (record.name, "", ""), f'namespace "{record.name}" is still terminating{_remains(store, record.name)}'
    for resource in store.resources:
        for record in store[resource]:
            if record.namespace == DEFAULT_NAMESPACE:
                finalizers = record.document()["metadata"].get("finalizers", ())
                held = f" (finalizers: {', '.join(finalizers)})" if finalizers else ""
                key = record.namespace, resource.plural, record.name
                yield key, f'{resource.plural} "{record.namespace}/{record.name}"{held}'


def _remains(store: Store, namespace: str) -> str:
    """Return the namespace controller's message about a terminating namespace."""
    left, held = [], dict[str, int]()
    for resource in store.resources:
        inside = [record.document() for record in store[resource] if record.namespace == namespace]
        if inside:
            left.append(f"{resource.plural}.{resource.group} has {len(inside)} resource instances")
        for finalizer in (name for document in inside for name in document["metadata"].get("finalizers", ())):
            held[finalizer] = held.get(finalizer, 0) + 1
    if not left:
        return ""
    parts = [f"Some resources are remaining: {', '.join(sorted(left))}"]
    if held:
        counts = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(held.items()))
        parts.append(f"Some content in the namespace has finalizers remaining: {counts}")
    return f" ({'; '.join(parts)})"


def _condition(project: Document, kind: str) -> Document:
    conditions: list[Document] = project.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _listed(suspension: Document) -> Document:
    spec = suspension["spec"]
    suspended_at = suspension["metadata"]["creationTimestamp"]
    return {"reason": spec["reason"], "suspendedAt": suspended_at, "reinstateAuthority": spec["reinstateAuthority"]}


def _reason_and_time(suspension: dict[str, Any]) -> tuple[str, str]:
    return suspension["reason"], suspension["suspendedAt"]
