"""Controllers in Python: synchronization, memory per cluster, throughput and latency.

Beside them, in the same run: a Go operator on controller-runtime's `cluster.New`, a bare watch of the kubernetes
package, and kopf operators. The control planes are those of a sandbox in a process of its own, over TLS and HTTP/1.1.
Memory is also measured over HTTP/2, on an API server in Go, beside the Go operator on the same server.
"""

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import yaml

from bench import peers, projects
from bench.access import PROJECTS
from bench.daemon import Daemon
from bench.measures import go, rotation
from bench.measures.latency import peer_marks
from bench.milo import SandboxMilo, sandbox_milo
from bench.process import Process
from bench.setting import Samples, Setting
from bench.writes import Writes, read_by

OBJECTS = 10
"""ConfigMaps in each cluster."""
_WITHIN_S = 900.0
LIFE_S = 3600.0
"""Lifetime of the credentials, longer than that of any operator."""
_SETTINGS = """\
project_kubeconfig: {kubeconfig}
kubeconfigs:
  issuers:
    - {{name: bench, type: project-kubeconfig, share_discovery_identity: true}}
"""
_CONFIG_MAPS = "control-plane/api/v1/namespaces/default/configmaps"
_MISBEHAVING = 0.05
"""The share of clusters that misbehave."""
_CUTS = (("p50", 50), ("p99", 99))


async def measure(setting: Setting) -> Samples:
    few, many, beside_kopf = setting.scale.controllers
    found: dict[str, float] = {}
    ours: dict[int, float] = {}
    kopf: dict[int, float] = {}
    for count in sorted({few, many, beside_kopf}):
        async with control_planes(setting, count) as place:
            async with place.controllers() as operator:
                seconds = await operator.working()
                ours[count] = await operator.settled_kib()
            if count == many:
                found |= {"controllers.seconds": seconds, "controllers.rss_mib": ours[many] / 1024}
            if count == few:
                found |= await _rate(place, setting.scale.busy_s)
                found |= await _latency(setting, place)
            if count in {few, beside_kopf}:
                kopf[count], figures = await _kopf(place)
            if count == beside_kopf:
                found |= {"controllers.seconds_beside_kopf": seconds} | figures
    found["controllers.kib"] = (ours[many] - ours[few]) / (many - few)
    found["controllers.kopf_kib"] = (kopf[beside_kopf] - kopf[few]) / (beside_kopf - few)
    samples: Samples = {key: [value] for key, value in found.items()} | await tenants(setting)
    binary = peers.operator() if setting.scale.with_go else None
    if binary is not None:
        samples |= {key: [value] for key, value in (await _over_http2(setting, binary, few, many)).items()}
    return samples


async def _over_http2(setting: Setting, binary: Path, few: int, many: int) -> dict[str, float]:
    """Compare memory per cluster with that of the Go operator, on one API server that supports HTTP/2."""
    minted = setting.directory / "controllers-minted"
    minted.write_text("")
    source = rotation.SOURCE.format(python=sys.executable, minted=minted, life_s=LIFE_S)
    ours: dict[int, float] = {}
    theirs: dict[int, float] = {}
    found: dict[str, float] = {}
    for count in (few, many):
        async with go.place(setting, binary, count, objects=OBJECTS) as place:
            daemon = place.daemon(source)
            try:
                await daemon.listens()
                async with running(setting.directory, "bench.controllers_process", daemon.address, count) as operator:
                    found["controllers.http2_seconds"] = await operator.working()
                    ours[count] = await operator.settled_kib()
                    found["controllers.http2_connections"] = (await place.server.status())["connections"]
            finally:
                await daemon.end()
            async with place.peer(1) as peer:
                await peer.working()
                theirs[count] = await peer.settled_kib()
    found["controllers.http2_kib"] = (ours[many] - ours[few]) / (many - few)
    found["controllers.go_kib"] = (theirs[many] - theirs[few]) / (many - few)
    found["controllers.go_kib_ratio"] = found["controllers.http2_kib"] / found["controllers.go_kib"]
    return found


