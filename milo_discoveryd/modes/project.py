"""Mode `project`: watches Project in the core Milo API, which serves each control plane under a path."""

from typing import ClassVar

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.model.resource import Resource
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


class ProjectMode:
    resource: ClassVar = Resource("resourcemanager.miloapis.com", "v1alpha1", "projects")
    object_type: ClassVar = KubeObject

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._place = (f"{setting.project_endpoint}{self.resource.path}/", "/control-plane")

    def place_of(self, name: str, project_uid: str) -> tuple[str, ...]:
        checked(name, DNS_SUBDOMAIN, 253, "the name")
        return self._place

    def observe(self, obj: KubeObject) -> Observation:
        metadata = obj.metadata
        try:
            name = checked(metadata.name, DNS_SUBDOMAIN, 253, "the name")
            organization = checked_organization(_organization(obj))
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


def _organization(obj: KubeObject) -> str:
    owner = obj.spec.ownerRef if obj.spec else None
    if owner is not None and owner.kind == "Organization":
        return owner.name
    return (obj.metadata.labels or {}).get(ORGANIZATION_LABEL, "")
