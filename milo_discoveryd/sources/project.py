"""The kind `project`: watches Project in the core Milo API, which serves each control plane under a path."""

from msgspec.structs import replace

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import ObjectFields, Observation, Ready, Refused
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.sources.context import ContextKind, context_of
from milo_discoveryd.sources.kind import OneResource, ProjectUids, SourceKind, SourceOptions
from milo_discoveryd.sources.reading import (
    DNS_SUBDOMAIN,
    ORGANIZATION_LABEL,
    KubeObject,
    MalformedError,
    checked,
    checked_organization,
    labels,
    malformed,
    milo_target,
    not_ready,
    readiness,
    suspensions,
)

CONDITION = "Ready"
PROJECTS = Resource("resourcemanager.miloapis.com", "v1alpha1", "projects")


class ProjectKind(SourceKind, frozen=True, kw_only=True):
    contexts = (ContextKind.ROOT, ContextKind.ORGANIZATION)
    addresses_are_configured = True
    shares_host = True

    @property
    def project_uids(self) -> ProjectUids:
        return ProjectUids.READ

    @property
    def ready_when(self) -> str:
        return f"condition {CONDITION} is True"

    def follow(self, options: SourceOptions) -> OneResource:
        objects = ProjectObjects(options)
        return OneResource(objects.resource, objects.observe, objects.restored_place)


class ProjectObjects:
    """Derives clusters from Projects."""

    def __init__(self, options: SourceOptions) -> None:
        self._annotation_prefixes = options.annotation_prefixes
        self.place = (f"{options.project_endpoint}{PROJECTS.path}/", "/control-plane")
        context = context_of(options.discovery_server)
        self._organization = context.name if context.kind is ContextKind.ORGANIZATION else ""
        # Milo (v0.32.5) filters the organization's projects in lists, but not in watches.
        selector = f"{ORGANIZATION_LABEL}={self._organization}" if self._organization else ""
        self.resource = replace(PROJECTS, label_selector=selector)

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        checked(stored.name, DNS_SUBDOMAIN, 253, "the name")
        return self.place

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
            target = milo_target(
                obj,
                name,
                metadata.uid,
                self.place,
                organization,
                annotation_prefixes=self._annotation_prefixes,
                cleanup_condition="ResourceCleanup",
                suspended_by=suspensions(obj),
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

    The organization label comes first: Milo sets it when it creates the project and rejects later changes, whereas
    anyone who may update the project can change `spec.ownerRef`.
    """
    label = (obj.metadata.labels or {}).get(ORGANIZATION_LABEL, "")
    owner = obj.spec.ownerRef if obj.spec else None
    return label or (owner.name if owner is not None and owner.kind == "Organization" else "")
