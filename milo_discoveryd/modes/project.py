"""Mode `project`: watches Project in the core Milo API, which serves each control plane under a path."""

from typing import ClassVar

from msgspec.structs import replace

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import ObjectFields, Observation, Ready, Refused
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.modes.context import ContextKind
from milo_discoveryd.modes.mode import Setting
from milo_discoveryd.modes.reading import (
    DNS_SUBDOMAIN,
    ORGANIZATION_LABEL,
    MalformedError,
    checked,
    checked_organization,
    deletion_message,
    deletion_requested_at,
    labels,
    malformed,
    not_ready,
    passed_on,
    readiness,
    suspensions,
)

CONDITION = "Ready"
PROJECTS = Resource("resourcemanager.miloapis.com", "v1alpha1", "projects")


class ProjectMode:
    object_type: ClassVar = KubeObject
    contexts = (ContextKind.ROOT, ContextKind.ORGANIZATION)

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._place = (f"{setting.project_endpoint}{PROJECTS.path}/", "/control-plane")
        self._organization = setting.context.name if setting.context.kind is ContextKind.ORGANIZATION else ""
        # Milo up to v0.32.5 selects the organization's projects in lists only, and not in watches.
        selector = f"{ORGANIZATION_LABEL}={self._organization}" if self._organization else ""
        self.resource = replace(PROJECTS, label_selector=selector)

    def place_of(self, name: str, project_uid: str) -> tuple[str, ...]:
        checked(name, DNS_SUBDOMAIN, 253, "the name")
        return self._place

    def observe(self, obj: KubeObject) -> Observation:
        metadata = obj.metadata
        try:
            name = checked(metadata.name, DNS_SUBDOMAIN, 253, "the name")
            organization = checked_organization(_organization(obj))
            if self._organization and organization != self._organization:
                return self._refused(obj, organization)
            condition = obj.condition(CONDITION)
            if condition is None or condition.status != "True":
                return not_ready(obj, CONDITION, condition, organization)
            target = Target(
                name=name,
                uid=metadata.uid,
                place=self._place,
                organization=organization,
                labels=labels(metadata),
                annotations=passed_on(metadata.annotations, self._setting.annotation_prefixes),
                deletion_requested_at=deletion_requested_at(metadata),
                deletion_message=deletion_message(obj, "ResourceCleanup"),
                suspensions=suspensions(obj),
            )
        except MalformedError as error:
            return malformed(metadata, error)
        return Ready(metadata.uid, metadata.resourceVersion, target, readiness(metadata, condition))

    def _refused(self, obj: KubeObject, organization: str) -> Refused:
        metadata = obj.metadata
        owner = f"the organization {organization}" if organization else "no organization"
        message = f"it belongs to {owner}, and the daemon's context is the organization {self._organization}"
        fields = ObjectFields(metadata.name, organization, labels(metadata))
        return Refused(metadata.name, metadata.uid, metadata.resourceVersion, message, fields)


def _organization(obj: KubeObject) -> str:
    """Return the organization of a project.

    Milo sets its label when a project is created, and rejects every change of it. `spec.ownerRef` can be changed by
    everyone who may update the project.
    """
    label = (obj.metadata.labels or {}).get(ORGANIZATION_LABEL, "")
    owner = obj.spec.ownerRef if obj.spec else None
    return label or (owner.name if owner is not None and owner.kind == "Organization" else "")
