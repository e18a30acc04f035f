"""Checks of listen addresses, which change nothing."""

import errno
import fcntl
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from milo_discoveryd.check import listen_addresses
from milo_discoveryd.check.finding import Finding
from milo_discoveryd.config import TcpAddress, UnixAddress
from milo_discoveryd.config.listeners import Tls
from milo_discoveryd.server.connections.tls_certificates import ServerTls
from tests.support.certificates import LOOPBACK, Authority
from tests.support.logs import capture_logs
from tests.support.ports import free_port


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


def check(path: Path) -> Finding:
    return listen_addresses.unix_socket(UnixAddress(path))


def test_unused_socket_path_is_free_and_not_created(path: Path) -> None:
    assert check(path).level == "ok"
    assert list(path.parent.iterdir()) == []


def test_missing_socket_directory_is_not_created(path: Path) -> None:
    finding = check(path.parent / "a" / "b" / "d.sock")
    assert (finding.level, finding.message) == ("ok", f"free; {path.parent}/a/b will be created")
    assert list(path.parent.iterdir()) == []


def test_stale_socket_file_is_free(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    path.with_name("d.sock.lock").write_text("12345\n")
    assert check(path).level == "ok"


def test_socket_in_use_is_a_warning_that_names_the_process(path: Path) -> None:
    with path.with_name("d.sock.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("12345\n")
        lock.flush()
        finding = check(path)
    assert (finding.level, finding.message) == ("warn", "in use by a daemon (process 12345)")
    assert check(path).level == "ok"


def test_socket_path_that_is_not_a_socket_fails_the_check(path: Path) -> None:
    path.write_text("a file")
    assert check(path).message == f"{path} exists and is not a socket"
    path.unlink()
    path.symlink_to("/nowhere")
    assert check(path).message == f"{path} exists and is a symbolic link"


def test_lock_file_that_is_a_symlink_fails_the_check(path: Path) -> None:
    path.with_name("d.sock.lock").symlink_to("/etc/passwd")
    assert check(path).message.startswith(f"the lock file {path}.lock cannot be opened")


def test_world_writable_socket_directory_fails_the_check(path: Path) -> None:
    path.parent.chmod(0o777)
    finding = check(path)
    assert finding.message.endswith("could replace the socket")
    assert finding.fix.startswith("listen in a subdirectory, which the daemon creates: ")


def test_socket_directory_that_is_a_file_fails_the_check(path: Path) -> None:
    path.write_text("")
    assert check(path / "d.sock").message == f"{path} is not a directory"


def test_unwritable_socket_directory_suggests_fs_group(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to every directory
    finding = check(path)
    assert "is not writable by us" in finding.message
    assert "emptyDir" in finding.fix


def test_tcp_port_is_free_or_in_use() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        finding = listen_addresses.tcp_port("http_listen", TcpAddress("127.0.0.1", port))
        assert (finding.level, finding.subject) == ("fail", f"http_listen 127.0.0.1:{port}")
        assert "in use" in finding.message
    assert listen_addresses.tcp_port("http_listen", TcpAddress("127.0.0.1", port)).level == "ok"
    assert listen_addresses.tcp_port("http_listen", TcpAddress("", 0)).level == "ok"


class WithoutIpv6(socket.socket):
    """A socket on a machine whose kernel has no IPv6."""

    def __init__(self, family: int = -1, *args: int, **more: int) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super().__init__(family, *args, **more)


def test_tcp_port_on_all_interfaces_is_free_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    assert listen_addresses.tcp_port("http_listen", TcpAddress("", 0)).level == "ok"


@pytest.mark.parametrize(
    ("one", "other", "is_used_twice"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "", True),
        ("::1", "", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::1", "::", True),
        ("0.0.0.0", "::", False),
        ("127.0.0.1", "::", False),
    ],
)
def test_port_used_twice_fails_the_check_if_the_hosts_overlap(one: str, other: str, is_used_twice: bool) -> None:
    for host, second in ((one, other), (other, one)):
        found = listen_addresses.used_twice("listen", TcpAddress(host, 7070), [TcpAddress(second, 7070)])
        assert (found is not None) == is_used_twice
        assert listen_addresses.used_twice("listen", TcpAddress(host, 7070), [TcpAddress(second, 7071)]) is None
    assert listen_addresses.used_twice("listen", TcpAddress(one, 0), [TcpAddress(one, 0)]) is None


def test_tcp_address_of_another_machine_fails_the_check() -> None:
    assert listen_addresses.tcp_port("http_listen", TcpAddress("192.0.2.1", 0)).level == "fail"


def test_socket_group_must_exist_and_be_a_group_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        listen_addresses.group("socket.group", "no-such-group").message == "this machine has no group 'no-such-group'"
    )
    assert listen_addresses.group("socket.group", "root").message == "group 0 can connect" or os.geteuid() != 0
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding = listen_addresses.group("socket.group", "65499")
    assert finding.level == "fail"
    assert "fsGroup or supplementalGroups: [65499]" in finding.fix
    assert listen_addresses.group("socket.group", str(os.getegid())).level == "ok"


def test_socket_owner_must_exist_and_only_root_can_set_a_different_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = listen_addresses.owner("listen owner", "no-such-user")
    assert (finding.level, finding.message) == ("fail", "this machine has no user 'no-such-user'")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert listen_addresses.owner("listen owner", "65499").level == "ok"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert listen_addresses.owner("listen owner", "65499").level == "fail"
    assert listen_addresses.owner("listen owner", "1000").level == "ok"


@pytest.mark.parametrize(
    ("life", "level", "message", "logged"),
    [
        (timedelta(minutes=-5), "fail", "the certificate expired at ", ["no client can connect"]),
        (timedelta(minutes=10), "warn", "the certificate expires at ", ["server certificate expires soon"]),
        (timedelta(days=30), "ok", "certificate and key match", []),
    ],
)
def test_expired_or_soon_expiring_server_certificate_is_reported(
    tmp_path: Path, life: timedelta, level: str, message: str, logged: list[str]
) -> None:
    authority = Authority()
    certificate, key = authority.issue(*LOOPBACK, life=life).write(tmp_path, "server")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    tls = Tls(certificate=certificate, key=key, client_ca=ca)
    finding = listen_addresses.certificate("listen", tls)
    assert (finding.level, finding.message.startswith(message)) == (level, True)
    with capture_logs() as lines:
        listen_addresses.certificate("listen", tls)
        assert lines == []
        ServerTls(certificate=certificate, key=key, client_ca=ca).context()
    assert [line["event"] for line in lines] == logged


def test_tls_files_with_which_no_client_can_connect_are_reported(tmp_path: Path) -> None:
    hour, ended = timedelta(hours=1), Authority("clients", life=timedelta(minutes=-5))
    authority = Authority()
    ca = tmp_path / "ca.crt"
    for pair, bundle, problem in (
        (authority.issue(*LOOPBACK, begins_in=hour, life=2 * hour), authority.pem, "the certificate is not valid"),
        (authority.issue(*LOOPBACK, use=ExtendedKeyUsageOID.CLIENT_AUTH), authority.pem, "the certificate has an ext"),
        (authority.server(), ended.pem, "the client_ca expired at "),
        (authority.server(), ended.pem + authority.pem, ""),
        (authority.issue(*LOOPBACK), b"\xc3\xa4 comment\n" + authority.pem, ""),
    ):
        certificate, key = pair.write(tmp_path, "server")
        ca.write_bytes(bundle)
        finding = listen_addresses.certificate("listen", Tls(certificate=certificate, key=key, client_ca=ca))
        assert (finding.level, finding.message.startswith(problem)) == ("fail" if problem else "ok", True)
        with capture_logs() as lines:
            ServerTls(certificate=certificate, key=key, client_ca=ca).context()
        assert [line["event"] for line in lines] == ["no client can connect"] * bool(problem)


def test_server_certificate_and_key_must_match(tmp_path: Path) -> None:
    authority = Authority()
    (certificate, key), (_, other) = (authority.server().write(tmp_path, name) for name in ("ours", "other"))
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    assert listen_addresses.certificate("listen", Tls(certificate=certificate, key=key, client_ca=ca)).level == "ok"
    for wrong, at_fault in (
        (Tls(certificate=certificate, key=other, client_ca=ca), other),
        (Tls(certificate=certificate, key=key, client_ca=key), key),
        (Tls(certificate=certificate, key=key, client_ca=tmp_path / "none"), tmp_path / "none"),
    ):
        finding = listen_addresses.certificate("listen", wrong)
        assert (finding.level, str(at_fault) in finding.message) == ("fail", True)
