"""Whether the daemon could listen where it is told to; looking changes nothing."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

from milo_discoveryd.check import places
from milo_discoveryd.check.finding import Finding
from milo_discoveryd.config import TcpAddress, UnixAddress
from milo_discoveryd.config.listeners import Tls
from tests.support.certificates import Authority


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


def look(path: Path) -> Finding:
    return places.unix_socket(UnixAddress(path))


def test_a_free_path_is_free_and_stays_so(path: Path) -> None:
    assert look(path).level == "ok"
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_can_be_made_is_not_made(path: Path) -> None:
    finding = look(path.parent / "a" / "b" / "d.sock")
    assert (finding.level, finding.seen) == ("ok", f"free; {path.parent}/a/b will be made")
    assert list(path.parent.iterdir()) == []


def test_a_socket_that_a_dead_daemon_left_is_free(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    path.with_name("d.sock.lock").write_text("12345\n")
    assert look(path).level == "ok"


def test_a_path_that_a_daemon_serves_is_told_with_its_process(path: Path) -> None:
    with path.with_name("d.sock.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("12345\n")
        lock.flush()
        finding = look(path)
    assert (finding.level, finding.seen) == ("warn", "a daemon (process 12345) serves there")
    assert look(path).level == "ok"


def test_something_else_at_the_path_is_told(path: Path) -> None:
    path.write_text("a file")
    assert look(path).seen == f"{path} is there, and is not a socket"
    path.unlink()
    path.symlink_to("/nowhere")
    assert look(path).seen == f"{path} is there, and is a symbolic link"


def test_a_lock_that_is_a_link_is_not_followed(path: Path) -> None:
    path.with_name("d.sock.lock").symlink_to("/etc/passwd")
    assert look(path).seen.startswith("its lock file cannot be opened")


def test_a_folder_that_everybody_may_write_in_is_told(path: Path) -> None:
    path.parent.chmod(0o777)
    finding = look(path)
    assert finding.seen.endswith("so anybody could put another socket in its place")
    assert finding.mend == f"chmod o-w {path.parent}, or listen in a folder in it"


def test_a_folder_that_is_a_file_is_told(path: Path) -> None:
    path.write_text("")
    assert look(path / "d.sock").seen == f"{path} is not a folder"


def test_a_folder_that_is_not_ours_is_told_with_what_a_pod_needs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root, every folder is writable
    finding = look(path)
    assert "is not writable for us" in finding.seen
    assert "emptyDir" in finding.mend


def test_a_port_is_free_or_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        finding = places.tcp_port("http_listen", TcpAddress("127.0.0.1", port))
        assert (finding.level, finding.what) == ("fail", f"http_listen 127.0.0.1:{port}")
        assert "in use" in finding.seen
    assert places.tcp_port("http_listen", TcpAddress("127.0.0.1", port)).level == "ok"
    assert places.tcp_port("http_listen", TcpAddress("", 0)).level == "ok"


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    assert places.tcp_port("http_listen", TcpAddress("192.0.2.1", 0)).level == "fail"


def test_a_group_must_exist_and_be_ours_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.group("socket.group", "no-such-group").seen == "there is no group 'no-such-group' on this machine"
    assert places.group("socket.group", "root").seen == "group 0 may connect" or os.geteuid() != 0
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding = places.group("socket.group", "65499")
    assert finding.level == "fail"
    assert "fsGroup or supplementalGroups: [65499]" in finding.mend
    assert places.group("socket.group", str(os.getegid())).level == "ok"


def test_a_certificate_its_key_and_the_ca_of_clients_must_fit_together(tmp_path: Path) -> None:
    authority = Authority()
    (certificate, key), (_, other) = (authority.server().write(tmp_path, name) for name in ("ours", "other"))
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    assert places.certificate("listen", Tls(certificate=certificate, key=key, client_ca=ca)).level == "ok"
    for wrong in (
        Tls(certificate=certificate, key=other, client_ca=ca),
        Tls(certificate=certificate, key=key, client_ca=key),
        Tls(certificate=certificate, key=key, client_ca=tmp_path / "none"),
    ):
        finding = places.certificate("listen", wrong)
        assert (finding.level, "can't be used" in finding.seen) == ("fail", True)
