"""Startup errors: each problem is one actionable line, and the exit status is not 0."""

import socket
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
        (
            {"mode": "project-control-plane", "internal_address_template": "milo.example.com:6443"},
            "gives all projects the same address",
        ),
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
