"""Simulates, step by step, what Milo's controllers do with projects and their control planes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from milo_sandbox.contexts import ORGANIZATION_LABEL
from milo_sandbox.names import Names
from milo_sandbox.objects import Objects
from milo_sandbox.resources import PROJECT_CONTROL_PLANES, PROJECTS, Document
from milo_sandbox.store import Store

PROJECT_NAME_LABEL = "resourcemanager.miloapis.com/project-name"
PROJECT_UID_LABEL = "resourcemanager.miloapis.com/project-uid"
OWNER_ANNOTATION = "resourcemanager.miloapis.com/owner-name"
PROJECT_FINALIZER = "resourcemanager.miloapis.com/project-controller"


class Milo:
    """The actions of Milo's controllers. Each changes a project, the ProjectControlPlane of the same name, or both."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.projects = Objects(store, PROJECTS)
        self.control_planes = Objects(store, PROJECT_CONTROL_PLANES)

    def found(self, name: str, organization: str, labels: Mapping[str, str]) -> None:
        """Create a project and its control plane, neither of them ready."""
        self.projects.create(
            name,
            labels={ORGANIZATION_LABEL: organization, **labels},
            finalizers=[PROJECT_FINALIZER],
            organization=organization,
        )
        self.begin(name)

    def begin(self, name: str) -> None:
        """Create a project's control plane if it has none."""
        if name not in self.control_planes:
            labels, annotations = _pointing_back(self.projects.read(name))
            self.control_planes.create(name, labels=labels, annotations=annotations)

    def provision(self, name: str) -> None:
        self.control_planes.set_condition(name, reason="Created", message="The control plane is up")
        self.projects.set_condition(name, reason="Ready", message="Project is ready")

    def fail(self, name: str, message: str) -> None:
        self.control_planes.set_condition(name, "False", reason="Degraded", message=message)
        self.projects.set_condition(name, "False", reason="ControlPlaneDegraded", message=message)

    def relabel(self, name: str, labels: Mapping[str, str]) -> None:
        self.projects.label(name, dict(labels))

    def suspend(self, name: str, reason: str) -> None:
        """Suspend a project, which stays ready, since its API still answers reads."""
        suspension = {
            "reason": reason,
            "suspendedAt": self._store.timestamp(),
            "reinstateAuthority": "Operator" if reason in {"Fraud", "Abuse"} else "Consumer",
        }
        listed = self.projects.read(name).get("status", {}).get("suspensions", [])
        self.projects.set_status(name, {"suspensions": [*listed, suspension]})
        message = f"Project is suspended due to active suspensions: {name}-{reason.lower()}"
        self.projects.set_condition(name, type_="Suspended", reason="Suspended", message=message)

    def reinstate(self, name: str) -> None:
        """Lift the suspension of a project. The project's status still lists the suspension."""
        self.projects.set_condition(name, "False", type_="Suspended", reason="Active", message="Project is active")

    def report_suspensions(self, name: str, listed: Sequence[Document], active: Sequence[str]) -> None:
        """Report all suspensions of a project, and the names of those in effect."""
        held = self.projects.read(name).get("status", {})
        if listed or held.get("suspensions"):
            self.projects.set_status(name, {"suspensions": list(listed)})
        message = "Project is active"
        if active:
            message = f"Project is suspended due to active suspensions: {', '.join(active)}"
        before = next((condition for condition in held.get("conditions", ()) if condition["type"] == "Suspended"), None)
        if before is None or before["message"] != message:
            status, reason = ("True", "Suspended") if active else ("False", "Active")
            self.projects.set_condition(name, status, type_="Suspended", reason=reason, message=message)

    def report_cleanup(self, name: str, reason: str, message: str, *, status: str = "True") -> None:
        self.projects.set_condition(name, status, type_="ResourceCleanup", reason=reason, message=message)

    def finish(self, name: str) -> None:
        """Complete the deletion of a project: delete its control plane, then remove its finalizers."""
        self.control_planes.discard(name)
        self.projects.unfinalize(name)

    def sweep(self, name: str) -> None:
        """Delete the control plane of a project that was deleted without finalizers."""
        if name not in self.projects:
            self.control_planes.discard(name)

    def populate(self, count: int, names: Names, *, ready: bool = True, finalizers: Iterable[str] = ()) -> list[str]:
        """Create many projects with their control planes, each object in a single write."""
        held = list(finalizers)
        fresh = iter(names.project, "")
        # A client may have created a project with a generated name.
        free = islice((name for name in fresh if name not in self.projects and name not in self.control_planes), count)
        wanted = [self._project(name, names, ready=ready, finalizers=held) for name in free]
        projects = self._store.load(PROJECTS, wanted)
        self._store.load(
            PROJECT_CONTROL_PLANES, [self._control_plane(record.document(), ready=ready) for record in projects]
        )
        return [record.name for record in projects]

    def _project(self, name: str, names: Names, *, ready: bool, finalizers: list[str]) -> Document:
        organization = names.organization()
        document: Document = {
            "apiVersion": PROJECTS.api_version,
            "kind": PROJECTS.kind,
            "metadata": {
                "name": name,
                "labels": {ORGANIZATION_LABEL: organization, **names.labels()},
                "finalizers": finalizers,
            },
            "spec": {"ownerRef": {"kind": "Organization", "name": organization}},
        }
        if ready:
            condition = self.projects.condition(reason="Ready", message="Project is ready")
            document["status"] = {"conditions": [condition]}
        return document

    def _control_plane(self, project: Document, *, ready: bool) -> Document:
        labels, annotations = _pointing_back(project)
        condition = (
            self.control_planes.condition(reason="Created", message="The control plane is up")
            if ready
            else self.control_planes.condition("False", reason="Creating", message="The control plane is being created")
        )
        return {
            "apiVersion": PROJECT_CONTROL_PLANES.api_version,
            "kind": PROJECT_CONTROL_PLANES.kind,
            "metadata": {"name": project["metadata"]["name"], "labels": labels, "annotations": annotations},
            "spec": {},
            "status": {"conditions": [condition]},
        }


def _pointing_back(project: Document) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and annotations by which a control plane identifies its project and the project's owner."""
    metadata = project["metadata"]
    names = {PROJECT_NAME_LABEL: metadata["name"], PROJECT_UID_LABEL: metadata["uid"]}
    return names, {OWNER_ANNOTATION: project["spec"]["ownerRef"]["name"]}
