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


def test_modes_that_read_files_or_have_their_own_ca_are_listed() -> None:
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


def test_modes_are_either_watched_or_fixed() -> None:
    assert isinstance(ProjectMode(SETTING), WatchedMode)
    assert not isinstance(ProjectMode(SETTING), FixedMode)
    assert isinstance(SingleMode(SETTING), FixedMode)
    assert isinstance(Theirs(SETTING), FixedMode)


def test_single_mode_has_the_configured_clusters() -> None:
    given = Target(name="one", uid="u", place=("https://one.example.com",))
    assert list(SingleMode(Setting(project_endpoint="https://x", clusters=(given,))).targets()) == [given]


def test_service_consumer_mode_has_its_own_settings_type() -> None:
    assert mode.settings_type("service-consumer") is not None
    assert mode.settings_type("project") is None
