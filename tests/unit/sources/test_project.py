"""Mode `project`: the cluster of a Project."""

import msgspec
import pytest

from milo_discoveryd.model.cluster import SuspensionReason, Target
from milo_discoveryd.model.observation import Malformed, NotReady, ObjectFields, Ready, Refused
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import PROJECTS, ProjectObjects
from milo_discoveryd.sources.reading import ORGANIZATION_LABEL, MalformedError, Status
from tests.unit.sources.objects import condition, project

API = "https://api.example.com:6443"
ACME = f"{API}/apis/resourcemanager.miloapis.com/v1alpha1/organizations/acme/control-plane"
MODE = ProjectObjects(SourceOptions(project_server=API))
IN_ACME = ProjectObjects(SourceOptions(project_server=API, discovery_server=ACME))


def target(**metadata: object) -> Target:
    observed = MODE.observe(project(**metadata))  # type: ignore[arg-type]
    assert isinstance(observed, Ready)
    return observed.target


def test_endpoint_of_ready_project_is_its_control_plane_path() -> None:
    assert MODE.observe(project("apollo")) == Ready(
        "uid-apollo",
        "7",
        Target(
            name="apollo",
            uid="uid-apollo",
            place=(f"{API}/apis/resourcemanager.miloapis.com/v1alpha1/projects/", "/control-plane"),
        ),
    )


def test_project_endpoint_is_derived_from_name() -> None:
    assert MODE.restored_place(Target(name="apollo", uid="uid-apollo", place=())) == target().place
    with pytest.raises(MalformedError):
        MODE.restored_place(Target(name="../apollo", uid="uid-apollo", place=()))


def test_project_mode_watches_projects() -> None:
    assert PROJECTS.path == "/apis/resourcemanager.miloapis.com/v1alpha1/projects"


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([condition("Ready", "False", "Provisioning", "not yet")], "condition Ready is False: Provisioning: not yet"),
        ([condition("Ready", "Unknown")], "condition Ready is Unknown"),
        ([condition("Ready", "true")], "condition Ready is true"),
        ([condition("Other")], "condition Ready is not set"),
    ],
)
def test_not_ready_project_has_reason(conditions: list[dict[str, str]], message: str) -> None:
    assert MODE.observe(project("apollo", *conditions)) == NotReady(
        "apollo", "uid-apollo", "7", message, fields=ObjectFields("apollo", "", ())
    )


def test_organization_label_of_project_takes_precedence_over_its_owner_reference() -> None:
    label = {ORGANIZATION_LABEL: "labelled"}
    owned = {"ownerRef": {"kind": "Organization", "name": "owner"}}
    assert target(spec=owned, labels=label).organization == "labelled"
    assert target(spec=owned).organization == "owner"
    assert target(spec={"ownerRef": {"kind": "User", "name": "somebody"}}, labels=label).organization == "labelled"
    assert target(spec={}, labels=label).organization == "labelled"
    assert target().organization == ""


def test_context_of_an_organization_selects_projects_of_that_organization() -> None:
    assert IN_ACME.resource.label_selector == "resourcemanager.miloapis.com/organization-name=acme"
    assert MODE.resource.label_selector == ""


def test_project_of_another_organization_is_refused_in_the_context_of_an_organization() -> None:
    ours, theirs = ({ORGANIZATION_LABEL: name} for name in ("acme", "evil"))
    claiming = {"ownerRef": {"kind": "Organization", "name": "acme"}}
    assert isinstance(IN_ACME.observe(project(labels=ours)), Ready)
    assert IN_ACME.observe(project(labels=theirs, spec=claiming)) == Refused(
        "apollo",
        "uid-apollo",
        "7",
        "it belongs to the organization evil, and the daemon's context is the organization acme",
        ObjectFields("apollo", "evil", tuple(theirs.items())),
    )
    unowned = IN_ACME.observe(project())
    assert isinstance(unowned, Refused)
    assert "it belongs to no organization, and" in unowned.message


def test_labels_of_project_are_passed_on_sorted_by_key() -> None:
    assert target(labels={"b": "2", "a": "1"}).labels == (("a", "1"), ("b", "2"))


def test_only_annotations_with_configured_prefixes_are_passed_on() -> None:
    annotations = {"b.example.com/x": "1", "a.example.com/y": "2", "secret": "3"}
    assert target(annotations=annotations).annotations == ()
    allowing = ProjectObjects(
        SourceOptions(project_server=API, annotation_prefixes=("a.example.com/", "b.example.com/"))
    )
    observed = allowing.observe(project(annotations=annotations))
    assert isinstance(observed, Ready)
    assert observed.target.annotations == (("a.example.com/y", "2"), ("b.example.com/x", "1"))
    observed = allowing.observe(project())
    assert isinstance(observed, Ready)
    assert observed.target.annotations == ()


