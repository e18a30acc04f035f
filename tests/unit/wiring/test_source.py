"""Clusters of a state file: which of their fields are used."""

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.state_file.encoding import StoredCluster
from milo_discoveryd.wiring.source import restorable

PLANTED = ("http://attacker.example.com",)
SOURCE = KeyedSource(ProjectKind().follow(SourceOptions(project_server="https://milo")))


def stored(name: str) -> StoredCluster:
    return StoredCluster("u", Target(name=name, uid="p", place=PLANTED, organization="shop"), 1.0)


def test_restored_cluster_has_an_address_derived_by_its_kind_and_other_fields_as_stored() -> None:
    ((seen, engaged_at),) = restorable([stored("../bank"), stored("web")], SOURCE.restored_place)
    assert seen.target.endpoint.startswith("https://milo/")
    assert (seen.name, seen.uid, seen.version, seen.target.organization, engaged_at) == ("web", "u", "", "shop", 1)
