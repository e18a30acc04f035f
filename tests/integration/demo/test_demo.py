"""The demo as a process."""

import asyncio
import os
import pty
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from contextlib import ExitStack
from pathlib import Path

import pytest
from kubernetes.client import CoreV1Api, CustomObjectsApi
from kubernetes.config import new_client_from_config

from milo_discovery import DiscoveryClient
from milo_sandbox import Sandbox
from tests.support.eventually import LIMIT_S, eventually

PROJECTS = ("resourcemanager.miloapis.com", "v1alpha1", "projects")
DEMO = (sys.executable, "-m", "milo_discoveryd", "demo")


def test_demo_prints_events_and_commands_to_try_next() -> None:
    with subprocess.Popen([*DEMO, "--churn", "50"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        shown = []
        for line in demo.stdout:
            shown.append(line)
            if "DISENGAGED" in line:
                break
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=120)
    assert (demo.returncode, errors) == (0, "")
    assert shown[0].startswith("Status page: http://127.0.0.1:")
    assert "In a second terminal:\n" in shown
    assert any("  ENGAGED" in line for line in shown)


def test_demo_stops_after_the_given_seconds() -> None:
    done = subprocess.run([*DEMO, "--seconds", "1"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("Events shown: ")


def test_demo_without_changes_counts_shown_events_and_disengages_nothing() -> None:
    demo = [*DEMO, "--seconds", "2", "--churn", "0"]
    done = subprocess.run(demo, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    engaged, updated = (sum(f"  {kind}  " in line for line in lines) for kind in ("ENGAGED", "UPDATED"))
    assert last.startswith(f"Events shown: {engaged} ENGAGED, {updated} UPDATED, 0 DISENGAGED.")


def test_demo_publishes_objects_and_names_commands_that_show_a_new_namespace(tmp_path: Path) -> None:
    demo = [*DEMO, "--objects", "--projects", "1", "--churn", "0"]
    with subprocess.Popen(demo, stdout=subprocess.PIPE, text=True) as started, ExitStack() as stack:
        stack.callback(started.terminate)
        assert started.stdout is not None
        shown = [started.stdout.readline() for _ in range(9)]
        reader, watcher, issue = (shlex.split(shown[line]) for line in (1, 2, 5))
        project = shown[8].split()[2]
        environ = {**os.environ, **dict([watcher[1].rstrip(";").split("=", 1)])}
        issued = [project if word == "NAME" else word for word in issue[2:-1]]
        file = tmp_path / "project.yaml"
        file.touch(mode=0o600)
        file.write_bytes(subprocess.run(issued, env=environ, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
        CoreV1Api(new_client_from_config(str(file))).create_namespace({"metadata": {"name": "team"}})
        for command in (reader, watcher[2:]):
            with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as output:
                stack.callback(output.kill)
                assert output.stdout is not None
                assert any(project in line and "team" in line for line in output.stdout)
                output.kill()
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=60)
    assert started.returncode == 0


def test_demo_rejects_seconds_with_a_unit_and_suggests_a_plain_number() -> None:
    done = subprocess.run([*DEMO, "--seconds", "5s"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "'--seconds': '5s' is not a valid number of seconds without a unit, such as 5;" in done.stderr


def test_project_deleted_in_a_demo_without_changes_is_disengaged() -> None:
    with subprocess.Popen([*DEMO, "--churn", "0"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        name = kubeconfig = ""
        for line in demo.stdout:
            words = line.split()
            if line.startswith("export KUBECONFIG="):
                kubeconfig = words[1].partition("=")[2]
            elif "DISENGAGED" in words:
                break
            elif "ENGAGED" in words and not name:
                name = words[2]
                with new_client_from_config(kubeconfig) as api:  # type: ignore[no-untyped-call]
                    CustomObjectsApi(api).delete_cluster_custom_object(*PROJECTS, name)
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)
    assert words[2] == name


async def test_demo_issues_kubeconfigs() -> None:
    demo = await asyncio.create_subprocess_exec(*DEMO, stdout=PIPE)
    assert demo.stdout is not None
    address = name = ""
    async with asyncio.timeout(LIMIT_S):
        while not name:
            line = (await demo.stdout.readline()).decode()
            assert line
            if "MILO_DISCOVERY_ADDRESS=" in line:
                address = line.strip().partition("=")[2]
            elif "ENGAGED" in line.split():
                name = line.split()[2]
    async with DiscoveryClient(address) as client:
        assert (await client.issue_kubeconfig(name)).kubeconfig
    demo.send_signal(signal.SIGINT)
    await demo.communicate()
    assert demo.returncode == 0


async def test_demo_watches_the_api_server_of_a_given_kubeconfig(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        sandbox.projects.create("alpha", ready=True)
        kubeconfig = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
        demo = await asyncio.create_subprocess_exec(*DEMO, "--kubeconfig", str(kubeconfig), stdout=PIPE)
        assert demo.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while "ENGAGED alpha" not in " ".join((await demo.stdout.readline()).decode().split()):
                pass
        demo.send_signal(signal.SIGINT)
        await demo.communicate()
    assert demo.returncode == 0


async def test_demo_reports_why_its_source_fails(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        kubeconfig = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
    demo = await asyncio.create_subprocess_exec(*DEMO, "--kubeconfig", str(kubeconfig), stdout=PIPE)
    assert demo.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        while "source STALE: ConnectFailed: " not in (line := (await demo.stdout.readline()).decode()):
            assert line
    demo.send_signal(signal.SIGINT)
    await demo.communicate()


def test_demo_prints_lines_on_a_dumb_terminal() -> None:
    controller, terminal = pty.openpty()
    environ = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen([*DEMO], stdout=terminal, stderr=terminal, stdin=terminal, env=environ) as demo:
        os.close(terminal)
        shown = b""
        while b"ENGAGED" not in shown:
            shown += os.read(controller, 4096)
        demo.terminate()
        assert demo.wait(120) == 0
    os.close(controller)
    assert b"\x1b" not in shown


def test_demo_exits_without_a_traceback_when_its_stdout_pipe_closes(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*DEMO, "--churn", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.wait(60) == 1
        assert demo.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_demo_reports_a_full_disk_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*DEMO], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "milo-discoveryd demo: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("command", ["demo", "sandbox"])
def test_temporary_directory_is_removed_on_sighup(tmp_path: Path, command: str) -> None:
    with started(command, tmp_path, subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert list(tmp_path.iterdir()) != []
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=120)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["demo", "sandbox"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=lambda number: number.name)
async def test_temporary_directory_is_removed_after_a_signal_during_startup(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    with started(command, tmp_path, subprocess.DEVNULL) as process:
        await eventually(lambda: any(tmp_path.iterdir()), within_s=60)
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 120) == 0
    assert list(tmp_path.iterdir()) == []


def started(command: str, directory: Path, stdout: int) -> subprocess.Popen[bytes]:
    """Start a command with temporary files in `directory`, and with the default action for SIGHUP, even under nohup."""
    words = ("env", "--default-signal=HUP", sys.executable, "-m", "milo_discoveryd", command)
    return subprocess.Popen(words, stdout=stdout, env={**os.environ, "TMPDIR": str(directory)})
