"""The sandbox as a process: output, files and exit."""

import asyncio
import json
import shutil
import signal
import ssl
import sys
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.integration.sandbox.client import PROJECTS

START_WITHIN_S = 60.0


@asynccontextmanager
async def running(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "milo_sandbox", *arguments, stdout=pipe, stderr=pipe, env=environment
    )
    try:
        async with asyncio.timeout(START_WITHIN_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_sandbox_prints_its_address_and_stops_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with running("--listen", "127.0.0.1:0", "--projects", "3", "--kubeconfig-out", str(kubeconfig)) as process:
        assert (await line(process)).startswith("milo sandbox at https://127.0.0.1:")
        assert str(kubeconfig) in await line(process)
        process.send_signal(number)
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.endswith(b"milo sandbox stopped\n")


async def test_sandbox_churn_adds_modifies_and_deletes_projects(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with running("--projects", "5", "--churn", "100", "--kubeconfig-out", str(kubeconfig)) as process:
        assert "5 projects, about 100 changes a second" in await line(process)
        assert str(kubeconfig) in await line(process)
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        ca = b64decode(cluster["certificate-authority-data"]).decode()
        token = Path(config["users"][0]["user"]["tokenFile"]).read_text()
        seen = set()
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"{cluster['server']}{PROJECTS}?watch=1",
                headers={"Authorization": f"Bearer {token}"},
                ssl=ssl.create_default_context(cadata=ca),
            ) as stream,
        ):
            async for event in stream.content:
                seen.add(json.loads(event)["type"])
                if seen == {"ADDED", "MODIFIED", "DELETED"}:
                    break
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


async def test_sandbox_reports_an_invalid_address_or_one_in_use_without_a_traceback(tmp_path: Path) -> None:
    for address in ("nowhere", "127.0.0.1:99999", ":x"):
        async with running("--listen", address) as process:
            out, err = await process.communicate()
        assert (process.returncode, out) == (1, b"")
        assert b"HOST:PORT" in err
        assert b"Traceback" not in err
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with running("--listen", f"127.0.0.1:{port}") as process:
            _, err = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}".encode() in err
    assert b"Traceback" not in err


async def test_sandbox_reports_an_unwritable_kubeconfig_without_a_traceback(tmp_path: Path) -> None:
    async with running("--kubeconfig-out", str(tmp_path / "missing" / "kubeconfig")) as process:
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"cannot write" in err
    assert b"Traceback" not in err


async def introduction(process: asyncio.subprocess.Process) -> str:
    """Return the commands that the sandbox prints, up to the watch that never ends."""
    lines = []
    while not (text := await line(process)).startswith("kubectl get projects --watch"):
        assert text
        lines.append(text)
    return "".join(lines).partition("in another terminal:\n")[2]


async def test_sandbox_prints_commands_that_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which the commands call, is not installed")
    async with running("--projects", "1", "--kubeconfig-out", str(tmp_path / "kube config")) as process:
        commands = await introduction(process)
        shell = await asyncio.create_subprocess_exec(
            "sh", "-e", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await shell.communicate(commands.encode())
    assert shell.returncode == 0, out.decode()
    for words in (b"project.resourcemanager.miloapis.com/hello created", b"hello created", b'"hello" deleted'):
        assert words in out


async def test_sandbox_prints_no_kubectl_commands_if_kubectl_is_not_installed(tmp_path: Path) -> None:
    async with running(
        "--kubeconfig-out", str(tmp_path / "kubeconfig"), environment={"PATH": str(tmp_path)}
    ) as process:
        assert (await line(process)).startswith("milo sandbox at ")
        assert str(tmp_path) in await line(process)
        process.terminate()
        out, _ = await process.communicate()
    assert out == b"milo sandbox stopped\n"


async def started(kubeconfig: Path, *arguments: str) -> tuple[str, dict[str, object], str]:
    """Run a sandbox and stop it; return its address, the cluster of its kubeconfig and its projects."""
    async with running("--kubeconfig-out", str(kubeconfig), *arguments) as process:
        address = (await line(process)).split()[3].rstrip(":")
        assert str(kubeconfig) in await line(process)
        config = yaml.safe_load(kubeconfig.read_text())
        [cluster] = (entry["cluster"] for entry in config["clusters"])
        token = Path(config["users"][0]["user"]["tokenFile"]).read_text()
        ca = b64decode(cluster["certificate-authority-data"]).decode()
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"{cluster['server']}{PROJECTS}",
                headers={"Authorization": f"Bearer {token}"},
                ssl=ssl.create_default_context(cadata=ca),
            ) as response,
        ):
            items = (await response.json())["items"]
        process.terminate()
        await process.communicate()
    return address, cluster, json.dumps([(item["metadata"]["name"], item["metadata"]["uid"]) for item in items])


async def test_sandbox_restarted_with_its_kubeconfig_keeps_port_ca_and_projects(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    first = await started(kubeconfig, "--projects", "3")
    assert await started(kubeconfig, "--projects", "3") == first
    assert (tmp_path / "kubeconfig.sandbox").stat().st_mode & 0o777 == 0o600


async def test_sandbox_ignores_a_damaged_saved_identity(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig.sandbox").write_text("{")
    address, *_ = await started(tmp_path / "kubeconfig")
    assert address.startswith("https://127.0.0.1:")
