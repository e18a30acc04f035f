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
from milo_sandbox.refusals import Cause
from milo_sandbox.resources import CONTROL_PLANE, NAMESPACES, PROJECTS, Document
from milo_sandbox.store import Store

_FIRST_NAMESPACES = ("default", "kube-system")


class ControlPlanes:
    """The APIs by project UID: a recreated project has none of the objects of its predecessor."""

    def __init__(self, milo: Store, new_api: Callable[[Store], Api]) -> None:
        self._milo = milo
        self._new_api = new_api
        self._apis: dict[str, tuple[str, Api]] = {}

    def opened(self) -> list[Api]:
        return [api for _, api in self._apis.values()]

    def of(self, project: str) -> Api:
        """Return the API of a project, or raise a refusal if there is none."""
        record = self._milo[PROJECTS].get(project)
        if record is None:
            self._apis.pop(project, None)
            raise refusals.not_found(PROJECTS, project)
        uid, api = self._apis.get(project, ("", None))
        if api is None or uid != record.uid:
            api = self._new_api(_furnished())
            api.admit = partial(self._refuse_if_suspended, project)
            self._apis[project] = (record.uid, api)
        return api

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
    for name in _FIRST_NAMESPACES:
        store.create(NAMESPACES, {"metadata": {"name": name}})
    return store


def _is_suspended(project: Document) -> bool:
    conditions = project.get("status", {}).get("conditions", ())
    return any(each.get("type") == "Suspended" and each.get("status") == "True" for each in conditions)


def _suspended(project: str, document: Document, call: Call) -> refusals.RefusedError:
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
