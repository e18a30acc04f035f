"""The API of each project's control plane, created on the first request.

It serves namespaces, ConfigMaps, Secrets, service accounts, events, leases, and the kinds whose
CustomResourceDefinitions it holds. It collects garbage, and tracks the managers of fields.
"""

from collections.abc import Callable
from functools import partial

from milo_sandbox import refusals
from milo_sandbox.api import Api
from milo_sandbox.calls import Call
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.definitions import Definitions
from milo_sandbox.garbage_collection import GarbageCollector
from milo_sandbox.records import RecordedChange
from milo_sandbox.refusals import Cause
from milo_sandbox.resources import CONTROL_PLANE, NAMESPACES, PROJECTS, Document, ResourceDefinition
from milo_sandbox.store import Store

_DEFAULT, _SYSTEM = "default", "milo-system"


class ControlPlanes:
    """The APIs by project name. As in Milo, a name has one whether or not there is such a project.

    A recreated project keeps what its predecessor left: its cluster-scoped objects and the namespace `default`.
    """

    def __init__(self, milo: Store, new_api: Callable[[Store], Api]) -> None:
        self._milo = milo
        self._new_api = new_api
        self._apis: dict[str, Api] = {}
        milo.add_controller(self)

    def opened(self) -> list[Api]:
        return list(self._apis.values())

    def of(self, project: str) -> Api:
        """Return the API under a name."""
        api = self._apis.get(project)
        if api is None:
            api = self._apis[project] = self._new_api(_furnished())
            api.admit = partial(self._refuse_if_suspended, project)
        namespaces = api.store[NAMESPACES]
        if self._milo[PROJECTS].get(project) is not None and namespaces.get(_DEFAULT) is None:
            api.store.create(NAMESPACES, {"metadata": {"name": _DEFAULT}})
        return api

    def after(self, resource: ResourceDefinition, event: RecordedChange) -> None:
        """Empty the control plane of a project that ended, as Milo does before a project ends."""
        if resource == PROJECTS and event.deleted and (api := self._apis.get(event.record.name)) is not None:
            _purge(api.store)

    def _refuse_if_suspended(self, project: str, call: Call, before: Document | None) -> None:
        """Refuse to create or change an object of a suspended project, unless it is terminating."""
        if before is not None and before["metadata"].get("deletionTimestamp"):
            return
        record = self._milo[PROJECTS].get(project)
        if record is not None and _is_suspended(document := record.document()):
            raise _suspended(project, document, call)


def _furnished() -> Store:
    store = Store((*CONTROL_PLANE, CUSTOM_RESOURCE_DEFINITIONS), history_limit=1_000)
    store.add_controller(GarbageCollector(store))
    store.add_controller(Definitions(store))
    store.create(NAMESPACES, {"metadata": {"name": _SYSTEM}})
    return store


def _purge(store: Store) -> None:
    for resource in store.resources:
        if resource.namespaced:
            for record in list(store[resource]):
                store.discard(resource, record.key)
    for record in list(store[NAMESPACES]):
        if record.name != _DEFAULT:
            store.discard(NAMESPACES, record.key)


def _is_suspended(project: Document) -> bool:
    conditions = project.get("status", {}).get("conditions", ())
    return any(each.get("type") == "Suspended" and each.get("status") == "True" for each in conditions)


def _suspended(project: str, document: Document, call: Call) -> refusals.RefusalError:
    reasons = sorted({each["reason"] for each in document["status"].get("suspensions", ())})
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
