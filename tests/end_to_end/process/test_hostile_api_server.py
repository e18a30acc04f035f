"""An API server that sends endless or oversized responses: the daemon's memory stays within bounds."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from milo_discovery import DiscoveryClient, SourceState, Watch
from milo_discoveryd.sources.project import PROJECTS
from milo_discoveryd.sources.reading import ORGANIZATION_LABEL
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.soak.gauges import own_mib
from tests.support.eventually import eventually
from tests.support.web_server import serving

PAGE = 500
LABELS = {f"label-{number}": "x" * 60 for number in range(10)}
LIMIT_MIB = 8
"""The setting `watch.objects_limit`. The daemon needs more memory than that: it keeps each object in several forms, and
reads pages of a limited size.
"""
GROWTH_MIB = 64
LARGE = 200
"""Number of large objects, which are about 20 MiB in the daemon."""
WHOLE = 60_000
"""Number of objects of a page that the server sends whatever limit the request has: about 50 MiB."""


def project(number: int, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"name": f"p-{number}", "uid": f"uid-{number}", "resourceVersion": str(number), "labels": labels},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


class HostileServer:
    """Serves endless pages of a list, one huge page, one page of tiny items, or a short list and an endless watch.

    With "a tenant", the list has as many large objects of one organization as exceed the limit of the daemon, and a few
    of another one. The watch has changes of all.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._numbers = count(1)
        self.sent = 0

    def listening(self) -> AbstractAsyncContextManager[str]:
        return serving(self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path != PROJECTS.path:
            return web.Response(text="ok")
        if "watch" in request.query:
            return await self._watch(request)
        return self._page(is_endless=self._what == "pages")

    def _page(self, *, is_endless: bool) -> web.Response:
        if self._what == "a tenant":
            items = [*map(self._of_large_tenant, range(LARGE)), *map(self._of_small_tenant, range(5))]
            return web.json_response({"metadata": {"resourceVersion": "5"}, "items": items})
        if self._what == "tiny items":
            ones = ",".join(["1"] * ((LIMIT_MIB - 1) << 19))
            text = f'{{"metadata":{{"resourceVersion":"5"}},"items":[{ones}]}}'
            return web.Response(text=text, content_type="application/json")
        size = WHOLE if self._what == "whole list" else PAGE if is_endless else 5
        items = [project(next(self._numbers), LABELS) for _ in range(size)]
        self.sent += len(items)
        more = str(self.sent) if is_endless else ""
        return web.json_response({"metadata": {"resourceVersion": "5", "continue": more}, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            number = next(self._numbers)
            lines = [
                json.dumps({"type": "ADDED", "object": self._changed(number + offset)}) + "\n" for offset in range(PAGE)
            ]
            self.sent += PAGE
            await response.write("".join(lines).encode())

    def _changed(self, number: int) -> dict[str, Any]:
        if self._what == "a tenant":
            return self._of_large_tenant(number) if number % 10 else self._of_small_tenant(number // 10)
        if self._what == "changes":
            return {**project(number % 5 + 1, {**LABELS, "change": str(number)})}
        if self._what == "large objects":
            return project(number, LABELS | {f"large-{index}": "x" * 60 for index in range(200)})
        return project(next(self._numbers), LABELS)

    def _of_large_tenant(self, number: int) -> dict[str, Any]:
        labels = {f"large-{index}": "x" * 60 for index in range(240)}
        return self._of_tenant("large", number % LARGE, labels)

    def _of_small_tenant(self, number: int) -> dict[str, Any]:
        return self._of_tenant("small", number % 5, {"change": str(number)})

    def _of_tenant(self, tenant: str, number: int, labels: dict[str, str]) -> dict[str, Any]:
        made = project(next(self._numbers), labels | {ORGANIZATION_LABEL: tenant})
        return {**made, "metadata": made["metadata"] | {"name": f"{tenant}-{number}", "uid": f"{tenant}-{number}"}}


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("pages", "OverBudget"),
        ("whole list", "ResponseTooLarge"),
        ("events", "OverBudget"),
        ("large objects", "OverBudget"),
        ("tiny items", "MalformedResponse"),
    ],
)
async def test_hostile_api_server_does_not_exhaust_memory_or_affect_other_sources(
    workspace: Workspace, what: str, reason: str
) -> None:
    server = HostileServer(what)
    async with _beside(server, workspace) as (daemon, watch):

        def is_over_budget() -> bool:
            hostile = watch.sources.get("hostile")
            return hostile is not None and hostile.reason == reason

        await daemon.during(eventually(is_over_budget))
        assert watch.sources["hostile"].state is SourceState.STALE
        sent = server.sent
    if reason == "OverBudget":
        assert server.sent <= sent + PAGE, "the daemon continued to read"


async def test_continuous_changes_of_few_objects_do_not_exhaust_memory(workspace: Workspace) -> None:
    server = HostileServer("changes")
    async with _beside(server, workspace) as (daemon, watch):
        await daemon.during(eventually(lambda: server.sent > 20 * PAGE and "hostile" in watch.sources))
        assert watch.sources["hostile"].state is SourceState.STREAMING


async def test_tenant_with_too_many_large_objects_delays_nobody_else(workspace: Workspace) -> None:
    server = HostileServer("a tenant")
    async with _beside(server, workspace) as (daemon, watch):

        def latest_change() -> int:
            found = [watch.clusters.get(f"hostile#small-{number}") for number in range(5)]
            return min(int(cluster.labels["change"]) if cluster else -1 for cluster in found)

        await daemon.during(eventually(lambda: latest_change() > 100))
        assert watch.sources["hostile"].state is SourceState.STREAMING
        large = sum(name.startswith("hostile#large") for name in watch.clusters)
        assert 0 < large < LARGE


@asynccontextmanager
async def _beside(server: HostileServer, workspace: Workspace) -> AsyncIterator[tuple[DaemonProcess, Watch]]:
    """Run a daemon with the hostile server and a good one; check at the end that the good one works, and the memory."""
    workspace.sandbox.projects.create("alpha", ready=True)
    async with server.listening() as url:
        config = _config(workspace, url)
        async with DaemonProcess(workspace.address, "--config", str(config)) as daemon:
            await daemon.start()
            weights = [_mib(daemon)]
            async with (
                DiscoveryClient(workspace.address) as client,
                client.watch(accept_pending_sources=True) as watch,
                asyncio.TaskGroup() as tasks,
            ):
                running = [tasks.create_task(_follow(watch)), tasks.create_task(_weigh(daemon, weights))]
                yield daemon, watch
                workspace.sandbox.projects.create("beta", ready=True)
                await daemon.during(eventually(lambda: {"good#alpha", "good#beta"} <= set(watch.clusters)))
                for task in running:
                    task.cancel()
            assert max(weights) - weights[0] < GROWTH_MIB, f"memory grew: {weights[0]:.0f} to {max(weights):.0f} MiB"


async def _weigh(daemon: DaemonProcess, weights: list[float]) -> None:
    while True:
        weights.append(_mib(daemon))
        await asyncio.sleep(0.05)


async def _follow(watch: Watch) -> None:
    async for _ in watch:
        pass


def _config(workspace: Workspace, url: str) -> Path:
    hostile = workspace.directory / "hostile"
    user = {"name": "u", "user": {"token": "t"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    cluster = {"name": "c", "cluster": {"server": url}}
    kubeconfig = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
    hostile.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **kubeconfig}))
    sources = [("good", workspace.kubeconfig), ("hostile", hostile)]
    config = workspace.directory / "config.yaml"
    settings = {
        "sources": [{"name": name, "kind": "project", "discovery_kubeconfig": str(file)} for name, file in sources],
        "listen": [workspace.address],
        "http_listen": "off",
        "connectivity": {"interval": "off"},
        "plain_loopback": True,
        "watch": {"streaming_lists": "off", "page_size": PAGE, "objects_limit": f"{LIMIT_MIB}MiB"},
    }
    config.write_text(yaml.safe_dump(settings))
    return config


def _mib(daemon: DaemonProcess) -> float:
    return own_mib(Path(f"/proc/{daemon.pid}/status").read_text())
