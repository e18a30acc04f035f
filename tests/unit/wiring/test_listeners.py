"""Conversion of settings to listeners."""

import os
from pathlib import Path

import pytest

from milo_discoveryd.config import Settings, load
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.server.connections.listener import Listener, TcpEndpoint, UnixSocket
from milo_discoveryd.wiring.listeners import listeners


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def settings(file: Path, text: str) -> Settings:
    file.write_text(text)
    return load({}, {}, file)


def test_listener_inherits_socket_settings(file: Path) -> None:
    text = """
socket: {mode: "0600", group: "65499"}
listen:
  - {address: unix:///run/a.sock, connections: 100}
  - {name: b, address: unix:///run/b.sock, mode: "0660", group: "5", owner: root, peer_credentials: true,
     connections: 100}
  - {address: insecure://127.0.0.1:7070, connections: 100}
"""
    assert list(listeners(settings(file, text))) == [
        Listener(name="unix:///run/a.sock", address=UnixSocket(Path("/run/a.sock"), 0o600, 65499), connections=100),
        Listener(
            name="b", address=UnixSocket(Path("/run/b.sock"), 0o660, 5, 0), peer_credentials=True, connections=100
        ),
        Listener(name="insecure://127.0.0.1:7070", address=TcpEndpoint("127.0.0.1", 7070), connections=100),
    ]


def test_listeners_without_a_connection_limit_share_the_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milo_discoveryd.process_hardening.descriptor_limit", lambda: 1 << 20)
    text = "listen: [unix:///a, unix:///b, {address: unix:///c, connections: 5000}, unix:///d]"
    assert [listener.connections for listener in listeners(settings(file, text))] == [333, 333, 5000, 333]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("socket: {group: no-such}", "socket.group: there is no group 'no-such' on this machine; give its number"),
        ("listen: [{name: a, address: 'unix:///a', group: no-such}]", "a: there is no group 'no-such' on this machine"),
        ("listen: [{name: a, address: 'unix:///a', owner: no-such}]", "a: there is no user 'no-such' on this machine"),
    ],
)
def test_unknown_group_or_owner_of_listener_is_reported_with_listener_name_or_setting(
    file: Path, text: str, message: str
) -> None:
    with pytest.raises(StartError, match=message):
        list(listeners(settings(file, text)))


def test_listener_accepts_numeric_owner_and_group(file: Path) -> None:
    [made] = listeners(settings(file, f"listen: [{{address: 'unix:///a', owner: {os.getuid()}, group: 65498}}]"))
    assert made.address == UnixSocket(Path("/a"), 0o660, 65498, os.getuid())
