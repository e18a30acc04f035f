"""The whole daemon in this process, with a sandbox."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_discoveryd.kubeconfigs.kubeconfigs import Kubeconfigs
from milo_discoveryd.server.server import Server
from milo_discoveryd.wiring.source import Discovery
from milo_kube.reflect.view_status import ViewState
from milo_sandbox import Sandbox
from tests.support.eventually import LIMIT_S, eventually


class Workspace:
    def __init__(self, directory: Path, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._directory = directory
        self._flags: dict[str, Any] = {
            "discovery_kubeconfig": str(sandbox.write_kubeconfig(directory / "kubeconfig")),
            "listen": (f"unix://{directory}/d.sock",),
            "http_listen": "127.0.0.1:0",
        }

    def daemon(self, **settings: Any) -> Daemon:
        file = self._directory / "settings.yaml"
        file.write_text(json.dumps(settings))
        return Daemon(load(self._flags, {}, file))


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    async with Sandbox() as sandbox:
        yield Workspace(tmp_path, sandbox)


Look = Callable[[str], Awaitable[tuple[int, str]]]
"""Returns the status and the text of the response at a path."""


@asynccontextmanager
async def serving(daemon: Daemon) -> AsyncIterator[Look]:
    task = asyncio.create_task(daemon.serve())
    try:
        async with asyncio.timeout(LIMIT_S):
            await daemon.started.wait()
        async with aiohttp.ClientSession() as session:

            async def get(path: str) -> tuple[int, str]:
                async with session.get(f"{daemon.http_address}{path}") as response:
                    return response.status, await response.text()

            yield get
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_blocking_calls_of_the_daemon_wait_for_a_thread_when_the_limit_of_processes_is_reached(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(workspace.daemon()):
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refuse)
            assert await asyncio.gather(*(asyncio.to_thread(time.sleep, 0) for _ in range(20))) == [None] * 20


async def test_o4_daemon_is_live_before_it_is_ready_and_stays_ready_while_stale(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    await workspace.sandbox.stop()
    daemon = workspace.daemon()
    async with serving(daemon) as get:
        assert [(await get(path))[0] for path in ("/livez", "/readyz")] == [200, 503]
        await workspace.sandbox.start()
        await eventually(lambda: daemon._fleet.synced)
        assert (await get("/readyz"))[0] == 200
        await workspace.sandbox.stop()
        await eventually(lambda: daemon._fleet.status.state is ViewState.STALE)
        assert [(await get(path))[0] for path in ("/livez", "/readyz")] == [200, 200]


async def test_o8_metric_series_per_cluster_are_capped(workspace: Workspace) -> None:
    for number in range(5):
        workspace.sandbox.projects.create(f"p-{number}", ready=True, organization=f"org-{number // 2}")
    daemon = workspace.daemon(metrics={"cluster_info_cap": 2})
    async with serving(daemon) as get:
        await eventually(lambda: daemon._fleet.synced)
        _, metrics = await get("/metrics")
        assert metrics.count("\nmilo_discoveryd_cluster_info{") == 2
        assert "\nmilo_discoveryd_engaged_clusters 5" in metrics
        for number in (0, 1):
            assert f'\nmilo_discoveryd_organization_clusters{{organization="org-{number}"}} 2' in metrics
        assert "org-2" not in metrics
        assert "\nmilo_discoveryd_organization_clusters_omitted 1" in metrics


async def test_unreachable_clusters_are_counted_beyond_the_cap_of_cluster_series(workspace: Workspace) -> None:
    for number in range(5):
        workspace.sandbox.projects.create(f"p-{number}", ready=True)
    probes = {"interval": "1s", "unreachable_after": "1s"}
    daemon = workspace.daemon(metrics={"cluster_info_cap": 2}, connectivity=probes)
    async with serving(daemon) as get:
        await eventually(lambda: daemon._fleet.synced)
        await workspace.sandbox.stop()
        await eventually(lambda: daemon._fleet.sources[0].engagements.unreachable == 5)
        assert "\nmilo_discoveryd_unreachable_clusters 5" in (await get("/metrics"))[1]
        assert json.loads((await get("/?json"))[1])["unreachable"] == 5


@pytest.mark.parametrize("part", [Discovery, Kubeconfigs, Server])
async def test_o10_failed_task_ends_daemon(workspace: Workspace, part: type, monkeypatch: pytest.MonkeyPatch) -> None:
    async def die(*_: object) -> None:
        raise RuntimeError("a part died")

    monkeypatch.setattr(part, "watch" if part is Server else "run", die)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ExceptionGroup) as raised:
            await workspace.daemon().serve()
    assert raised.value.subgroup(RuntimeError) is not None
