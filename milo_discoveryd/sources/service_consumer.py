"""Kind `service-consumer`: engages a project while it uses one of the operator's services.

Watches the ServiceConsumers in the control plane of the provider's project, to which the discovery kubeconfig belongs.
There is one ServiceConsumer for each service and consumer project; its name contains neither the service nor the
project. A ServiceConsumer survives its project: only the Project, at the root of the API, shows that the project was
deleted.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import chain
from typing import Annotated

import msgspec
from msgspec.structs import replace

from milo_discoveryd.model.cluster import SuspensionReason, Target
from milo_discoveryd.model.contributions import Contribution, ObjectContribution
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready, Withdrawn
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.schema.fields import ListOf, Text, span
from milo_discoveryd.sources.context import ContextKind, root_of
from milo_discoveryd.sources.kind import (
    ContributionWatch,
    ProjectUids,
    ReferencedWatch,
    SeveralResources,
    SourceKind,
    SourceOptions,
)
from milo_discoveryd.sources.project import PROJECTS, ProjectObjects
from milo_discoveryd.sources.reading import (
    DNS_SUBDOMAIN,
    KubeObject,
    MalformedError,
    SuspensionInfo,
    checked,
    labels,
    shared,
    suspensions_of,
)

SERVICE_CONSUMERS = Resource("services.miloapis.com", "v1alpha1", "serviceconsumers")
CONSUMERS, FOLLOWED_PROJECTS = 0, 1
"""Indexes of the two resources in `SeveralResources.watches`."""
ACTIVE = "Active"

# ruff: noqa: N815


class ServiceConsumerKind(SourceKind, frozen=True, kw_only=True):
    contexts = (ContextKind.PROJECT,)
    addresses_are_configured = True

    services: Annotated[tuple[str, ...], ListOf(Text(least=1, most=253), least=1)]
    """Canonical names of the operator's services, as in `status.serviceName`."""
    drain: Annotated[timedelta, span("0s", "1h")] = timedelta(minutes=5)
    """How long subscribers that confirm releases may clean up in a project that no longer uses any of the services."""
    follow_projects: bool = False
    """Whether to also watch the Projects at the root of the API, so that the daemon notices when a project is deleted,
    created again or being deleted. The identity must be allowed to get, list and watch Projects there."""

    @property
    def project_uids(self) -> ProjectUids:
        return ProjectUids.READ if self.follow_projects else ProjectUids.NONE

    @property
    def unseen(self) -> str:
        if self.follow_projects:
            return ""
        return (
            "deletions and re-creations of projects are not noticed: set `follow_projects`, if the identity may "
            "watch projects at the root"
        )

    def follow(self, options: SourceOptions) -> SeveralResources:
        objects = ConsumerObjects(self, options)
        watches: tuple[ContributionWatch | ReferencedWatch, ...] = (
            ContributionWatch(SERVICE_CONSUMERS, ServiceConsumer, objects.contributions),
        )
        if not self.follow_projects:
            return SeveralResources(watches, objects.reduce, objects.restored_place)
        root = root_of(options.discovery_server)
        watches += (ReferencedWatch(PROJECTS, KubeObject, objects.project, root),)
        return SeveralResources(watches, objects.reduce, objects.restored_place, PROJECTS, root)


class ProjectReference(msgspec.Struct, gc=False):
    name: str = ""


class ConsumerSpec(msgspec.Struct, gc=False):
    consumerProjectRef: ProjectReference = msgspec.field(default_factory=ProjectReference)
    suspended: bool = False


class ConsumerCondition(msgspec.Struct, gc=False):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    lastTransitionTime: str = ""


class ConsumerStatus(msgspec.Struct, gc=False):
    phase: str = ""
    serviceName: str = ""
    conditions: list[ConsumerCondition] | None = None


class ServiceConsumer(KubeObject, gc=False):
    spec: ConsumerSpec | None = None  # type: ignore[assignment]
    status: ConsumerStatus | None = None  # type: ignore[assignment]


class Consumer(msgspec.Struct, frozen=True, gc=False):
    """The state of a project's use of a service, according to its ServiceConsumer."""

    service: str
    phase: str
    is_deleting: bool
    suspensions: tuple[SuspensionReason, ...] | None
    labels: tuple[tuple[str, str], ...]

    @property
    def is_active(self) -> bool:
        return self.phase == ACTIVE and not self.is_deleting

    def __str__(self) -> str:
        return f"{self.service} is {'being deactivated' if self.is_deleting else self.phase or 'pending'}"