def test_terminating_project_stays_engaged_with_message() -> None:
    cleanup = condition("ResourceCleanup", "False", "CleanupAwaitingCompletion", "2 networks are left")
    observed = MODE.observe(project("apollo", condition("Ready"), cleanup, deletionTimestamp="2026-11-20T08:00:00Z"))
    assert isinstance(observed, Ready)
    assert observed.target.deletion_requested_at == 1795161600.0
    assert observed.target.deletion_message == "2 networks are left"


def test_deletion_message_requires_deletion_timestamp_and_cleanup_condition() -> None:
    observed = MODE.observe(project("apollo", condition("Ready"), condition("ResourceCleanup", message="old")))
    assert isinstance(observed, Ready)
    assert observed.target.deletion_message == ""
    assert target(deletionTimestamp="1970-01-01T00:00:00Z").deletion_message == ""


def test_deletion_timestamp_with_a_utc_offset_is_accepted() -> None:
    assert target(deletionTimestamp="1970-01-01T02:00:01+02:00").deletion_requested_at == 1.0


@pytest.mark.parametrize("time", ["yesterday", "", "2026-11-20T08:00:00", "2026-13-01T00:00:00Z"])
def test_project_with_invalid_timestamp_is_malformed(time: str) -> None:
    assert MODE.observe(project("apollo", deletionTimestamp=time)) == Malformed(
        "apollo", "uid-apollo", "7", f"deletionTimestamp {time!r} is not a time with a time zone"
    )


def test_suspended_project_stays_engaged() -> None:
    observed = MODE.observe(project("apollo", condition("Ready"), condition("Suspended")))
    assert isinstance(observed, Ready)
    assert observed.target.suspended
    observed = MODE.observe(project("apollo", condition("Ready"), condition("Suspended", "False")))
    assert isinstance(observed, Ready)
    assert not observed.target.suspended


def test_suspensions_of_a_suspended_project_are_listed() -> None:
    listed = [
        {"reason": "Billing", "suspendedAt": "1970-01-01T00:00:05Z", "reinstateAuthority": "Consumer"},
        {"reason": "Abuse", "suspendedAt": "yesterday", "reinstateAuthority": "Operator"},
    ]
    conditions = [condition("Ready"), condition("Suspended")]
    status = msgspec.convert({"conditions": conditions, "suspensions": listed}, Status)
    observed = MODE.observe(msgspec.structs.replace(project("apollo"), status=status))
    assert isinstance(observed, Ready)
    assert observed.target.suspensions == (
        SuspensionReason("Billing", 5.0, "Consumer"),
        SuspensionReason("Abuse", None, "Operator"),
    )


@pytest.mark.parametrize(
    ("holding", "sent"),
    [
        ("a, b", (("Billing", 5.0), ("Fraud", 6.0))),
        ("a", (("", None),)),
    ],
)
def test_lifted_suspensions_are_not_sent(holding: str, sent: tuple[tuple[str, float | None], ...]) -> None:
    listed = [
        {"reason": "Billing", "suspendedAt": "1970-01-01T00:00:05Z", "reinstateAuthority": "Consumer"},
        {"reason": "Fraud", "suspendedAt": "1970-01-01T00:00:06Z", "reinstateAuthority": "Operator"},
    ]
    message = f"Project is suspended due to active suspensions: {holding}"
    conditions = [condition("Ready"), condition("Suspended", message=message)]
    status = msgspec.convert({"conditions": conditions, "suspensions": listed}, Status)
    observed = MODE.observe(msgspec.structs.replace(project("apollo"), status=status))
    assert isinstance(observed, Ready)
    found = observed.target.suspensions or ()
    assert tuple((suspension.reason, suspension.suspended_at) for suspension in found) == sent
    assert {suspension.message for suspension in found} == {message}


def test_fields_invisible_to_subscribers_do_not_change_target() -> None:
    one = MODE.observe(project("apollo", condition("Ready", message="checked at 8"), condition("Quota")))
    other = MODE.observe(project("apollo", condition("Ready", message="checked at 9"), resourceVersion="8"))
    assert isinstance(one, Ready)
    assert isinstance(other, Ready)
    assert one.target == other.target


def test_ready_project_has_the_times_of_its_creation_and_readiness() -> None:
    at = {"lastTransitionTime": "2026-01-01T00:00:05Z"}
    seen = MODE.observe(project("apollo", condition("Ready") | at, creationTimestamp="2026-01-01T00:00:00Z"))
    assert isinstance(seen, Ready)
    assert seen.readiness == ("2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z")
