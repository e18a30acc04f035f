"""`./dev real`: `up` starts the servers, `status` reports them, `down` stops only these."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.session import Session

ROOT = Path(__file__).parents[3]


def dev_real(state: Path, verb: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.real", verb],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(state), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_dev_real_status_without_servers_reports_none(tmp_path: Path) -> None:
    status = dev_real(tmp_path, "status")
    down = dev_real(tmp_path, "down")

    assert (status.returncode, status.stdout) == (1, "no server is running: start them with ./dev real up\n")
    assert (down.returncode, down.stderr) == (0, "dev real: nothing to stop\n")


def test_dev_real_up_without_go_exits_with_status_3(tmp_path: Path) -> None:
    up = dev_real(tmp_path, "up", PATH="/nowhere", XDG_CACHE_HOME=str(tmp_path))

    assert up.returncode == 3
    assert "there is none on PATH" in up.stderr


def test_dev_real_up_keeps_servers_running_until_down_stops_every_process(built: Programs, tmp_path: Path) -> None:
    up = dev_real(tmp_path, "up")
    assert up.returncode == 0, up.stderr
    session = Session(tmp_path / "milo-discoveryd" / "real")
    servers = session.servers()

    assert [server.mode for server in servers] == ["project", "project-control-plane"]
    assert all(process.running() for server in servers for process in server.processes)
    status = dev_real(tmp_path, "status")
    assert status.returncode == 0
    assert [line for line in status.stdout.splitlines() if line.startswith("replaced: ")] == [
        f"replaced: {missing}" for missing in built.missing
    ]
    assert "servers run already" in dev_real(tmp_path, "up").stderr

    assert dev_real(tmp_path, "down").returncode == 0
    assert not any(process.running() for server in servers for process in server.processes)
    assert not Path(servers[0].kubeconfig).exists()
    assert dev_real(tmp_path, "status").returncode == 1


async def test_dev_real_down_does_not_kill_a_process_that_reused_a_pid(tmp_path: Path) -> None:
    session = Session(tmp_path)
    innocent = await asyncio.create_subprocess_exec("/bin/sleep", "600")
    record = {
        "servers": [
            {
                "mode": "project",
                "title": "long gone",
                "kubeconfig": "/nowhere",
                "processes": [{"name": "etcd", "pid": innocent.pid, "born": 1, "log": "/nowhere"}],
            }
        ]
    }
    (tmp_path / "servers.json").write_bytes(msgspec.json.encode(record))
    messages: list[str] = []

    await session.down(messages.append)

    assert messages == ["all had exited already"]
    assert innocent.returncode is None
    innocent.kill()
    assert await innocent.wait() == -signal.SIGKILL
