"""Attacks by another user of the machine, who can write to shared directories, on a daemon and its commands."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from milo_sandbox.kubeconfigs import write
from milo_sandbox.rights import EVERYTHING
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.watching import following, until
from tests.support.forked_command import forked

ANOTHER_USER = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")


def own_by_another(*paths: Path) -> None:
    for path in paths:
        os.chown(path, ANOTHER_USER, ANOTHER_USER, follow_symlinks=False)


async def test_log_and_check_report_a_world_writable_kubeconfig_directory(
    workspace: Workspace,
) -> None:
    sources = []
    for name, mode in (("private", 0o700), ("shared", 0o777)):
        directory = workspace.directory / name
        directory.mkdir()
        directory.chmod(mode)
        workspace.sandbox.projects.create(f"of-{name}", ready=True)
        token = workspace.sandbox.token("operator", rules=[EVERYTHING])
        write(directory / "alpha", workspace.sandbox.kubeconfig(project=f"of-{name}", token=token))
        sources.append({"name": name, "kind": "kubeconfig-directory", "settings": {"path": str(directory)}})
    own_by_another(workspace.directory / "shared" / "alpha")
    daemon = workspace.daemon(discovery_kubeconfig=None, sources=sources)
    async with following(daemon) as (_, watch):
        await until(watch, lambda seen: set(seen.clusters) == {"private#alpha", "shared#alpha"})
        [warning] = daemon.events("kubeconfig directory is exposed")
    arguments = ("check", "--config", str(workspace.directory / "config.yaml"))
    _, out, _ = await forked("milo-discoveryd", arguments, {})
    [warned] = [line for line in out.splitlines() if "world-writable" in line]
    for text in (str(warning["problem"]), warned):
        assert f"{workspace.directory}/shared is world-writable" in text


@pytest.mark.parametrize("planted", ["kubeconfigs", "ledger"])
async def test_sync_writes_no_credential_into_files_that_another_user_planted(
    workspace: Workspace, planted: str
) -> None:
    for name in ("alpha", "beta", "gamma"):
        workspace.sandbox.projects.create(name, ready=True)
    shared, elsewhere = workspace.directory / "shared", workspace.directory / "elsewhere"
    shared.mkdir()
    shared.chmod(0o777)
    alpha, beta = shared / "alpha.kubeconfig", shared / "beta.kubeconfig"
    for file in (alpha, elsewhere):
        file.write_text("{}")
        file.chmod(0o666)
    beta.symlink_to(elsewhere)
    own_by_another(alpha, beta, elsewhere)
    if planted == "ledger":
        ledger = shared / ".milo-discovery.json"
        ledger.write_text(json.dumps({"files": ["alpha", "beta"], "index": True, "group": None, "filter": None}))
        own_by_another(ledger)
    issuer = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
    async with following(workspace.daemon(kubeconfigs={"issuers": [issuer]})) as (_, watch):
        await until(watch, lambda seen: len(seen.clusters) == 3)
        arguments = ("--address", workspace.address, "sync", "--once", "--dir", str(shared))
        status, _, err = await forked("milo-discovery", arguments, {})
    assert status == 1
    assert (alpha.read_text(), elsewhere.read_text(), beta.is_symlink()) == ("{}", "{}", True)
    if planted == "ledger":
        assert f"is owned by uid {ANOTHER_USER}" in err
        assert not (shared / "gamma.kubeconfig").exists()
    else:
        assert f"{shared} is world-writable" in err
        for file in (alpha, beta):
            assert f"{file} exists and was not written by milo-discovery sync" in err
        gamma = (shared / "gamma.kubeconfig").stat()
        assert (gamma.st_uid, gamma.st_mode & 0o777) == (os.geteuid(), 0o600)


@pytest.mark.parametrize("plant", ["directory of another user", "directory that another user can write to"])
async def test_run_and_list_without_an_address_ignore_a_demo_that_another_user_can_replace(
    workspace: Workspace, plant: str
) -> None:
    program = workspace.directory / "my_operator.py"
    program.write_text("import os\nprint(os.environ['MILO_DISCOVERY_ADDRESS'])")

    async def run(*arguments: str) -> tuple[int | None, str, str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MILO_DISCOVERY")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "milo_discovery_cli", *arguments,
            stdout=PIPE, stderr=PIPE, env=environ | {"TMPDIR": str(workspace.directory)},
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    demos = [workspace.directory / f"milo-demo-{name}" for name in ("own", "planted")]
    async with demo(workspace, demos[0]) as own, demo(workspace, demos[1]) as planted:
        await own.start()
        await planted.start()  # the newer one
        if plant == "directory of another user":
            own_by_another(demos[1])
        else:
            demos[1].chmod(0o777)
        status, out, _ = await run("run", "--no-restart", str(program))
        assert (status, out) == (0, f"{own.address}\n")
        status, _, err = await run("list")
        assert (status, f"using the demo at {own.address}" in err) == (0, True)
        await own.terminate()
        status, out, err = await run("run", "--no-restart", str(program))
        assert (status, out, "start ./dev demo" in err) == (1, "", True)
        assert planted.is_running


def demo(workspace: Workspace, directory: Path) -> DaemonProcess:
    """Return a daemon with the socket of a demo."""
    directory.mkdir(mode=0o700)
    address = f"unix://{directory}/discovery.sock"
    flags = {"discovery-kubeconfig": workspace.kubeconfig, "listen": address, "http-listen": "off"}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return DaemonProcess(address, *arguments, is_forked=True)
