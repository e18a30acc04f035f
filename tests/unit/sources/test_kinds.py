"""Kinds of sources by name, including those of other packages."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.sources.declarative import DeclarativeKind
from milo_discoveryd.sources.kind import (
    KINDS,
    FixedClusters,
    IssuerTraits,
    ProjectServer,
    ProjectUids,
    SourceKind,
    SourceOptions,
)
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.sources.project_control_plane import ProjectControlPlaneKind
from milo_discoveryd.sources.service_consumer import ServiceConsumerKind
from milo_discoveryd.sources.single import SingleKind


class Theirs(SourceKind, frozen=True, kw_only=True):
    is_watched = False

    name: str = "theirs"

    def follow(self, options: SourceOptions) -> FixedClusters:
        return FixedClusters((Target(name=self.name, uid="u", place=(options.project_server,)),))


def test_built_in_kinds_are_found() -> None:
    assert KINDS.load("project") is ProjectKind
    assert KINDS.names() == sorted(KINDS.built_in)
    assert all(issubclass(KINDS.load(name), SourceKind) for name in KINDS.names())


def test_kinds_describe_the_condition_that_makes_clusters_ready() -> None:
    assert ProjectKind().ready_when == "condition Ready is True"
    assert ProjectControlPlaneKind().ready_when == "condition ControlPlaneReady is True"
    assert SingleKind().ready_when == ""


def test_kinds_declare_where_the_uids_of_projects_come_from() -> None:
    assert ProjectKind().project_uids is ProjectUids.READ
    assert ProjectControlPlaneKind().project_uids is ProjectUids.STATED
    consumers = [ServiceConsumerKind(services=("dns",), follow_projects=follows) for follows in (True, False)]
    assert [kind.project_uids for kind in consumers] == [ProjectUids.READ, ProjectUids.NONE]
    assert SingleKind().project_uids is ProjectUids.NONE
    assert (DeclarativeKind.states_addresses, ProjectKind.states_addresses) == (True, False)


def test_unknown_kind_lists_available_kinds() -> None:
    with pytest.raises(LookupError, match=r"must be one of declarative, kind, .*project, .*single"):
        KINDS.load("projects")


def test_kind_of_another_package_is_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = EntryPoint("theirs", f"{__name__}:Theirs", KINDS.entry_points)
    found = EntryPoints([EntryPoint("other", f"{__name__}:Other", KINDS.entry_points), theirs])
    monkeypatch.setattr("importlib.metadata.entry_points", found.select)
    assert KINDS.names() == sorted([*KINDS.built_in, "other", "theirs"])
    assert KINDS.load("theirs") is Theirs


@pytest.mark.parametrize("name", sorted(KINDS.built_in))
def test_kind_declares_which_api_servers_it_uses(name: str) -> None:
    kind = KINDS.load(name)
    assert kind.is_watched or kind.project_server is not ProjectServer.IDENTITY
    assert kind.is_watched or not kind.contexts
    assert (kind.project_server is ProjectServer.NONE) == (name in {"kind", "kubeconfig-directory"})
    assert kind.addresses_are_configured == (name not in {"declarative", "kind", "kubeconfig-directory"})


def test_base_kind_does_not_implement_follow_and_rejects_issuers_that_need_files_or_objects() -> None:
    with pytest.raises(NotImplementedError):
        SourceKind().follow(SourceOptions())
    assert SourceKind().authorities_file is None
    assert SourceKind().unseen == ""
    assert "objects decide" in SourceKind().refusal(IssuerTraits("token-file"))
    assert SourceKind().refusal(IssuerTraits("kubeconfig-secret", is_of_cluster=True)) == ""
    assert "serves only sources that read kubeconfig files" in SourceKind().refusal(IssuerTraits("kubeconfig-file"))
    assert "serves only sources of kind declarative" in SourceKind().refusal(IssuerTraits("kubeconfig-request"))


def test_single_kind_has_the_configured_cluster() -> None:
    kind = parse_group(SingleKind, {"name": "one", "labels": {"b": "2", "a": "1"}, "organization": "acme"})
    (target,) = kind.follow(SourceOptions(project_server="https://one.example.com/base")).targets
    assert (target.name, target.endpoint, target.organization) == ("one", "https://one.example.com/base", "acme")
    assert target.labels == (("a", "1"), ("b", "2"))
