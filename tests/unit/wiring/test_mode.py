"""Probes per cluster or per host; and the resources that modes watch, with the content of their objects."""

import base64
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from milo_discoveryd.config import Settings, load
from milo_discoveryd.config.declarative import Declaration
from milo_discoveryd.config.fields import Nested
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.model.claims import ClaimingObject
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready, Refused
from milo_discoveryd.modes.context import ContextKind, MiloContext
from milo_discoveryd.modes.declarative import SECRETS, DeclarativeMode, StatedServer
from milo_discoveryd.modes.mode import Setting
from milo_discoveryd.modes.project import ProjectMode
from milo_discoveryd.modes.reading import ORGANIZATION_LABEL
from milo_discoveryd.wiring.mode import collections_of, engaged, keys_of, probes_hosts
from milo_discoveryd.wiring.source import FollowedCollection

PER = "MILO_DISCOVERYD_CONNECTIVITY__PER"
DISENGAGE = "MILO_DISCOVERYD_CONNECTIVITY__DISENGAGE_UNREACHABLE_AFTER"


@pytest.mark.parametrize(
    ("mode", "environ", "of_hosts"),
    [
        ("project", {}, True),
        ("project", {PER: "cluster"}, False),
        ("project", {DISENGAGE: "10m"}, False),
        ("project-control-plane", {}, False),
        ("project-control-plane", {PER: "host"}, True),
        ("single", {}, False),
    ],
)
def test_probes_are_per_host_by_default_if_all_clusters_share_one_host(
    mode: str, environ: dict[str, str], of_hosts: bool
) -> None:
    assert probes_hosts(load({"mode": mode}, environ, None)) is of_hosts


def test_probes_of_hosts_cannot_disengage_clusters() -> None:
    with pytest.raises(ConfigError, match="disengage_unreachable_after requires"):
        load({}, {PER: "host", DISENGAGE: "10m"}, None)


def by_secrets() -> DeclarativeMode:
    declaration = Nested(Declaration)(
        {
            "resource": {"version": "v1", "plural": "members", "namespaced": True, "label_selector": "a=b"},
            "endpoint": {"secret_key": "value"},
            "secret": {"name": "{metadata.name}", "label_selector": "of=members"},
        }
    )
    assert isinstance(declaration, Declaration)
    return DeclarativeMode(Setting(project_endpoint="", definition=declaration.definition()))


@pytest.fixture
def collections() -> list[FollowedCollection]:
    return collections_of(Settings(label_selector="env=prod"), by_secrets(), "members")


METADATA = {"name": "alpha", "namespace": "team", "uid": "1", "resourceVersion": "7", "labels": {"of": "members"}}


def seen(followed: FollowedCollection, **fields: Any) -> Observation:
    found: Observation | None = followed.decoder.object(msgspec.json.encode({"metadata": METADATA, **fields}))
    assert found is not None
    return found


def encoded(server: str) -> str:
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": server}}],
    }
    return base64.b64encode(msgspec.json.encode(document)).decode()


def test_label_selector_does_not_hide_that_a_project_is_of_another_organization() -> None:
    mode = ProjectMode(Setting(project_endpoint="", context=MiloContext(ContextKind.ORGANIZATION, "acme")))
    (projects,) = collections_of(Settings(label_selector="env=prod"), mode)
    assert projects.watched.resource.label_selector == f"{ORGANIZATION_LABEL}=acme,env=prod"

    def of(organization: str) -> Observation:
        return seen(projects, metadata={**METADATA, "labels": {ORGANIZATION_LABEL: organization}})

    assert [type(of("acme")), type(of("evil"))] == [Outside, Refused]


def test_label_selector_of_the_daemon_does_not_select_secrets(collections: list[FollowedCollection]) -> None:
    members, secrets = (each.watched.resource for each in collections)
    assert (members.path, members.label_selector) == ("/api/v1/members", "a=b,env=prod")
    assert (secrets.path, secrets.label_selector) == ("/api/v1/secrets", "of=members")
    assert [each.namespaced for each in keys_of(by_secrets())] == [True, True]


def test_kubeconfig_secret_is_reduced_to_server_and_ca(collections: list[FollowedCollection]) -> None:
    found = seen(collections[SECRETS], data={"value": encoded("https://a.example"), "other": "CANARY"})
    assert isinstance(found, Ready)
    kept = ClaimingObject(name="team/alpha", uid="1", place=(), content=StatedServer("https://a.example", None))
    assert found == Ready("1", "7", kept)


def test_secret_without_a_kubeconfig_is_observed_as_not_ready(
    collections: list[FollowedCollection],
) -> None:
    found = seen(collections[SECRETS], data={"other": "x"})
    assert isinstance(found, NotReady)
    assert (found.name, found.uid, found.version) == ("team/alpha", "1", "7")


def test_secret_with_an_invalid_kubeconfig_reports_the_problem(collections: list[FollowedCollection]) -> None:
    found = seen(collections[SECRETS], data={"value": encoded("http://plain")})
    assert isinstance(found, Malformed)
    assert found.name == "team/alpha"
    assert found.message.startswith("the key 'value' of Secret team/alpha: the endpoint 'http://plain'")


@pytest.mark.parametrize(("data", "endpoints"), [({"value": encoded("https://b")}, ["https://b"]), ({}, [])])
def test_clusters_are_engaged_after_complete_lists_of_objects_and_secrets(
    data: dict[str, str], endpoints: Iterable[str]
) -> None:
    members, secrets = collections_of(Settings(), by_secrets())
    targets = engaged(by_secrets(), [[seen(members, metadata=LABELED)], [seen(secrets, data=data)]])
    assert [each.endpoint for each in targets] == endpoints


LABELED = {"name": "alpha", "namespace": "team", "uid": "1", "resourceVersion": "7", "labels": {"a": "b"}}
