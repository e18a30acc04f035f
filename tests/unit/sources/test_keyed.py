"""The collections and contributions of a source, under the keys of its clusters."""

import base64
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.model.cluster import Target, source_of
from milo_discoveryd.model.contributions import ContributingObject, Contribution, ObjectContent, ObjectContribution
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready, Refused
from milo_discoveryd.model.resource import Resource, WatchedCollection
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.sources.declarative import SECRETS, DeclarativeKind, StatedServer
from milo_discoveryd.sources.keyed import FollowedCollection, KeyedSource
from milo_discoveryd.sources.kind import (
    ContributionWatch,
    FileObject,
    Follows,
    OneResource,
    SeveralResources,
    SourceOptions,
)
from milo_discoveryd.sources.kubeconfig_files import KindKind
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.sources.project_control_plane import ProjectControlPlaneKind
from milo_discoveryd.sources.reading import ORGANIZATION_LABEL, KubeObject, MalformedError
from milo_discoveryd.sources.single import SingleKind

MILO = "https://milo"
ACME = f"{MILO}/apis/resourcemanager.miloapis.com/v1alpha1/organizations/acme/control-plane"
OPTIONS = SourceOptions(project_server=MILO)
PLANTED = ("http://attacker.example.com",)


def by_secrets() -> Follows:
    given = {
        "resource": {"version": "v1", "plural": "members", "namespaced": True, "label_selector": "a=b"},
        "endpoint": {"secret_key": "value"},
        "secret": {"name": "{metadata.name}", "label_selector": "of=members"},
    }
    return parse_group(DeclarativeKind, given).follow(OPTIONS)


@pytest.fixture
def collections() -> tuple[FollowedCollection, ...]:
    return KeyedSource(by_secrets(), "members", "env=prod").collections


@pytest.mark.parametrize(("source", "key"), [("", "alpha"), ("eu", "eu#alpha")])
def test_object_that_a_kind_cannot_use_is_malformed(source: str, key: str) -> None:
    def observe(_: KubeObject) -> Observation:
        raise MalformedError("the host is not valid")

    follows = OneResource(Resource("", "v1", "namespaces"), observe, lambda stored: stored.place)
    (followed,) = KeyedSource(follows, source).collections
    assert seen(followed) == Malformed(key, "1", "7", "the host is not valid")


class WithoutMetadata(msgspec.Struct):
    data: dict[str, str]


@pytest.mark.parametrize(("source", "named"), [("", "source"), ("eu", "source eu")])
@pytest.mark.parametrize("object_type", [dict, "KubeObject", WithoutMetadata])
def test_object_type_without_metadata_is_refused(source: str, named: str, object_type: Any) -> None:
    resource = Resource("", "v1", "namespaces")
    with pytest.raises(
        StartError, match=rf"^{named}: object_type .* is not a msgspec.Struct with a field metadata: Metadata"
    ):
        KeyedSource(OneResource(resource, Mock(), Mock(), object_type), source)
    with pytest.raises(StartError, match=rf"^{named}: object_type "):
        KeyedSource(SeveralResources((ContributionWatch(resource, object_type, Mock()),), Mock(), Mock()), source)


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


def test_project_of_another_organization_is_refused_even_if_the_label_selector_excludes_it() -> None:
    follows = ProjectKind().follow(SourceOptions(discovery_server=ACME))
    (projects,) = KeyedSource(follows, label_selector="env=prod").collections
    assert projects.watched.resource.label_selector == f"{ORGANIZATION_LABEL}=acme,env=prod"

    def of(organization: str) -> Observation:
        return seen(projects, metadata={**METADATA, "labels": {ORGANIZATION_LABEL: organization}})

    assert [type(of("acme")), type(of("evil"))] == [Outside, Refused]


def test_label_selector_of_the_daemon_is_not_applied_to_secrets(collections: tuple[FollowedCollection, ...]) -> None:
    members, secrets = (collection.watched.resource for collection in collections)
    assert (members.path, members.label_selector) == ("/api/v1/members", "a=b,env=prod")
    assert (secrets.path, secrets.label_selector) == ("/api/v1/secrets", "of=members")
    assert [key.namespaced for key in KeyedSource(by_secrets()).keys] == [True, True]


def test_kubeconfig_secret_is_reduced_to_server_and_ca(collections: tuple[FollowedCollection, ...]) -> None:
    found = seen(collections[SECRETS], data={"value": encoded("https://a.example"), "other": "CANARY"})
    value = StatedServer("https://a.example", None)
    assert found == ContributingObject("team/alpha", "1", "7", ObjectContent(value=value))


