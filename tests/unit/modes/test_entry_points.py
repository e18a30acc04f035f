"""Modes by name, including those of other packages."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.modes import mode
from milo_discoveryd.modes.mode import FixedMode, Setting, WatchedMode
from milo_discoveryd.modes.project import ProjectMode
from milo_discoveryd.modes.project_control_plane import ProjectControlPlaneMode
from milo_discoveryd.modes.single import SingleMode

SETTING = Setting(project_endpoint="https://api.example.com")


def test_built_in_modes_are_found() -> None:
    assert {"project", "project-control-plane", "single"} <= set(mode.names())
    assert mode.load("project") is ProjectMode
    assert mode.load("project-control-plane") is ProjectControlPlaneMode
    assert mode.load("single") is SingleMode


def test_modes_say_where_their_clusters_and_authorities_come_from() -> None:
    assert set(filter(mode.reads_files, mode.names())) == {"kind", "kubeconfig-directory"}
    assert set(filter(mode.has_own_authorities, mode.names())) == {"declarative", "kind", "kubeconfig-directory"}


def test_unknown_mode_lists_available_modes() -> None:
    with pytest.raises(LookupError, match=r"there is no mode 'projects'; installed are .*project, .*single"):
        mode.load("projects")


def test_mode_of_another_package_is_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = EntryPoint("theirs", f"{__name__}:Theirs", mode.GROUP)
    found = EntryPoints([EntryPoint("other", f"{__name__}:Other", mode.GROUP), theirs])
    monkeypatch.setattr("importlib.metadata.entry_points", found.select)
    assert mode.is_installed("theirs")
    assert not mode.is_installed("nobodys")
    assert mode.names() == [
        "declarative",
        "kind",
        "kubeconfig-directory",
        "other",
        "project",
        "project-control-plane",
        "service-consumer",
        "single",
        "theirs",
    ]
    assert mode.load("theirs").__name__ == "Theirs"


class Theirs:
    def __init__(self, setting: Setting) -> None: ...

    def targets(self) -> Iterable[Target]:
        return ()


def test_mode_either_watches_or_has_fixed_clusters() -> None:
    assert isinstance(ProjectMode(SETTING), WatchedMode)
    assert not isinstance(ProjectMode(SETTING), FixedMode)
    assert isinstance(SingleMode(SETTING), FixedMode)
    assert isinstance(Theirs(SETTING), FixedMode)


def test_single_knows_the_clusters_it_was_given() -> None:
    given = Target(name="one", uid="u", place=("https://one.example.com",))
    assert list(SingleMode(Setting(project_endpoint="https://x", clusters=(given,))).targets()) == [given]


def test_kind_may_have_settings_of_its_own() -> None:
    assert mode.settings_type("service-consumer") is not None
    assert mode.settings_type("project") is None
