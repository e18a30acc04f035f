"""Clusters of a state file: which of their fields are used."""

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.modes.context import ContextKind, MiloContext
from milo_discoveryd.modes.mode import Setting
from milo_discoveryd.modes.project import ProjectMode
from milo_discoveryd.modes.project_control_plane import ProjectControlPlaneMode
from milo_discoveryd.modes.reading import ORGANIZATION_LABEL
from milo_discoveryd.state_file.encoding import StoredCluster
from milo_discoveryd.wiring.mode import place_of
from milo_discoveryd.wiring.source import restorable

SETTING = Setting(project_endpoint="https://milo")
PLANTED = ("http://attacker.example.com",)


def stored(name: str) -> StoredCluster:
    return StoredCluster("u", Target(name=name, uid="p", place=PLANTED, organization="shop"), 1.0)


def test_restored_endpoint_is_derived_by_mode_and_not_read_from_state_file() -> None:
    for mode in (ProjectMode(SETTING), ProjectControlPlaneMode(SETTING)):
        ((seen, engaged_at),) = restorable([stored("web")], place_of(mode))
        assert seen.target.place == mode.place_of("web", "p")
        assert (seen.name, seen.uid, seen.version, seen.target.organization, engaged_at) == ("web", "u", "", "shop", 1)


def test_restored_cluster_of_another_organization_than_the_context_is_skipped() -> None:
    mode = ProjectMode(Setting(project_endpoint="https://milo", context=MiloContext(ContextKind.ORGANIZATION, "acme")))

    def of(organization: str) -> StoredCluster:
        labels = ((ORGANIZATION_LABEL, organization),)
        return StoredCluster("u", Target(name=f"web-{organization}", uid="p", place=PLANTED, labels=labels), 1.0)

    assert [seen.name for seen, _ in restorable([of("acme"), of("evil"), stored("web")], place_of(mode))] == [
        "web-acme"
    ]


def test_invalid_cluster_names_in_state_file_are_skipped() -> None:
    names = ("../bank", "..%2e", "a?b#c", "", "web")
    found = restorable(map(stored, names), place_of(ProjectMode(SETTING)))
    assert [seen.name for seen, _ in found] == ["web"]
