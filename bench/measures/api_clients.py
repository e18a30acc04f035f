"""Memory and time per Kubernetes API client of the Python library, beside clients that share nothing.

All trust the system's CA certificates, as kubeconfigs without CA data do. No request is sent.
"""

import gc
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from kubernetes.aio.client import ApiClient, Configuration

from bench.setting import Samples, Setting
from milo_discovery import ClusterReport, Kubeconfig
from milo_discovery.api_clients import ApiClients

_CLIENTS = 200
_KUBECONFIG = json.dumps(
    {
        "clusters": [{"name": "a", "cluster": {"server": "https://milo.test/projects/a"}}],
        "users": [{"name": "a", "user": {"token": "t"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
).encode()


async def measure(setting: Setting) -> Samples:
    clients = ApiClients(_Issuer())
    samples: Samples = {}
    for number in range(setting.scale.rounds):
        for name, enter in (
            ("shared", lambda stack: stack.enter_async_context(clients.open_aio(lambda: "a"))),
            ("separate", lambda stack: stack.enter_async_context(_separate())),
        ):
            kib, ms = await _cost(enter)
            if not number:  # later rounds reuse memory that the allocator keeps from this round
                samples[f"api_clients.{name}_kib"] = [kib]
            samples.setdefault(f"api_clients.{name}_ms", []).append(ms)
    return samples


async def _cost(enter: Callable[[AsyncExitStack], Awaitable[object]]) -> tuple[float, float]:
    """Return KiB and milliseconds per client, not counting the first one."""
    async with AsyncExitStack() as stack:
        await enter(stack)
        gc.collect()
        before_kib, began = _rss_kib(), time.perf_counter()
        for _ in range(_CLIENTS):
            await enter(stack)
        took_ms = (time.perf_counter() - began) * 1000
        return (_rss_kib() - before_kib) / _CLIENTS, took_ms / _CLIENTS


class _Issuer:
    async def issue_kubeconfig(self, name: str, *, ttl: timedelta | None = None, incarnation: str = "") -> Kubeconfig:
        return Kubeconfig(cluster=name, kubeconfig=_KUBECONFIG)

    async def get(self, name: str) -> ClusterReport:
        raise AssertionError("not called for a cluster without an incarnation")


def _separate() -> ApiClient:
    return ApiClient(Configuration(host="https://milo.test/projects/a", api_key={"BearerToken": "Bearer t"}))


def _rss_kib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])