def test_secret_without_a_kubeconfig_is_observed_as_not_ready(
    collections: tuple[FollowedCollection, ...],
) -> None:
    found = seen(collections[SECRETS], data={"other": "x"})
    assert isinstance(found, NotReady)
    assert (found.name, found.uid, found.version) == ("team/alpha", "1", "7")


def test_secret_with_an_invalid_kubeconfig_reports_the_problem(collections: tuple[FollowedCollection, ...]) -> None:
    found = seen(collections[SECRETS], data={"value": encoded("http://plain")})
    assert isinstance(found, Malformed)
    assert found.name == "team/alpha"
    assert found.message.startswith("the key 'value' of Secret team/alpha: the endpoint 'http://plain'")


def placed(follows: Follows, name: str, source: str = "", **fields: Any) -> tuple[str, ...] | None:
    """Return the address of a stored cluster; None if it must not be served."""
    stored = Target(name=name, source=source_of(name), uid="p", place=PLANTED, **fields)
    try:
        return KeyedSource(follows, source).restored_place(stored)
    except ValueError:
        return None


def test_restored_endpoint_is_derived_by_kind_and_not_read_from_state_file() -> None:
    for kind in (ProjectKind(), ProjectControlPlaneKind()):
        place = placed(kind.follow(OPTIONS), "web")
        assert place is not None
        assert "web".join(place).startswith("https://mil")


def test_restored_cluster_outside_the_organization_of_the_context_is_skipped() -> None:
    follows = ProjectKind().follow(SourceOptions(project_server=MILO, discovery_server=ACME))
    acme, evil = (((ORGANIZATION_LABEL, name),) for name in ("acme", "evil"))
    assert placed(follows, "web", labels=acme)
    assert placed(follows, "web", labels=evil) is placed(follows, "web") is None


def test_restored_cluster_of_another_source_or_of_a_source_that_watches_nothing_is_skipped() -> None:
    follows = ProjectKind().follow(OPTIONS)
    assert placed(follows, "eu#web", "eu") == placed(follows, "web")
    assert placed(follows, "us#web", "eu") is placed(follows, "web", "eu") is placed(follows, "eu#web") is None
    assert placed(SingleKind().follow(OPTIONS), "single") is None


@pytest.mark.parametrize("name", ["../bank", "..%2e", "a?b#c", ""])
def test_invalid_cluster_names_in_state_file_are_skipped(name: str) -> None:
    assert placed(ProjectKind().follow(OPTIONS), name) is None


def test_cluster_names_of_a_named_source_begin_with_the_source_name() -> None:
    projects = KeyedSource(ProjectKind().follow(OPTIONS), "eu")
    (collection,) = projects.collections
    condition = {"type": "Ready", "status": "True"}
    metadata = {"name": "web", "uid": "1", "resourceVersion": "7"}
    ready = seen(collection, metadata=metadata, status={"conditions": [condition]})
    assert isinstance(ready, Ready)
    assert (ready.name, ready.target.local_name) == ("eu#web", "web")
    missing = seen(collection, metadata=metadata)
    assert isinstance(missing, NotReady)
    assert missing.fields is not None
    assert (missing.name, missing.fields.name) == ("eu#web", "eu#web")
    assert seen(collection, metadata={**metadata, "name": "a_b"}).name == "eu#a_b"
    (target,) = KeyedSource(SingleKind().follow(OPTIONS), "one").targets
    assert target.name == "one#single"


def test_not_ready_cluster_of_a_named_source_has_the_endpoint_of_its_project() -> None:
    target = Target(name="alpha", uid="1", place=(f"{MILO}/projects/", "/control-plane"))
    not_ready = NotReady("alpha", "1", "7", "not yet", fields=target)
    found = KeyedSource(SeveralResources((), lambda *_: not_ready, Mock()), "eu").reduce
    assert found is not None
    observation = found("eu#alpha", (), "1")
    assert isinstance(observation, NotReady)
    assert isinstance(observation.fields, Target)
    assert (observation.fields.source, observation.fields.endpoint) == ("eu", f"{MILO}/projects/alpha/control-plane")


