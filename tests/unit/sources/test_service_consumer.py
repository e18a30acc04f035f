"""Kind `service-consumer`: the projects that use a service."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from milo_discoveryd.model.cluster import SuspensionReason, Target
from milo_discoveryd.model.contributions import Contribution, ObjectContribution
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready, Withdrawn
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import ReferencedWatch, SourceOptions
from milo_discoveryd.sources.reading import MESSAGE_CHARACTERS, METADATA_BYTES, KubeObject, MalformedError
from milo_discoveryd.sources.service_consumer import (
    CONSUMERS,
    FOLLOWED_PROJECTS,
    ConsumerObjects,
    ServiceConsumer,
    ServiceConsumerKind,
)
from tests.unit.sources.objects import condition, project

API = "https://api.example.com"
KIND = ServiceConsumerKind(services=("dns", "mail"), drain=timedelta(minutes=1))
MODE = ConsumerObjects(KIND, SourceOptions(project_server=API))
PROVIDER = f"{API}/apis/resourcemanager.miloapis.com/v1alpha1/projects/provider/control-plane"
FOLLOWING = ServiceConsumerKind(services=("dns", "mail"), drain=timedelta(minutes=1), follow_projects=True)
OPTIONS = SourceOptions(project_server=API, discovery_server=PROVIDER)
FOLLOWED = ConsumerObjects(FOLLOWING, OPTIONS)
PLACE = (f"{API}/apis/resourcemanager.miloapis.com/v1alpha1/projects/", "/control-plane")


def contributions(
    project: str = "shop", service: str = "dns", phase: str = "Active", *conditions: dict[str, str], **more: Any
) -> list[Contribution]:
    return list(MODE.contributions(consumer(project, service, phase, *conditions, **more)))


def consumer(
    project: str = "shop", service: str = "dns", phase: str = "Active", *conditions: dict[str, str], **more: Any
) -> ServiceConsumer:
    metadata = {"name": "sc-1", "uid": "u1", "resourceVersion": "5", **more.pop("metadata", {})}
    content = {
        "metadata": metadata,
        "spec": {"consumerProjectRef": {"name": project}, **more},
        "status": {"phase": phase, "serviceName": service, "conditions": list(conditions)},
    }
    return msgspec.convert(content, ServiceConsumer)


def of_objects(*said: list[Contribution]) -> list[ObjectContribution]:
    return [
        ObjectContribution(CONSUMERS, f"sc-{n}", f"uid-{n}", str(n + 8), n, contribution.content)
        for n, [contribution] in enumerate(said, start=1)
    ]


def reduced(*said: list[Contribution], uid: str = "") -> Observation | None:
    return MODE.reduce("shop", of_objects(*said), uid)


def followed(*said: list[Contribution], shop: KubeObject | None, uid: str = "") -> Observation | None:
    """Return the observation that results from consumers and the project `shop`."""
    made = of_objects(*said)
    if shop is not None:
        made.append(ObjectContribution(FOLLOWED_PROJECTS, "shop", shop.metadata.uid, "7", 0, FOLLOWED.project(shop)))
    return FOLLOWED.reduce("shop", made, uid)


DELETING = {"deletionTimestamp": "2026-11-20T08:00:00Z"}


def test_service_consumer_kind_watches_consumers() -> None:
    (watch,) = KIND.follow(SourceOptions(project_server=API)).watches
    assert watch.resource.path == "/apis/services.miloapis.com/v1alpha1/serviceconsumers"


def test_consumer_of_another_service_contributes_to_no_project() -> None:
    assert contributions(service="storage") == []
    assert (
        list(
            MODE.contributions(
                msgspec.convert({"metadata": {"name": "a", "uid": "u", "resourceVersion": "1"}}, ServiceConsumer)
            )
        )
        == []
    )
    assert contributions(project="shop")[0].cluster == "shop"


def test_consumer_project_must_be_a_dns_name() -> None:
    with pytest.raises(MalformedError, match=r"the consumer project '\.\./bank' is not a DNS name"):
        contributions(project="../bank")


def test_active_consumer_engages_its_project() -> None:
    assert reduced(contributions(metadata={"labels": {"env": "prod"}})) == Ready(
        "uid-1", "9", Target(name="shop", uid="uid-1", place=PLACE, labels=(("env", "prod"),))
    )


def test_project_stays_engaged_while_one_of_its_consumers_is_active() -> None:
    found = reduced(contributions(phase="Denied"), contributions(service="mail"), uid="before")
    assert isinstance(found, Ready)
    assert (found.uid, found.version) == ("before", "10")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ((contributions(phase="Denied"),), "dns is Denied"),
        ((contributions(metadata=DELETING),), "dns is being deactivated"),
        ((contributions(phase="Denied"), contributions(service="mail", phase="")), "dns is Denied; mail is pending"),
    ],
)
def test_project_without_an_active_consumer_is_withdrawn_with_a_drain(
    said: tuple[list[Contribution], ...], message: str
) -> None:
    found = reduced(*said, uid="before")
    assert isinstance(found, Withdrawn)
    assert (found.uid, found.message, found.drain_s) == ("before", message, 60.0)


def test_deletion_of_last_consumer_withdraws_its_project_with_drain() -> None:
    assert reduced() == Withdrawn("shop", "", "", "the project no longer uses any of the operator's services", 60.0)


def test_pending_consumer_does_not_engage_its_project() -> None:
    found = reduced(contributions(phase="PendingApproval"))
    assert found == NotReady("shop", "uid-1", "9", "dns is PendingApproval")


def together(*said: list[Contribution]) -> Observation | None:
    """Return what the source observes of the project `shop`."""
    reduce = KeyedSource(KIND.follow(SourceOptions(project_server=API))).reduce
    assert reduce is not None
    return reduce("shop", of_objects(*said), "before")


def test_labels_of_consumers_that_exceed_the_limits_of_one_object_together_make_their_project_malformed() -> None:
    def labelled(consumer: int, labels: int, size: int) -> list[Contribution]:
        return contributions(metadata={"labels": {f"{consumer}-{label}": "x" * size for label in range(labels)}})

    assert isinstance(together(labelled(1, 120, 120), labelled(2, 120, 120)), Ready)
    many, large = [
        together(*(labelled(consumer, *each) for consumer in range(3)))
        for each in ((100, 1), (60, METADATA_BYTES // 65))
    ]
    assert many == Malformed("shop", "before", "", "it has 300 labels; at most 250 are accepted")
    assert isinstance(large, Malformed)


def test_suspensions_of_many_consumers_are_limited_to_those_of_one_object() -> None:
    found = together(*[contributions("shop", "dns", "Active", suspended())] * 1000)
    assert isinstance(found, Ready)
    assert found.target.suspensions == (SuspensionReason("Billing", 9.0, ""),) * 16


@pytest.mark.parametrize("phase", ["Denied", "Pending"])
def test_message_of_many_consumers_is_truncated(phase: str) -> None:
    found = together(*[contributions(phase=phase)] * 1000)
    assert isinstance(found, Withdrawn | NotReady)
    assert len(found.message) == MESSAGE_CHARACTERS + 1


def suspended(status: str = "True") -> dict[str, str]:
    return {"type": "Suspended", "status": status, "reason": "Billing", "lastTransitionTime": "1970-01-01T00:00:09Z"}


@pytest.mark.parametrize(
    ("said", "suspensions"),
    [
        ((contributions("shop", "dns", "Active", suspended()),), (SuspensionReason("Billing", 9.0, ""),)),
        ((contributions("shop", "dns", "Active", suspended("False")),), None),
        ((contributions(suspended=True),), ()),
        ((contributions("shop", "dns", "Active", suspended()), contributions(service="mail")), None),
        (
            (contributions("shop", "dns", "Active", suspended()), contributions(phase="Denied")),
            (SuspensionReason("Billing", 9.0, ""),),
        ),
    ],
)
def test_project_is_suspended_while_all_active_consumers_are_suspended(
    said: tuple[list[Contribution], ...], suspensions: tuple[SuspensionReason, ...] | None
) -> None:
    found = reduced(*said)
    assert isinstance(found, Ready)
    assert found.target.suspensions == suspensions


def test_restored_project_endpoint_is_derived_from_its_name() -> None:
    assert MODE.restored_place(Target(name="shop", uid="u", place=("https://evil.test",))) == PLACE
    with pytest.raises(MalformedError):
        MODE.restored_place(Target(name="../shop", uid="u", place=()))


def test_service_consumer_settings_are_validated() -> None:
    assert parse_group(ServiceConsumerKind, {"services": ["dns"], "drain": "30s"}).drain == timedelta(seconds=30)
    for given, complaint in (
        ({"services": ["dns"], "service": "dns"}, "did you mean services"),
        ({}, "is missing"),
        ({"services": []}, "must have at least 1 value"),
    ):
        with pytest.raises(ValueError, match=complaint):
            parse_group(ServiceConsumerKind, given)


def test_followed_projects_are_watched_in_the_root_context() -> None:
    consumers, projects = FOLLOWING.follow(OPTIONS).watches
    assert consumers.resource.path == "/apis/services.miloapis.com/v1alpha1/serviceconsumers"
    assert isinstance(projects, ReferencedWatch)
    assert (projects.server, projects.resource.path) == (API, "/apis/resourcemanager.miloapis.com/v1alpha1/projects")
    assert (KIND.unseen[:40], FOLLOWING.unseen) == ("deletions and re-creations of projects a", "")


def test_contributions_require_the_project_only_if_projects_are_followed() -> None:
    (contribution,) = FOLLOWED.contributions(consumer("shop"))
    assert contribution.needs == ((FOLLOWED_PROJECTS, "shop"),)
    assert contributions("shop")[0].needs == ()


def test_cluster_has_uid_organization_and_deletion_of_the_followed_project() -> None:
    shop = project(
        "shop",
        condition("Ready"),
        condition("ResourceCleanup", message="waiting"),
        spec={"ownerRef": {"kind": "Organization", "name": "acme"}},
        labels={"tenant": "wrote-it"},
        deletionTimestamp="1970-01-01T00:00:09Z",
    )
    assert followed(contributions(metadata={"labels": {"env": "prod"}}), shop=shop, uid="before") == Ready(
        "uid-shop",
        "9",
        Target(
            name="shop",
            uid="uid-shop",
            place=PLACE,
            organization="acme",
            labels=(("env", "prod"),),
            deletion_requested_at=9.0,
            deletion_message="waiting",
        ),
    )


def test_deleted_followed_project_has_no_ready_cluster() -> None:
    active = contributions()
    assert followed(active, shop=None, uid="uid-shop") is None
    assert followed(contributions(phase="Denied"), shop=None, uid="uid-shop") is None
    assert followed(active, shop=None) == NotReady("shop", "", "9", "there is no project of this name")


def test_cluster_of_a_followed_project_is_not_ready_if_the_project_is_not() -> None:
    found = followed(contributions(), shop=project("shop", condition("Ready", "False")))
    assert isinstance(found, NotReady)
    assert (found.uid, found.message) == ("uid-shop", "condition Ready is False")
    assert isinstance(found.fields, Target)


def test_project_that_stops_using_the_services_is_withdrawn_under_its_uid() -> None:
    found = followed(contributions(phase="Denied"), shop=project("shop"), uid="uid-shop")
    assert found == Withdrawn("shop", "uid-shop", "9", "dns is Denied", 60.0)
    gone = "the project no longer uses any of the operator's services"
    assert FOLLOWED.reduce("shop", [], "") == Withdrawn("shop", "", "", gone, 60.0)


def test_cluster_of_a_followed_project_is_suspended_if_the_project_or_its_consumers_are() -> None:
    own = project("shop", condition("Ready"), condition("Suspended", message="by the platform"))
    for consumers, shop, expected in (
        (contributions(), project("shop"), None),
        (contributions(), own, ()),
        (contributions("shop", "dns", "Active", suspended()), project("shop"), (SuspensionReason("Billing", 9.0, ""),)),
        (contributions("shop", "dns", "Active", suspended()), own, (SuspensionReason("Billing", 9.0, ""),)),
    ):
        found = followed(consumers, shop=shop)
        assert isinstance(found, Ready)
        assert found.target.suspensions == expected


def test_content_of_followed_project_does_not_depend_on_its_resource_version() -> None:
    assert FOLLOWED.project(project("shop", resourceVersion="7")) == FOLLOWED.project(
        project("shop", resourceVersion="8")
    )


def test_followed_project_that_cannot_be_used_is_malformed() -> None:
    with pytest.raises(MalformedError, match="deletionTimestamp"):
        FOLLOWED.project(project("shop", deletionTimestamp="soon"))
