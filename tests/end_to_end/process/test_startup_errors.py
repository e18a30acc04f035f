"""Startup errors: each problem is one actionable line, and the exit status is not 0."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess


async def refusal(daemon: DaemonProcess) -> list[str]:
    """Return the error lines of a daemon that fails to start, without the program's name."""
    async with daemon:
        await daemon.spawn()
        assert await daemon.ended() == 1
        assert "Traceback" not in daemon.output
        lines = [line for line in daemon.output.splitlines() if not line.startswith("{")]
        assert all(line.startswith("milo-discoveryd: ") for line in lines), lines
        return [line.removeprefix("milo-discoveryd: ") for line in lines]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "projects"}, 'key mode: "projects" must be one of'),
        ({"label_selector": "env in prod"}, 'key label_selector: "env in prod" must be a Kubernetes label selector'),
        ({"heartbeat_interval": "-5s"}, 'key heartbeat_interval: "-5s" must be a duration'),
        ({"not_ready_grace": "2h"}, 'key not_ready_grace: "2h" must be'),
        ({"stalled_timeuot": "5s"}, "key stalled_timeuot: is not a setting; did you mean stalled_timeout?"),
        ({"watch": {"page_size": 0}}, 'key watch.page_size: "0" must be at least 1'),
        ({"internal_address_template": "milo.example.com:6443"}, "gives all projects the same address"),
        ({"listen": ["0.0.0.0:9000"]}, "0.0.0.0:9000"),
        ({"listen": ["somewhere"]}, '"somewhere" must be'),
        ({"socket": {"group": "no-such-group"}}, "socket.group: there is no group 'no-such-group' on this machine"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_startup_error_names_invalid_setting(workspace: Workspace, settings: dict[str, Any], words: str) -> None:
    [line] = await refusal(workspace.daemon(**settings))
    assert words in line


async def test_invalid_settings_are_named_together(workspace: Workspace) -> None:
    lines = await refusal(workspace.daemon("--mode", "other", label_selector="a in", heartbeat_interval="-1s"))
    assert len(lines) == 3
    assert [next(word for word in ("mode", "label_selector", "heartbeat_interval") if word in line) for line in lines]


async def test_startup_error_names_invalid_environment_variable(workspace: Workspace) -> None:
    [line] = await refusal(workspace.daemon(environ={"MILO_DISCOVERYD_MODES": "project"}))
    assert "MILO_DISCOVERYD_MODES: is not a setting" in line


async def test_startup_error_names_missing_settings_file(directory: Path) -> None:
    [line] = await refusal(DaemonProcess("", "--config", str(directory / "none.yaml")))
    assert f"{directory / 'none.yaml'}" in line
    assert "No such file" in line


async def test_too_long_socket_path_is_rejected(workspace: Workspace) -> None:
    long = workspace.directory / ("s" * 120)
    [line] = await refusal(workspace.daemon(listen=[f"unix://{long}"]))
    assert "107" in line
    assert "key listen" in line


async def test_world_writable_socket_directory_is_rejected(workspace: Workspace) -> None:
    directory = workspace.directory / "open"
    directory.mkdir()
    directory.chmod(0o777)
    [line] = await refusal(workspace.daemon(listen=[f"unix://{directory}/d.sock"]))
    assert f"chmod o-w {directory}" in line


async def test_regular_file_at_socket_path_is_rejected_and_kept(workspace: Workspace) -> None:
    workspace.socket.write_text("precious")
    [line] = await refusal(workspace.daemon())
    assert line == f"{workspace.socket} exists and is not a socket: remove it, or listen on another path"
    assert workspace.socket.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("clusters: [", "is not YAML"),
        ("just text", "is not a kubeconfig"),
        ("{apiVersion: v1, kind: Config, clusters: [], users: [], contexts: []}", "has no current-context"),
    ],
    ids=["missing", "not-yaml", "text", "no-context"],
)
async def test_startup_error_names_unusable_kubeconfig(workspace: Workspace, content: str | None, words: str) -> None:
    path = workspace.directory / "other"
    if content is not None:
        path.write_text(content)
    [line] = await refusal(workspace.daemon(discovery_kubeconfig=str(path)))
    assert str(path) in line
    assert words in line


async def test_startup_error_names_directory_as_kubeconfig(workspace: Workspace) -> None:
    [line] = await refusal(workspace.daemon(discovery_kubeconfig=str(workspace.directory)))
    assert str(workspace.directory) in line


async def test_startup_error_names_missing_kubeconfig_outside_a_cluster(workspace: Workspace) -> None:
    [line] = await refusal(workspace.daemon(discovery_kubeconfig=None))
    assert "kubeconfig" in line


async def test_startup_error_names_metrics_port_in_use(workspace: Workspace) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        [line] = await refusal(workspace.daemon(http_listen=f"127.0.0.1:{port}"))
    assert f"127.0.0.1:{port}" in line
    assert not workspace.socket.exists()


async def test_startup_error_names_listen_port_in_use(workspace: Workspace) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        [line] = await refusal(workspace.daemon(listen=[workspace.address, f"insecure://127.0.0.1:{port}"]))
    problem = "the port is in use, or the address is not one of this machine"
    assert line == f"can't listen on 127.0.0.1:{port}: {problem}"
    assert not workspace.socket.exists()