class Operator(Process):
    """A process that prints WORKING once it works in every cluster, and a status for each line on standard input."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self._began = time.perf_counter()
        self._answers = 0
        super().__init__([sys.executable, "-m", module, *arguments], log)

    async def working(self) -> float:
        """Return the seconds from the start of the process until it works in every cluster."""
        await self.wait_for_lines(1, within_s=_WITHIN_S, beginning="WORKING")
        return time.perf_counter() - self._began

    async def status(self) -> dict[str, float]:
        self._answers += 1
        self.tell("status")
        lines = await self.wait_for_lines(self._answers, beginning="STATUS")
        answer: dict[str, float] = json.loads(lines[self._answers - 1].removeprefix("STATUS"))
        return answer

    async def settled_kib(self) -> float:
        """Return the resident memory in KiB after unused memory was released."""
        await self.status()
        return self.rss_mib * 1024


@asynccontextmanager
async def running(
    directory: Path, module: str, address: str, clusters: int, *arguments: str, objects: int = OBJECTS
) -> AsyncIterator[Operator]:
    operator = Operator(module, [address, str(clusters * objects), *arguments], directory / "operator.log")
    try:
        yield operator
    finally:
        await operator.end()


class ControlPlanes:
    """A sandbox with control planes, and a daemon that issues kubeconfigs for them."""

    def __init__(self, directory: Path, milo: SandboxMilo, address: str, count: int) -> None:
        self._directory = directory
        self.address = address
        self.milo = milo
        self.count = count

    def operator(self, module: str, *arguments: str, objects: int = OBJECTS) -> AbstractAsyncContextManager[Operator]:
        return running(self._directory, module, self.address, self.count, *arguments, objects=objects)

    def controllers(self, *arguments: str) -> AbstractAsyncContextManager["Operator"]:
        return self.operator("bench.controllers_process", *arguments)

    def kubeconfig(self) -> Path:
        """Return a kubeconfig for the first project's control plane."""
        config = yaml.safe_load(self.milo.access.kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        cluster["server"] += f"{PROJECTS}/{projects.name(0)}/control-plane"
        path = self._directory / "control-plane.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path


@asynccontextmanager
async def control_planes(setting: Setting, count: int) -> AsyncIterator[ControlPlanes]:
    async with sandbox_milo(count, setting.directory) as milo:
        await milo.fill(OBJECTS)
        config = setting.directory / "controllers.yaml"
        config.write_text(_SETTINGS.format(kubeconfig=milo.access.kubeconfig))
        daemon = Daemon(milo.access.kubeconfig, setting.directory, config=config)
        try:
            await daemon.listens()
            yield ControlPlanes(setting.directory, milo, daemon.address, count)
        finally:
            await daemon.end()


async def _rate(place: ControlPlanes, busy_s: float) -> dict[str, float]:
    """Measure reconciles per second, with every object requeued at once."""
    async with place.controllers("busy") as operator:
        await operator.working()
        before = await operator.status()
        await asyncio.sleep(busy_s)
        after = await operator.status()
    return {
        "controllers.reconciles_per_s": (after["reconciles"] - before["reconciles"]) / (after["at"] - before["at"]),
    }


async def _latency(setting: Setting, place: ControlPlanes) -> dict[str, float]:
    """Measure the time from a write to the reconcile, and to the event of a bare watch, in alternating rounds."""
    scale = setting.scale
    ours: list[Writes] = []
    bare: list[Writes] = []

    def writes() -> Writes:
        first = (len(ours) + len(bare)) * scale.latency_writes
        return Writes(place.milo, scale.latency_writes, scale.writes_per_s, OBJECTS, first, path=_config_map)

    for _ in range(scale.latency_rounds):
        async with peers.kubernetes_aio_of_config_maps(place.kubeconfig(), setting.directory, "default") as watch:
            await watch.synced()
            bare.append(await read_by(partial(peer_marks, watch), writes()))
        async with place.controllers("marks") as operator:
            await operator.working()
            ours.append(await read_by(partial(peer_marks, operator), writes()))
    found: dict[str, float] = {}
    for name, cut in _CUTS:
        mine, other = (sorted(round_writes.at(cut) for round_writes in read)[len(read) // 2] for read in (ours, bare))
        found |= {
            f"controllers.{name}_ms": mine,
            f"controllers.kubernetes_aio_{name}_ms": other,
            f"controllers.{name}_ratio": mine / other,
        }
    return found


async def tenants(setting: Setting) -> Samples:
    """Measure the latency in one cluster while reconciles of other clusters hang, fail, or change their objects
    endlessly.
    """
    count = max(setting.scale.controllers[0], 1 / _MISBEHAVING)
    async with control_planes(setting, int(count)) as place:
        return {key: [value] for key, value in (await _beside_tenants(setting, place)).items()}


async def _beside_tenants(setting: Setting, place: ControlPlanes) -> dict[str, float]:
    scale = setting.scale
    read: dict[str, list[Writes]] = {"marks": [], "tenants": []}
    for _ in range(scale.latency_rounds):
        for mode, done in read.items():
            first = sum(map(len, read.values())) * scale.latency_writes
            writes = Writes(place.milo, scale.latency_writes, scale.writes_per_s, OBJECTS, first, path=_config_map)
            async with place.controllers(mode, str(math.ceil(place.count * _MISBEHAVING))) as operator:
                await operator.working()
                done.append(await read_by(partial(peer_marks, operator), writes))
    alone, beside = (sorted(round_writes.at(99) for round_writes in done)[len(done) // 2] for done in read.values())
    return {
        "controllers.tenants_p99_ms": beside,
        "controllers.tenants_alone_p99_ms": alone,
        "controllers.tenants_p99_ratio": beside / alone,
    }


async def _kopf(place: ControlPlanes) -> tuple[float, dict[str, float]]:
    """Run a kopf operator in each cluster; return the memory in KiB, and figures."""
    async with place.operator("bench.kopf_process") as operator:
        seconds = await operator.working()
        state = await operator.status()
        kib = operator.rss_mib * 1024
    return kib, {
        "controllers.kopf_seconds": seconds,
        "controllers.kopf_rss_mib": kib / 1024,
        "controllers.kopf_threads": state["threads"] / place.count,
    }


def _config_map(index: int) -> str:
    return f"{PROJECTS}/{projects.name(0)}/{_CONFIG_MAPS}/work-{index}"
