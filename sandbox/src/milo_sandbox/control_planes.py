"""The API of each project's control plane, created on the first request.

It serves namespaces, ConfigMaps, Secrets, service accounts, events, leases, and the kinds whose
CustomResourceDefinitions it holds. It collects garbage, and tracks the managers of fields.
"""

from collections.abc import Callable

from milo_sandbox import refusals
from milo_sandbox.api import Api
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.definitions import Definitions
from milo_sandbox.garbage_collection import GarbageCollector
from milo_sandbox.refusals import Cause
from milo_sandbox.resources import CONTROL_PLANE, NAMESPACES, PROJECTS, Document
from milo_sandbox.store import Store

_FIRST_NAMESPACES = ("default", "kube-system")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class ControlPlanes:
    """The APIs by project UID: a recreated project has none of the objects of its predecessor."""

    def __init__(self, milo: Store, new_api: Callable[[Store], Api]) -> None:
        self._milo = milo
        self._new_api = new_api
        self._apis: dict[str, tuple[str, Api]] = {}

    def opened(self) -> list[Api]:
        return [api for _, api in self._apis.values()]

    def of(self, project: str, *, method: str) -> Api:
        """Return the API of a project, or raise a refusal if there is none, or the project is suspended."""
        record = self._milo[PROJECTS].get(project)
        if record is None:
            self._apis.pop(project, None)
            raise refusals.not_found(PROJECTS, project)
        if method not in _READING and _is_suspended(record.document()):
            raise _suspended(project)
        uid, api = self._apis.get(project, ("", None))
        if api is None or uid != record.uid:
            api = self._new_api(_furnished())
            self._apis[project] = (record.uid, api)
        return api


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


def _suspended(project: str) -> refusals.RefusedError:
    return refusals.forbidden(
        f'project "{project}"',
        "it is suspended, and a suspended project is read-only",
        details={"name": project, "group": PROJECTS.group, "kind": PROJECTS.plural},
        causes=[Cause(reason="ProjectSuspended", message="the project is suspended")],
    )
