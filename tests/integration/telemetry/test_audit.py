"""The audit log: its content, its file, and what it must not contain."""

import json
import os
import stat
from pathlib import Path

import pytest

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.rights import Recipient
from milo_discoveryd.telemetry.audit import Audit, AuditFile
from milo_discoveryd.telemetry.metrics import Metrics
from tests.support.logs import capture_logs

CALLER = Caller(listener="api", peer="unix:", uid=0, sans=("uri:spiffe://a/b",))


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_audit_event_is_logged_and_written_to_file(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "audit")
    audit = Audit(Metrics().audit, file)
    with capture_logs() as logged:
        audit.issued(Recipient(CALLER, "ops"), "kubeconfig issued", cluster="alpha", uid="u1")
        audit.refused(CALLER, "", "NO_RULE", call="ListClusters")
        audit.rights_changed(rules=["ops"])
        audit.reload_rejected(problems=["bad"])
        audit.object_reported("x" * 300, "u2", "its name is not a DNS name")
    file.close()
    found = lines(tmp_path / "audit")
    caller = {"listener": "api", "uid": 0, "sans": ["uri:spiffe://a/b"], "peer": "unix:"}
    assert [{name: value for name, value in line.items() if name != "timestamp"} for line in found] == [
        {"event": "kubeconfig issued", "rule": "ops", "cluster": "alpha", "uid": "u1", "caller": caller},
        {"event": "refused", "reason": "NO_RULE", "call": "ListClusters", "caller": caller},
        {"event": "rights changed", "rules": ["ops"]},
        {"event": "rights kept", "problems": ["bad"]},
        {"event": "object refused", "cluster": "x" * 253, "uid": "u2", "problem": "its name is not a DNS name"},
    ]
    assert all(str(line["timestamp"]).endswith("Z") for line in found)
    assert [line["event"] for line in logged] == [line["event"] for line in found]
    assert {line["logger"] for line in logged} == {"audit"}


def test_refused_objects_are_audited_up_to_a_rate(tmp_path: Path) -> None:
    file, now = AuditFile(tmp_path / "audit"), [0.0]
    audit = Audit(Metrics().audit, file, clock=lambda: now[0])
    for _ in range(100):
        audit.object_reported("evil", "u", "its endpoint is not a URL")
    audit.object_reported("other", "v", "its endpoint is not a URL")
    now[0] = 1.0
    for _ in range(2):
        audit.object_reported("evil", "u", "its endpoint is not a URL")
    now[0] = 10.0
    for number in range(1_000):
        audit.object_reported(f"evil-{number}", "u", "its endpoint is not a URL")
    file.close()
    found = lines(tmp_path / "audit")
    assert [line["cluster"] for line in found[:22]] == [*["evil"] * 20, "other", "evil"]
    assert found[20]["suppressed"] == 80
    assert "suppressed" not in found[21]
    assert len(found) == 22 + 200


def test_audit_file_is_appended_to_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for text in (b"one\n", b"two\n"):
        file = AuditFile(path)
        file.write(text)
        file.close()
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_moved_audit_file_is_created_again_on_reopen(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit", tmp_path / "audit.1"
    file = AuditFile(path)
    file.write(b"one\n")
    path.rename(moved)
    file.write(b"two\n")
    file.reopen()
    file.write(b"three\n")
    file.close()
    assert (moved.read_bytes(), path.read_bytes()) == (b"one\ntwo\n", b"three\n")


def test_audit_line_truncated_by_a_full_disk_does_not_corrupt_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit"
    file = AuditFile(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:4]))
    with pytest.raises(OSError, match="only 4 of 10 bytes"):
        file.write(b"first line\n"[:10])
    monkeypatch.undo()
    file.write(b"second\n")
    file.write(b"third\n")
    file.close()
    assert path.read_bytes() == b"firs\nsecond\nthird\n"


def test_audit_line_truncated_by_an_earlier_process_does_not_corrupt_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_bytes(b"one\ntw")
    file = AuditFile(path)
    file.write(b"three\n")
    file.close()
    assert path.read_bytes() == b"one\ntw\nthree\n"


def test_audit_file_must_be_a_regular_file_in_an_existing_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", tmp_path, tmp_path / "none" / "audit"):
        with pytest.raises(StartError, match=r"audit.file: cannot append to"):
            AuditFile(path)
    assert not (tmp_path / "elsewhere").exists()


def test_audit_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that can create the file first, in a directory that others may write to, could read and change the log."""
    path = tmp_path / "audit"
    path.touch()
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StartError, match=r"audit.file: \S+/audit belongs to user \d+, who could change the audit"):
        AuditFile(path)


def test_failed_audit_file_reopen_keeps_writing_to_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    file = AuditFile(path)
    path.rename(tmp_path / "audit.1")
    path.mkdir()
    with pytest.raises(StartError):
        file.reopen()
    file.write(b"one\n")
    file.close()
    assert (tmp_path / "audit.1").read_bytes() == b"one\n"


def test_audit_event_lost_to_a_full_disk_is_counted_and_fails_no_caller() -> None:
    metrics = Metrics()
    with capture_logs() as logged:
        audit = Audit(metrics.audit, AuditFile(Path("/dev/full")))
        audit.refused(CALLER, "ops", "TOO_MANY_STREAMS")
    assert metrics.registry.get_sample_value("milo_discoveryd_audit_events_lost_total") == 1
    assert (
        metrics.registry.get_sample_value("milo_discoveryd_requests_denied_total", {"reason": "too_many_streams"}) == 1
    )
    assert [line["event"] for line in logged] == ["refused", "audit event not written"]


def test_audit_pipe_that_nobody_reads_does_not_block_callers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit")
    file = AuditFile(tmp_path / "audit")
    audit = Audit((metrics := Metrics()).audit, file)
    for _ in range(1 << 10):  # more than a pipe holds
        audit.rights_changed(rules="x" * 4096)
    file.close()
    assert metrics.registry.get_sample_value("milo_discoveryd_audit_events_lost_total")
