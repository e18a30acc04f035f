"""The kind `project-control-plane`: watches ProjectControlPlane in the infrastructure cluster, and gives the control
planes their cluster-internal addresses."""

from typing import Annotated
from urllib.parse import urlsplit

from msgspec.structs import replace

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.schema import values
from milo_discoveryd.sources.kind import OneResource, ProjectServer, ProjectUids, SourceKind, SourceOptions
from milo_discoveryd.sources.reading import (
    DNS_LABEL,
    ORGANIZATION_LABEL,
    KubeObject,
    MalformedError,
    checked,
    checked_organization,
    malformed,
    milo_target,
    not_ready,
    readiness,
)

CONDITION = "ControlPlaneReady"
PROJECT_NAME_LABEL = "resourcemanager.miloapis.com/project-name"
PROJECT_UID_LABEL = "resourcemanager.miloapis.com/project-uid"
OWNER_ANNOTATION = "resourcemanager.miloapis.com/owner-name"
_NAME = "\0"
"""Placeholder for a cluster's name. No template contains NUL, because no URL does."""


CONTROL_PLANES = Resource("infrastructure.miloapis.com", "v1alpha1", "projectcontrolplanes")


class ProjectControlPlaneKind(SourceKind, frozen=True, kw_only=True):
    project_server = ProjectServer.IDENTITY
    addresses_are_configured = True

    address_template: Annotated[str, values.address_template] = "milo-apiserver.{namespace}.svc.cluster.local:6443"
    """Address of a project's API server; variables: `{name}`, `{uid}`, `{namespace}`."""
    namespace_template: Annotated[str, values.namespace_template] = "project-{name}"
    """Value of `{namespace}` in `address_template`. Some installations of Milo use `project-{uid}`."""

    def __post_init__(self) -> None:
        address = self.address_template.replace("{namespace}", self.namespace_template)
        if "{name}" not in address and "{uid}" not in address:
            raise ValueError(f"{address!r} gives all projects the same address: use {{name}} or {{uid}}")

    @property
    def project_uids(self) -> ProjectUids:
        return ProjectUids.STATED

    @property
    def ready_when(self) -> str:
        return f"condition {CONDITION} is True"

    def follow(self, options: SourceOptions) -> OneResource:
        objects = ControlPlaneObjects(self, options)
        return OneResource(CONTROL_PLANES, objects.observe, objects.restored_place)


class ControlPlaneObjects:
    """Derives clusters from ProjectControlPlanes."""

    def __init__(self, kind: ProjectControlPlaneKind, options: SourceOptions) -> None:
        self._kind = kind
        self._annotation_prefixes = options.annotation_prefixes
        self._scheme = urlsplit(options.project_server).scheme
        goes_by_uid = "{uid}" in kind.address_template + kind.namespace_template
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
            target = milo_target(
                obj,
                name,
                project_uid,
                self._place or self._place_of(name, project_uid),
                organization,
                annotation_prefixes=self._annotation_prefixes,
            )
        except MalformedError as error:
            return malformed(metadata, error)
        return Ready(metadata.uid, metadata.resourceVersion, target, readiness(metadata, condition))

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        checked(stored.name, DNS_LABEL, 63, "the name")
        return self._place or self._place_of(stored.name, stored.uid)

    def _place_of(self, name: str, project_uid: str) -> tuple[str, ...]:
        return (self._endpoint(name, checked(project_uid, DNS_LABEL, 63, "the project's UID")),)

    def _endpoint(self, name: str, uid: str) -> str:
        namespace = self._kind.namespace_template.format(name=name, uid=uid)
        address = self._kind.address_template.format(name=name, uid=uid, namespace=namespace)
        return f"{self._scheme}://{address}"


def _organization(labels: dict[str, str], annotations: dict[str, str]) -> str:
    return annotations.get(OWNER_ANNOTATION) or labels.get(ORGANIZATION_LABEL, "")