def test_names_of_clusters_with_contributions_begin_with_the_name_of_their_source() -> None:
    follows = KindKind().follow(OPTIONS)
    kind, unnamed = KeyedSource(follows, "local"), KeyedSource(follows)
    assert kind.files is follows
    assert kind.reduce is not None
    assert unnamed.reduce is not None
    assert kind.reduce("local#alpha", (), "") is None
    content = Ready("1", "", Target(name="alpha", uid="1", place=("https://a.test",)))
    assert unnamed.reduce("alpha", [ObjectContribution(0, "kind-alpha", "1", "", 0, content)], "") == content
    reduced = kind.reduce("local#alpha", [ObjectContribution(0, "kind-alpha", "1", "", 0, content)], "")
    assert isinstance(reduced, Ready)
    assert (reduced.name, reduced.target.local_name) == ("local#alpha", "alpha")


def test_file_contributes_to_clusters_whose_keys_begin_with_the_source_name() -> None:
    source = KeyedSource(KindKind().follow(OPTIONS), "local")
    broken = source.observe_file(FileObject("kind-a", problem="it is broken"))
    assert broken == Malformed("kind-a", "", "", "it is broken")
    usable = source.observe_file(FileObject("kind-a", "1", (Contribution("a", "content"),)))
    assert usable == ContributingObject("kind-a", "1", "", ObjectContent((Contribution("local#a", "content"),)))


def test_objects_contribute_to_clusters_whose_keys_begin_with_the_source_name(
    collections: tuple[FollowedCollection, ...],
) -> None:
    found = seen(collections[0], metadata={**METADATA, "labels": {"a": "b", "env": "prod"}})
    assert isinstance(found, ContributingObject)
    assert [contribution.cluster for contribution in found.content.contributions] == ["members#alpha"]


@pytest.mark.parametrize("name", [";", "..", "a/b", "a?b"])
def test_contributing_object_whose_name_is_not_valid_in_a_url_is_malformed(name: str) -> None:
    watch = ContributionWatch(Resource("example.com", "v1", "members"), KubeObject, lambda _: ())
    (members,) = KeyedSource(SeveralResources((watch,), Mock(), Mock())).collections
    found = members.decoder.object(msgspec.json.encode({"metadata": METADATA | {"name": name}}))
    assert found == Malformed(name, "1", "7", f"the name {name!r} is not valid in a URL")


def test_watched_collection_has_the_path_and_query_of_its_resource() -> None:
    watched = WatchedCollection(Resource("", "v1", "pods", field_selector="a=b"))
    assert (watched.path, watched.query) == ("/api/v1/pods", [("fieldSelector", "a=b")])
    assert watched.query_for("x") == [("fieldSelector", "metadata.name=x,a=b")]


def test_declarative_kind_has_the_ca_file_and_the_template_of_its_settings() -> None:
    given = {"resource": {"version": "v1", "plural": "x"}, "endpoint": {"template": "https://a/{metadata.name}"}}
    kind = parse_group(DeclarativeKind, {**given, "ca_file": "/ca"})
    assert (str(kind.authorities_file), str(kind.endpoint.template)) == ("/ca", "https://a/{metadata.name}")


@pytest.mark.parametrize(("source", "key"), [("", "alpha"), ("eu", "eu#alpha")])
def test_object_for_which_a_kind_raises_an_unexpected_error_is_malformed(source: str, key: str) -> None:
    def observe(_: KubeObject) -> Observation:
        raise ZeroDivisionError

    failed: list[tuple[str, str]] = []
    follows = OneResource(Resource("", "v1", "namespaces"), observe, lambda stored: stored.place)
    (followed,) = KeyedSource(
        follows, source, failed=lambda of, error: failed.append((of, type(error).__name__))
    ).collections
    assert seen(followed) == Malformed(key, "1", "7", "internal error (ZeroDivisionError)")
    assert failed == [(key, "ZeroDivisionError")]


@pytest.mark.parametrize("source", ["", "eu"])
def test_cluster_for_which_a_kind_raises_an_unexpected_error_is_malformed(source: str) -> None:
    def reduce(*_: object) -> Observation:
        raise ZeroDivisionError

    failed: list[tuple[str, str]] = []
    found = KeyedSource(
        SeveralResources((), reduce, Mock()),
        source,
        failed=lambda of, error: failed.append((of, type(error).__name__)),
    ).reduce
    assert found is not None
    assert found("alpha", (), "1") == Malformed("alpha", "1", "", "internal error (ZeroDivisionError)")
    assert failed == [("alpha", "ZeroDivisionError")]
