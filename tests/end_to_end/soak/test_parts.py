"""Tests of the parts of a soak test: its saved state and the restartable sandbox."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from milo_sandbox import Sandbox
from milo_sandbox.history import CompactedError
from milo_sandbox.resources import PROJECTS
from tests.end_to_end.soak.sandbox_process import DATA, remember
from tests.end_to_end.soak.saved_state import DAEMONS, Ports, SavedState
from tests.end_to_end.soak.servers import SandboxServer
from tests.end_to_end.soak.soak import Soak


def test_soak_resumes_from_the_last_completely_saved_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, work = SavedState(tmp_path / "state"), tmp_path / "work"
    for daemon in DAEMONS:
        (work / f"{daemon}.state").mkdir(parents=True)
    (work / DATA).write_text("first")
    saved.save(work, Ports(1, 2), {})
    (work / DATA).write_text("second")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            saved.save(work, Ports(3, 4), {})
    (begun := tmp_path / "begun").mkdir()
    assert SavedState(tmp_path / "state").restore(begun) == Ports(1, 2)
    assert (begun / DATA).read_text() == "first"
    saved.save(work, Ports(5, 6), {})
    assert saved.restore(begun) == Ports(5, 6)
    assert (begun / DATA).read_text() == "second"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-0002"]


async def test_soak_continues_with_objects_and_state_of_the_previous_run(tmp_path: Path) -> None:
    saved = SavedState(tmp_path / "state")
    names: list[set[str]] = []
    for piece in range(2):
        with TemporaryDirectory(prefix="milo-") as name:
            work = Path(name)
            ports = saved.restore(work)
            soak = Soak(SandboxServer(work), work, 1, lambda _: None, ports, piece=piece)
            found = await soak.run(0.0, saved)
            assert found.failures == []
            assert found.restored == piece
            names.append(set(soak._writer.upstream.names()))
        saved.add(found)
    assert names[0] == names[1]
    assert [saved_report.restored for saved_report in saved.reports()] == [0, 1]


def test_sandbox_restart_keeps_objects_and_compacts_history(tmp_path: Path) -> None:
    first = Sandbox()
    remember(first.store, tmp_path / "objects")
    made = first.projects.create("alpha", ready=True)
    first.projects.create("beta")
    first.projects.delete("beta")

    second = Sandbox()
    remember(second.store, tmp_path / "objects")

    assert second.projects.read("alpha")["metadata"]["uid"] == made["metadata"]["uid"]
    assert [record.name for record in second.store[PROJECTS]] == ["alpha"]
    assert second.store.version == first.store.version
    assert not second.store[PROJECTS].history.since(second.store.version)
    with pytest.raises(CompactedError):
        second.store[PROJECTS].history.since(second.store.version - 1)
