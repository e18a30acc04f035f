"""Mode `project-control-plane`: the endpoint of a ProjectControlPlane."""

import pytest

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Malformed, NotReady, ObjectFields, Ready
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project_control_plane import (
    CONTROL_PLANES,
    ControlPlaneObjects,
    ProjectControlPlaneKind,
)
from milo_discoveryd.sources.reading import MalformedError
from tests.unit.sources.objects import condition, control_plane

API = "https://api.example.com:6443"
UID = "11111111-2222-3333-4444-555555555555"
PROJECT_UID = {"resourcemanager.miloapis.com/project-uid": UID}


def mode(**settings: str) -> ControlPlaneObjects:
    return ControlPlaneObjects(ProjectControlPlaneKind(**settings), SourceOptions(project_server=API))


def endpoint(of: ControlPlaneObjects, **metadata: object) -> str:
    observed = of.observe(control_plane(**metadata))  # type: ignore[arg-type]
    assert isinstance(observed, Ready)
    return observed.target.endpoint


def test_ready_control_plane_has_cluster_internal_endpoint() -> None:
    assert mode().observe(control_plane("apollo")) == Ready(
        "uid-apollo",
        "7",
        Target(
            name="apollo",
            uid="uid-apollo",
            place=("https://milo-apiserver.project-", ".svc.cluster.local:6443"),
        ),
    )


def test_project_control_plane_mode_watches_control_planes() -> None:
    assert CONTROL_PLANES.path == "/apis/infrastructure.miloapis.com/v1alpha1/projectcontrolplanes"


@pytest.mark.parametrize(
    ("address", "namespace", "expected"),
    [
        ("milo.{namespace}.svc:6443", "project-{name}", "milo.project-apollo.svc:6443"),
        ("milo.{namespace}.svc:6443", "project-{uid}", f"milo.project-{UID}.svc:6443"),
        ("{uid}.example.com", "unused", f"{UID}.example.com"),
        ("{name}.{namespace}.example.com:1", "all", "apollo.all.example.com:1"),
    ],
)
def test_control_plane_endpoint_follows_address_and_namespace_templates(
    address: str, namespace: str, expected: str
) -> None:
    following = mode(address_template=address, namespace_template=namespace)
    assert endpoint(following, labels=PROJECT_UID) == f"https://{expected}"


@pytest.mark.parametrize("template", ["{name}.example.com", "{uid}.example.com"])
def test_control_plane_endpoint_is_derived_from_name_and_uid(template: str) -> None:
    of = mode(address_template=template)
    observed = of.observe(control_plane("apollo", labels=PROJECT_UID))
    assert isinstance(observed, Ready)
    assert of.restored_place(Target(name="apollo", uid=UID, place=())) == observed.target.place
    with pytest.raises(MalformedError):
        of.restored_place(Target(name="../apollo", uid=UID, place=()))


def test_control_plane_endpoint_has_the_scheme_of_the_project_api_server() -> None:
    plain = ControlPlaneObjects(ProjectControlPlaneKind(), SourceOptions(project_server="http://127.0.0.1:8080"))
    assert endpoint(plain).startswith("http://milo-apiserver.")


def test_control_plane_cluster_has_uid_of_its_project() -> None:
    observed = mode().observe(control_plane("apollo", labels=PROJECT_UID))
    assert isinstance(observed, Ready)
    assert (observed.uid, observed.target.uid) == ("uid-apollo", UID)


def test_control_plane_organization_is_owner_annotation_or_label() -> None:
    owner = {"resourcemanager.miloapis.com/owner-name": "owner"}
    label = {"resourcemanager.miloapis.com/organization-name": "labelled"}
    for metadata, expected in (
        ({"annotations": owner, "labels": label}, "owner"),
        ({"labels": label}, "labelled"),
        ({}, ""),
    ):
        observed = mode().observe(control_plane(**metadata))  # type: ignore[arg-type]
        assert isinstance(observed, Ready)
        assert observed.target.organization == expected


def test_terminating_control_plane_has_deletion_time() -> None:
    observed = mode().observe(control_plane(deletionTimestamp="1970-01-01T00:00:05Z"))
    assert isinstance(observed, Ready)
    assert observed.target.deletion_requested_at == 5.0


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([condition("ControlPlaneReady", "False", "Starting")], "condition ControlPlaneReady is False: Starting"),
        ([condition("Ready")], "condition ControlPlaneReady is not set"),
    ],
)
def test_not_ready_control_plane_has_reason(conditions: list[dict[str, str]], message: str) -> None:
    assert mode().observe(control_plane("apollo", *conditions)) == NotReady(
        "apollo", "uid-apollo", "7", message, fields=ObjectFields("apollo", "", ())
    )


@pytest.mark.parametrize("uid", ["..", "a.b", "A", "a/b", "a\n", "a" * 64, "a@evil.example.com"])
def test_uid_unsafe_for_an_address_is_malformed(uid: str) -> None:
    labels = {"resourcemanager.miloapis.com/project-uid": uid}
    for templates in (
        {"address_template": "{uid}.example.com"},
        {"namespace_template": "project-{uid}"},
    ):
        observed = mode(**templates).observe(control_plane("apollo", labels=labels))
        assert observed == Malformed("apollo", "uid-apollo", "7", f"the project's UID {uid!r} is not a DNS label")


def test_uid_unused_by_template_is_not_validated() -> None:
    labels = {"resourcemanager.miloapis.com/project-uid": "../.."}
    assert endpoint(mode(), labels=labels) == "https://milo-apiserver.project-apollo.svc.cluster.local:6443"


@pytest.mark.parametrize(
    ("address", "namespace"), [("{namespace}.svc", "milo"), ("milo.svc", "project-{name}"), ("milo.svc", "milo")]
)
def test_templates_that_give_all_projects_the_same_address_are_refused(address: str, namespace: str) -> None:
    with pytest.raises(ValueError, match="gives all projects the same address"):
        ProjectControlPlaneKind(address_template=address, namespace_template=namespace)
