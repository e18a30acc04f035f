"""The sandbox as a process: what it says, what it writes, how it ends."""

import asyncio
import json
import signal
import ssl
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.integration.sandbox.client import DEADLINE_S, PROJECTS


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "milo_sandbox", *arguments, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(3 * DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_says_where_it_listens_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with running("--listen", "127.0.0.1:0", "--projects", "3", "--kubeconfig-out", str(kubeconfig)) as process:
        assert (await line(process)).startswith("milo sandbox at https://127.0.0.1:")
        assert str(kubeconfig) in await line(process)
        process.send_signal(number)
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.endswith(b"milo sandbox stopped\n")


async def test_churn_makes_life(tmp_path: Path) -> None:
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


async def test_an_address_that_is_none_or_is_taken_is_said_in_a_line(tmp_path: Path) -> None:
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
    assert f"can't listen on 127.0.0.1:{port}".encode() in err
    assert b"Traceback" not in err


async def test_a_kubeconfig_that_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    async with running("--kubeconfig-out", str(tmp_path / "missing" / "kubeconfig")) as process:
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"can't write" in err
    assert b"Traceback" not in err
