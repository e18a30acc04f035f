"""Kind `service-consumer`: engages a project while it uses one of the operator's services.

Watches the ServiceConsumers in the control plane of the provider's project, to which the discovery kubeconfig belongs.
There is one for each service and consumer project; its name contains neither.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Annotated

import msgspec

from milo_discoveryd.model.claims import Claim, ObjectClaim
from milo_discoveryd.model.cluster import SuspensionReason, Target
from milo_discoveryd.model.objects import KubeObject, SuspensionInfo
from milo_discoveryd.model.observation import NotReady, Observation, Ready, Withdrawn
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.schema.fields import ListOf, Text, span
from milo_discoveryd.sources.context import ContextKind
from milo_discoveryd.sources.kind import ClaimWatch, SeveralResources, SourceKind, SourceOptions
from milo_discoveryd.sources.reading import DNS_SUBDOMAIN, checked, labels, shared, suspensions_of

SERVICE_CONSUMERS = Resource("services.miloapis.com", "v1alpha1", "serviceconsumers")
PROJECTS = Resource("resourcemanager.miloapis.com", "v1alpha1", "projects")
ACTIVE = "Active"

# ruff: noqa: N815


class ServiceConsumerKind(SourceKind, frozen=True, kw_only=True):
    contexts = (ContextKind.PROJECT,)

    services: Annotated[tuple[str, ...], ListOf(Text(least=1, most=253), least=1)]
    """Canonical names of the operator's services, as in `status.serviceName`."""
    drain: Annotated[timedelta, span("0s", "1h")] = timedelta(minutes=5)
    """How long subscribers that confirm releases may clean up in a project that no longer uses any of the services."""

    def follow(self, options: SourceOptions) -> SeveralResources:
        objects = ConsumerObjects(self, options)
        watch = ClaimWatch(SERVICE_CONSUMERS, ServiceConsumer, objects.claims)
        return SeveralResources((watch,), objects.reduce, objects.restored_place)


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
    """The claim of a ServiceConsumer about its project."""

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
    """The meaning of ServiceConsumers."""

    def __init__(self, kind: ServiceConsumerKind, options: SourceOptions) -> None:
        self._services = frozenset(kind.services)
        self._drain_s = kind.drain.total_seconds()
        self._place = (f"{options.project_endpoint}{PROJECTS.path}/", "/control-plane")

    def claims(self, consumer: ServiceConsumer) -> Iterable[Claim]:
        status, metadata = consumer.status, consumer.metadata
        # Until the controller has resolved the service, the consumer cannot be Active.
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
        yield Claim(project, content)

    def reduce(self, cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
        """Engage the project while one of its consumers is active. The project is suspended while all active consumers
        are."""
        if not claims:
            message = "the project no longer uses any of the services"
            return Withdrawn(cluster, uid, "", message, self._drain_s)
        active = [claim for claim in claims if claim.content.is_active]
        newest = max(claims, key=lambda claim: (len(claim.version), claim.version))
        if not active:
            message = "; ".join(sorted(str(claim.content) for claim in claims))
            if any(claim.content.is_deleting or claim.content.phase == "Denied" for claim in claims):
                return Withdrawn(cluster, uid or claims[0].uid, newest.version, message, self._drain_s)
            return NotReady(cluster, uid or claims[0].uid, newest.version, message)
        suspensions = [claim.content.suspensions for claim in active]
        merged: dict[str, str] = {}
        for claim in active:
            merged.update(claim.content.labels)
        target = Target(
            name=cluster,
            # Of the project itself only the name is known here.
            uid=uid or active[0].uid,
            place=self._place,
            labels=tuple(sorted(merged.items())),
            suspensions=None if None in suspensions else tuple(each for found in suspensions for each in found or ()),
        )
        return Ready(uid or active[0].uid, newest.version, target)

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        checked(stored.name, DNS_SUBDOMAIN, 253, "the consumer project")
        return self._place


def _suspensions(consumer: ServiceConsumer) -> tuple[SuspensionReason, ...] | None:
    """Return why the consumer is suspended: by the platform's condition, or by its own field."""
    conditions = () if consumer.status is None else consumer.status.conditions or ()
    signal = next((each for each in conditions if each.type == "Suspended" and each.status == "True"), None)
    if signal is not None:
        return suspensions_of([SuspensionInfo(signal.reason, signal.lastTransitionTime)])
    return () if consumer.spec is not None and consumer.spec.suspended else None
