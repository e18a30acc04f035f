"""The setting `listen`: addresses, and mappings with authentication."""

from pathlib import Path

import pytest

from milo_discoveryd.config import ListenerSettings, load
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.schema.values import InsecureAddress, TcpAddress, UnixAddress

TLS = "tls: {certificate: /tls/tls.crt, key: /tls/tls.key, client_ca: /tls/ca.crt}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def listeners(file: Path, *items: str) -> tuple[ListenerSettings, ...]:
    file.write_text("listen:\n" + "".join(f"  - {item}\n" for item in items))
    return load({}, {}, file).listen


def problem(file: Path, *items: str) -> str:
    with pytest.raises(ConfigError) as caught:
        listeners(file, *items)
    [expected] = caught.value.problems
    return expected.partition("key listen: ")[2]


def test_listen_setting_accepts_a_mix_of_addresses_and_mappings(file: Path) -> None:
    plain, unix, tcp = listeners(
        file,
        "unix:///run/a.sock",
        '{name: operators, address: unix:///run/b.sock, mode: "0600", owner: 1000, group: milo}',
        f'{{address: "0.0.0.0:7443", {TLS}, tokens: true}}',
    )
    assert (plain.title, plain.address) == ("unix:///run/a.sock", UnixAddress(Path("/run/a.sock")))
    assert (unix.title, unix.mode, unix.owner, unix.group) == ("operators", 0o600, "1000", "milo")
    assert (tcp.title, tcp.address, tcp.tokens) == ("0.0.0.0:7443", TcpAddress("0.0.0.0", 7443), True)
    assert tcp.tls is not None
    assert tcp.tls.client_ca == Path("/tls/ca.crt")


def test_loopback_without_tls_must_be_requested_explicitly(file: Path) -> None:
    [local] = listeners(file, '"insecure://127.0.0.1:7070"')
    assert local.address == InsecureAddress("127.0.0.1", 7070)
    assert str(local.address) == "insecure://127.0.0.1:7070"
    assert problem(file, '"127.0.0.1:7070"').endswith('every local process to connect, use "insecure://127.0.0.1:7070"')


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            '"10.0.0.1:80"',
            '"10.0.0.1:80" is a TCP address without `tls`: use a Unix socket, or set certificate, key and client_ca',
        ),
        ('"insecure://10.0.0.1:80"', "is not on loopback, so the traffic would be readable on the network"),
        ("{name: a}", "[0].address: is missing"),
        (f'{{address: "unix:///a", {TLS}}}', "[0]: has `tls`, which is only for TCP"),
        (f'{{address: "insecure://[::1]:80", {TLS}}}', "[0]: has `tls`, but its address begins with insecure"),
        (f'{{address: "h:80", {TLS}, peer_credentials: true}}', "[0]: has peer_credentials, which is only for Unix"),
        (f'{{address: "h:80", {TLS}, mode: "0600"}}', "[0]: has mode, which is only for Unix"),
        ('{address: "h:80", tls: {certificate: /a, key: /b}}', "[0].tls.client_ca: is missing"),
        ('{address: "h:80", tls: {certificate: /a, key: /b, ca: /c}}', "[0].tls.c"),
        ('{address: "unix:///a", mode: "0666"}', '[0].mode: "0666" must not be world-writable'),
        ('{address: "unix:///a", modus: "0600"}', "[0].modus: "),
    ],
)
def test_conflicting_listener_settings_are_reported_with_config_path(file: Path, item: str, expected: str) -> None:
    file.write_text(f"listen: [{item}]")
    with pytest.raises(ConfigError) as caught:
        load({}, {}, file)
    assert expected in str(caught.value)


def test_duplicate_listener_names_and_addresses_are_rejected(file: Path) -> None:
    assert "several listeners with the name 'a'" in problem(
        file, "{name: a, address: unix:///a}", "{name: a, address: unix:///b}"
    )
    assert "several listeners with the address unix:///a" in problem(file, "{name: a, address: unix:///a}", "unix:///a")
