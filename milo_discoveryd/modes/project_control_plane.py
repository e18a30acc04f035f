"""Mode `project-control-plane`: watches ProjectControlPlane in the infrastructure cluster, and gives the control planes
their cluster-internal addresses."""

from typing import ClassVar
from urllib.parse import urlsplit

from msgspec.structs import replace

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.modes.mode import Setting
from milo_discoveryd.modes.reading import (
    DNS_LABEL,
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
)

CONDITION = "ControlPlaneReady"
PROJECT_UID_LABEL = "resourcemanager.miloapis.com/project-uid"
OWNER_ANNOTATION = "resourcemanager.miloapis.com/owner-name"
_NAME = "\0"
"""Placeholder for a cluster's name. No template contains NUL, because no URL does."""


class ProjectControlPlaneMode:
    resource: ClassVar = Resource("infrastructure.miloapis.com", "v1alpha1", "projectcontrolplanes")
    object_type: ClassVar = KubeObject

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._scheme = urlsplit(setting.project_endpoint).scheme
        goes_by_uid = "{uid}" in setting.internal_address_template + setting.internal_namespace_template
        self._place = () if goes_by_uid else tuple(self._endpoint(_NAME, "").split(_NAME))

    def observe(self, obj: KubeObject) -> Observation:
        metadata = obj.metadata
        try:
            name = checked(metadata.name, DNS_LABEL, 63, "the name")
            claimed_uid = (metadata.labels or {}).get(PROJECT_UID_LABEL, "")
            organization = checked_organization(_organization(metadata.labels or {}, metadata.annotations or {}))
            condition = obj.condition(CONDITION)
            if condition is None or condition.status != "True":
                return replace(not_ready(obj, CONDITION, condition, organization), project_uid=claimed_uid)
            project_uid = claimed_uid or metadata.uid
            target = Target(
                name=name,
                uid=project_uid,
                place=self._place or self._place_of(name, project_uid),
                organization=organization,
                labels=labels(metadata),
                annotations=passed_on(metadata.annotations, self._setting.annotation_prefixes),
                deletion_requested_at=deletion_requested_at(metadata),
                deletion_message=deletion_message(obj),
            )
        except MalformedError as error:
            return malformed(metadata, error)
        return Ready(metadata.uid, metadata.resourceVersion, target, readiness(metadata, condition))

    def place_of(self, name: str, project_uid: str) -> tuple[str, ...]:
        checked(name, DNS_LABEL, 63, "the name")
        return self._place or self._place_of(name, project_uid)

    def _place_of(self, name: str, project_uid: str) -> tuple[str, ...]:
        return (self._endpoint(name, checked(project_uid, DNS_LABEL, 63, "the project's UID")),)

    def _endpoint(self, name: str, uid: str) -> str:
        namespace = self._setting.internal_namespace_template.format(name=name, uid=uid)
        address = self._setting.internal_address_template.format(name=name, uid=uid, namespace=namespace)
        return f"{self._scheme}://{address}"


def _organization(labels: dict[str, str], annotations: dict[str, str]) -> str:
    return annotations.get(OWNER_ANNOTATION) or labels.get(ORGANIZATION_LABEL, "")
