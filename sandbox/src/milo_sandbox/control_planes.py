"""The API of each project's control plane, created on the first request.

It serves namespaces, ConfigMaps, Secrets, events, leases, other kinds of Kubernetes and Milo, for which no controller
runs, and the kinds of all CustomResourceDefinitions, which the root stores. It garbage-collects dependents, and tracks
field managers.
"""

from collections.abc import Callable, Sequence
from functools import partial

from milo_sandbox import refusals
from milo_sandbox.api import Api
from milo_sandbox.calls import Call
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.definitions import Definitions
from milo_sandbox.garbage_collection import GarbageCollector
from milo_sandbox.records import RecordedChange
from milo_sandbox.resources import (
    BUILT_IN,
    CONTROL_PLANE,
    NAMESPACES,
    PROJECTS,
    UNUSED,
    Cause,
    Document,
    ResourceDefinition,
)
from milo_sandbox.store import Store

DEFAULT_NAMESPACE = "default"
_NAMESPACES = {DEFAULT_NAMESPACE: "miloapis.com/project-default", "milo-system": "miloapis.com/system"}
"""The namespaces that each project has from the start, each with a label."""


class ControlPlanes:
    """The APIs by project name. As in Milo, every name has an API, whether or not the project exists.

    A recreated project keeps what its predecessor left: its cluster-scoped objects and the namespace `default`.
    """

    def __init__(
        self, milo: Store, new_api: Callable[[Store], Api], *, served: Sequence[ResourceDefinition] = ()
    ) -> None:
        """`served`: further kinds that each control plane serves."""
        self._served = served
        self._milo = milo
        self._new_api = new_api
        self._apis: dict[str, Api] = {}
        self._had_project: set[str] = set()
        self._definitions = Definitions(milo, lambda: [api.store for api in self.opened()])
        milo.add_controller(self._definitions)
        self.changed: Callable[[str], None] = lambda _: None
        """Called with the name of the project after each write to its control plane."""

    def opened(self) -> list[Api]:
        return list(self._apis.values())

    def of(self, project: str) -> Api:
        """Return the API of a project, and create it at the first request."""
        api = self._apis.get(project)
        if api is None:
            api = self._apis[project] = self._new_api(self._new_store(project))
            api.project = project
            api.admit = partial(self._refuse_if_suspended, project)
        if project not in self._had_project and self._milo[PROJECTS].get(project) is not None:
            self._had_project.add(project)
            for name, label in _NAMESPACES.items():
                if api.store[NAMESPACES].get(name) is None:
                    api.store.create(NAMESPACES, {"metadata": {"name": name, "labels": {label: "true"}}})
        return api

    def _new_store(self, project: str) -> Store:
        # The root serves CustomResourceDefinitions; here they only appear in the discovery documents.
        store = Store(
            (*CONTROL_PLANE, *self._served, *BUILT_IN, *UNUSED, CUSTOM_RESOURCE_DEFINITIONS), history_limit=1_000
        )
        store.add_controller(GarbageCollector(store))
        store.add_controller(_DefinedAtRoot(self._milo, store, self._definitions))
        store.add_controller(_Changed(partial(self._changed, project)))
        self._definitions.serve_in(store)
        return store

    def _changed(self, project: str) -> None:
        self.changed(project)

    def _refuse_if_suspended(self, project: str, call: Call, before: Document | None) -> None:
        """Refuse to create or change an object of a suspended project, unless the object is terminating."""
        if before is not None and before["metadata"].get("deletionTimestamp"):
            return
        record = self._milo[PROJECTS].get(project)
        if record is not None and _is_suspended(document := record.document()):
            raise _suspended(project, document, call)


def purge(store: Store) -> None:
    """Delete the namespaced objects, and all namespaces but `default`, which cannot be deleted."""
    for resource in store.resources:
        if resource.namespaced:
            for record in list(store[resource]):
                store.discard(resource, record.key)
    for record in list(store[NAMESPACES]):
        if record.name != DEFAULT_NAMESPACE:
            store.discard(NAMESPACES, record.key)


class _DefinedAtRoot:
    """A controller that moves CustomResourceDefinitions from a control plane to the root, which alone stores them."""

    def __init__(self, root: Store, store: Store, definitions: Definitions) -> None:
        self._root = root
        self._store = store
        self._definitions = definitions

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        if resource != CUSTOM_RESOURCE_DEFINITIONS:
            self._definitions.after(resource, event)
        elif not event.deleted:
            name, spec = event.record.name, event.record.document()["spec"]
            self._store.discard(resource, name)
            if self._root.find(resource, name) is None:
                self._root.create(resource, {"metadata": {"name": name}, "spec": spec})
            else:
                self._root.modify(resource, name, lambda it: it | {"spec": spec})


class _Changed:
    """A controller that reports each write."""

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        self._report()


def _is_suspended(project: Document) -> bool:
    conditions = project.get("status", {}).get("conditions", ())
    return any(condition.get("type") == "Suspended" and condition.get("status") == "True" for condition in conditions)


def _suspended(project: str, document: Document, call: Call) -> refusals.RefusalError:
    reasons = sorted({suspension["reason"] for suspension in document["status"].get("suspensions", ())})
    why = (
        f'project "{project}" is suspended ({", ".join(reasons) or "unspecified"}) and cannot accept new updates while '
        "suspended"
    )
    resource = call.resource
    return refusals.forbidden(
        f'{resource.qualified} "{call.name}"',
        why,
        details={"name": call.name, "group": resource.group, "kind": resource.plural},
        causes=[Cause(reason="ProjectSuspended", message=why)],
    )
