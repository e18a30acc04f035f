"""Checks of the state directory, the audit file, the package of the trace exporter, and CA files."""

import threading
from pathlib import Path

import pytest
import yaml

from milo_discoveryd.check import checks, files
from milo_discoveryd.config import load
from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.sources.kind import FileObject
from tests.support.certificates import Authority


def test_missing_state_directory_is_ok_and_not_created(tmp_path: Path) -> None:
    assert files.state_directory(tmp_path).level == "ok"
    assert files.state_directory(tmp_path / "new" / "state").level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_world_writable_state_directory_fails_the_check(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert files.state_directory(tmp_path).level == "fail"


def test_state_directory_that_is_a_file_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert files.state_directory(tmp_path / "file").level == "fail"
    assert files.state_directory(tmp_path / "file" / "state").level == "fail"


def test_state_directory_that_is_read_only_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    assert files.state_directory(tmp_path / "state").level == "fail"


@pytest.mark.parametrize(
    ("path", "level"),
    [("new.log", "ok"), ("file", "ok"), ("missing/audit.log", "fail"), ("directory", "fail"), ("link", "fail")],
)
def test_audit_file_must_be_a_regular_file_that_can_be_created(path: str, level: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    finding = files.audit_file(tmp_path / path)
    assert finding.level == level
    assert bool(finding.fix) == (level == "fail")


def test_audit_file_in_a_read_only_directory_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert files.audit_file(tmp_path / "audit.log").level == "fail"


def test_trace_exporter_without_its_package_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.trace_exporter().level == "ok"
    for missing in ("no_such_package", "no_such_package.exporter"):
        monkeypatch.setattr(files, "EXPORTER_PACKAGE", missing)
        assert files.trace_exporter().level == "fail"


def test_ca_file_of_clusters_must_have_certificates(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    assert files.ca_file("ca", path).level == "fail"
    path.write_text("a file")
    assert files.ca_file("ca", path).level == "fail"
    path.write_bytes(Authority().pem)
    assert files.ca_file("ca", path).level == "ok"


async def test_kubeconfig_files_are_checked_in_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon runs this check, too, if a source fails at its start."""
    threads: list[threading.Thread] = []

    def objects_now(_: KubeconfigFiles) -> tuple[FileObject, ...]:
        threads.append(threading.current_thread())
        return ()

    monkeypatch.setattr(KubeconfigFiles, "objects_now", objects_now)
    config = tmp_path / "config.yaml"
    source = {"name": "files", "kind": "kubeconfig-directory", "settings": {"path": str(tmp_path)}}
    config.write_text(yaml.safe_dump({"sources": [source]}))
    await checks.log_problems(load({}, {}, config), {})
    assert threads
    assert threading.main_thread() not in threads