class ConsumerObjects:
    """Derives clusters from ServiceConsumers and, if `follow_projects` is set, from their Projects."""

    def __init__(self, kind: ServiceConsumerKind, options: SourceOptions) -> None:
        self._services = frozenset(kind.services)
        self._drain_s = kind.drain.total_seconds()
        self._follows_projects = kind.follow_projects
        self._projects = ProjectObjects(replace(options, discovery_server=root_of(options.discovery_server)))

    def contributions(self, consumer: ServiceConsumer) -> Iterable[Contribution]:
        status, metadata = consumer.status, consumer.metadata
        # The service is not one of the operator's, or the controller has not resolved it yet: then the consumer cannot
        # be Active.
        if status is None or status.serviceName not in self._services:
            return
        reference = "" if consumer.spec is None else consumer.spec.consumerProjectRef.name
        project = checked(reference, DNS_SUBDOMAIN, 253, "the consumer project")
        content = Consumer(
            shared(status.serviceName),
            shared(status.phase[:64]),
            metadata.deletionTimestamp is not None,
            _suspensions(consumer),
            labels(metadata),
        )
        yield Contribution(project, content, ((FOLLOWED_PROJECTS, project),) if self._follows_projects else ())

    def project(self, obj: KubeObject) -> Observation:
        """Return the content of a Project without its version, so that a new version alone is not a change."""
        observation = self._projects.observe(obj)
        if isinstance(observation, Malformed):
            raise MalformedError(observation.message)
        return replace(observation, version="")

    def reduce(self, cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
        """Engage the project while one of its consumers is active and, if Projects are followed, its Project is
        ready."""
        consumers = [contribution for contribution in contributions if contribution.watch == CONSUMERS]
        if not self._follows_projects or not consumers:
            return self._by_consumers(cluster, consumers, uid)
        project: Observation | None = next(
            (contribution.content for contribution in contributions if contribution.watch == FOLLOWED_PROJECTS), None
        )
        if project is None:
            # The UID is empty: a cluster takes the UID of its Project, and this Project does not exist.
            return None if uid else NotReady(cluster, "", consumers[0].version, "there is no project of this name")
        consumption = self._by_consumers(cluster, consumers, project.uid)
        if not isinstance(consumption, Ready):
            return consumption
        # Rules and filters are written for the labels of ServiceConsumers, which the consumer cannot change.
        if not isinstance(project, Ready):
            return replace(project, version=consumption.version, fields=consumption.target)
        target = replace(project.target, labels=consumption.target.labels)
        reasons = [
            reasons_of_one
            for reasons_of_one in (project.target.suspensions, consumption.target.suspensions)
            if reasons_of_one is not None
        ]
        suspensions = tuple(chain.from_iterable(reasons)) if reasons else None
        return Ready(project.uid, consumption.version, replace(target, suspensions=suspensions))

    def _by_consumers(self, cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation:
        """Return the observation that follows from a project's consumers. The project is suspended while all of its
        active consumers are suspended."""
        if not contributions:
            message = "the project no longer uses any of the operator's services"
            return Withdrawn(cluster, uid, "", message, self._drain_s)
        active = [contribution for contribution in contributions if contribution.content.is_active]
        newest = max(contributions, key=lambda contribution: (len(contribution.version), contribution.version))
        if not active:
            message = "; ".join(sorted(str(contribution.content) for contribution in contributions))
            if any(
                contribution.content.is_deleting or contribution.content.phase == "Denied"
                for contribution in contributions
            ):
                return Withdrawn(cluster, uid or contributions[0].uid, newest.version, message, self._drain_s)
            return NotReady(cluster, uid or contributions[0].uid, newest.version, message)
        suspensions = [contribution.content.suspensions for contribution in active]
        merged: dict[str, str] = {}
        for contribution in active:
            merged.update(contribution.content.labels)
        target = Target(
            name=cluster,
            # Without the Project, its UID is unknown: use that of the first active ServiceConsumer.
            uid=uid or active[0].uid,
            place=self._projects.place,
            labels=tuple(sorted(merged.items())),
            suspensions=None
            if None in suspensions
            else tuple(suspension for stated in suspensions for suspension in stated or ()),
        )
        return Ready(uid or active[0].uid, newest.version, target)

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        return self._projects.restored_place(stored)


def _suspensions(consumer: ServiceConsumer) -> tuple[SuspensionReason, ...] | None:
    """Return why the consumer is suspended: by the platform's condition, or by its own field."""
    conditions = () if consumer.status is None else consumer.status.conditions or ()
    signal = next(
        (condition for condition in conditions if condition.type == "Suspended" and condition.status == "True"), None
    )
    if signal is not None:
        return suspensions_of([SuspensionInfo(signal.reason, signal.lastTransitionTime)])
    return () if consumer.spec is not None and consumer.spec.suspended else None
