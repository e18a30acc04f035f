"""The identity of a daemon's run: kept in the state directory, and otherwise new each time."""

from pathlib import Path

import pytest

from milo_discoveryd.wiring.issuers import RUN_FILE, run_identity
from tests.support.logs import capture_logs


def test_run_identity_is_new_each_time_without_a_state_directory() -> None:
    assert run_identity(None) != run_identity(None)


def test_run_identity_survives_a_restart_with_a_state_directory(tmp_path: Path) -> None:
    first = run_identity(tmp_path)
    assert run_identity(tmp_path) == first
    assert (tmp_path / RUN_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"x", b"a" * 100, b"\xff" * 17])
def test_corrupt_run_identity_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RUN_FILE).write_bytes(content)
    assert run_identity(tmp_path) == run_identity(tmp_path)


def test_run_identity_is_new_if_it_cannot_be_stored(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).symlink_to(tmp_path / "elsewhere")
    with capture_logs() as logs:
        assert run_identity(tmp_path) != run_identity(tmp_path)
    assert [line["event"] for line in logs] == ["run identity not kept"] * 2
    assert not (tmp_path / "elsewhere").exists()


def test_run_identity_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run_identity(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert run_identity(tmp_path) != kept
