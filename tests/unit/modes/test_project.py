"""Mode `project`: what cluster a Project stands for."""

import pytest

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Malformed, NotReady, ObjectFields, Ready
from milo_discoveryd.modes.mode import Setting
from milo_discoveryd.modes.project import ProjectMode
from tests.unit.modes.objects import condition, project

API = "https://api.example.com:6443"
MODE = ProjectMode(Setting(project_endpoint=API))


def target(**metadata: object) -> Target:
    observed = MODE.observe(project(**metadata))  # type: ignore[arg-type]
    assert isinstance(observed, Ready)
    return observed.target


def test_a_ready_project_stands_for_a_path_of_the_same_api() -> None:
    assert MODE.observe(project("apollo")) == Ready(
        "uid-apollo",
        "7",
        Target(
            name="apollo",
            uid="uid-apollo",
            place=(f"{API}/apis/resourcemanager.miloapis.com/v1alpha1/projects/", "/control-plane"),
        ),
    )


def test_it_watches_projects() -> None:
    assert ProjectMode.resource.path == "/apis/resourcemanager.miloapis.com/v1alpha1/projects"


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([condition("Ready", "False", "Provisioning", "not yet")], "condition Ready is False: Provisioning: not yet"),
        ([condition("Ready", "Unknown")], "condition Ready is Unknown"),
        ([condition("Ready", "true")], "condition Ready is true"),
        ([condition("Other")], "condition Ready is not set"),
    ],
)
def test_a_project_whose_condition_is_not_true_is_not_ready_and_says_why(
    conditions: list[dict[str, str]], message: str
) -> None:
    assert MODE.observe(project("apollo", *conditions)) == NotReady(
        "apollo", "uid-apollo", "7", message, fields=ObjectFields("apollo", "", ())
    )


def test_the_organization_is_the_owners_or_else_the_labels() -> None:
    label = {"resourcemanager.miloapis.com/organization-name": "labelled"}
    owned = {"ownerRef": {"kind": "Organization", "name": "owner"}}
    assert target(spec=owned, labels=label).organization == "owner"
    assert target(spec={"ownerRef": {"kind": "User", "name": "somebody"}}, labels=label).organization == "labelled"
    assert target(spec={}, labels=label).organization == "labelled"
    assert target().organization == ""


def test_labels_are_passed_on_sorted() -> None:
    assert target(labels={"b": "2", "a": "1"}).labels == (("a", "1"), ("b", "2"))


def test_annotations_are_passed_on_only_where_the_settings_allow() -> None:
    annotations = {"b.example.com/x": "1", "a.example.com/y": "2", "secret": "3"}
    assert target(annotations=annotations).annotations == ()
    allowing = ProjectMode(Setting(project_endpoint=API, annotation_prefixes=("a.example.com/", "b.example.com/")))
    observed = allowing.observe(project(annotations=annotations))
    assert isinstance(observed, Ready)
    assert observed.target.annotations == (("a.example.com/y", "2"), ("b.example.com/x", "1"))
    observed = allowing.observe(project())
    assert isinstance(observed, Ready)
    assert observed.target.annotations == ()


def test_a_project_that_is_being_deleted_is_still_there_and_says_what_it_waits_for() -> None:
    cleanup = condition("ResourceCleanup", "False", "CleanupAwaitingCompletion", "2 networks are left")
    observed = MODE.observe(project("apollo", condition("Ready"), cleanup, deletionTimestamp="2026-11-20T08:00:00Z"))
    assert isinstance(observed, Ready)
    assert observed.target.deletion_requested_at == 1795161600.0
    assert observed.target.deletion_message == "2 networks are left"


def test_the_message_of_a_cleanup_counts_only_while_there_is_a_deletion() -> None:
    observed = MODE.observe(project("apollo", condition("Ready"), condition("ResourceCleanup", message="old")))
    assert isinstance(observed, Ready)
    assert observed.target.deletion_message == ""
    assert target(deletionTimestamp="1970-01-01T00:00:00Z").deletion_message == ""


def test_a_time_may_be_of_any_zone() -> None:
    assert target(deletionTimestamp="1970-01-01T02:00:01+02:00").deletion_requested_at == 1.0


@pytest.mark.parametrize("time", ["yesterday", "", "2026-11-20T08:00:00", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_makes_the_object_malformed(time: str) -> None:
    assert MODE.observe(project("apollo", deletionTimestamp=time)) == Malformed(
        "apollo", "uid-apollo", "7", f"deletionTimestamp {time!r} is not a time with a time zone"
    )


def test_a_suspended_project_is_still_there_and_says_so() -> None:
    observed = MODE.observe(project("apollo", condition("Ready"), condition("Suspended")))
    assert isinstance(observed, Ready)
    assert observed.target.suspended
    observed = MODE.observe(project("apollo", condition("Ready"), condition("Suspended", "False")))
    assert isinstance(observed, Ready)
    assert not observed.target.suspended


def test_what_nobody_is_told_of_makes_no_difference() -> None:
    one = MODE.observe(project("apollo", condition("Ready", message="checked at 8"), condition("Quota")))
    other = MODE.observe(project("apollo", condition("Ready", message="checked at 9"), resourceVersion="8"))
    assert isinstance(one, Ready)
    assert isinstance(other, Ready)
    assert one.target == other.target
