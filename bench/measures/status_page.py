"""The status page under churn: response times, and the latency of subscribers while pages are loaded.

Viewers use part of the machine in any case. So the latency of subscribers while pages are open is compared with that
while the same viewers load the page of another daemon.
"""

import asyncio
import time
from collections.abc import Iterable
from statistics import quantiles

import aiohttp

from bench import daemon as daemons
from bench.crowd import crowd
from bench.milo import SandboxMilo
from bench.process import free_port
from bench.setting import Samples, Setting
from bench.subscribers import meanwhile

_VIEWERS = 3
_LOAD_EVERY_S = 0.1
_POLL_S = 2.0
_SUBSCRIBERS = 20
_HERE, _ELSEWHERE = "here", "elsewhere"


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    ports = {place: free_port() for place in (_HERE, _ELSEWHERE)}
    beside = setting.directory / "another"
    beside.mkdir()
    answers: dict[str, list[float]] = {place: [] for place in ports}
    late: dict[str, list[float]] = {place: [] for place in ports}
    async with (
        setting.daemon(scale.viewed, http_listen=f"127.0.0.1:{ports[_HERE]}") as (milo, daemon),
        daemons.daemon(milo.access.kubeconfig, beside, http_listen=f"127.0.0.1:{ports[_ELSEWHERE]}"),
    ):
        if not isinstance(milo, SandboxMilo):
            return {}
        for _ in range(scale.rounds):
            for place, port in ports.items():
                url, took = f"http://127.0.0.1:{port}", list[float]()
                viewers = [*(_view(url) for _ in range(_VIEWERS)), _load(url, took)]
                async with crowd(daemon.address, _SUBSCRIBERS, setting.directory) as subscribers, meanwhile(viewers):
                    await milo.churn(scale.changes_per_s, scale.viewed_s)
                    heard = await subscribers.heard()
                late[place].append(_p99(heard.late_ms))
                answers[place].append(_p99(took))
    return {
        "status_page.answer_p99_ms": answers[_HERE],
        "status_page.subscriber_p99_ms": late[_HERE],
        "status_page.elsewhere_subscriber_p99_ms": late[_ELSEWHERE],
        "status_page.subscriber_p99_ratio": [
            one / other for one, other in zip(late[_HERE], late[_ELSEWHERE], strict=True)
        ],
    }


async def _view(url: str) -> None:
    """Poll as an open page does."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/?json") as answer:
                await answer.read()
            await asyncio.sleep(_POLL_S)


async def _load(url: str, took_ms: list[float]) -> None:
    """Load the page, its search and an explanation again and again."""
    async with aiohttp.ClientSession() as session:
        while True:
            for path in ("/", "/?json&q=org", "/?json&cluster=none"):
                began = time.perf_counter()
                async with session.get(url + path) as answer:
                    await answer.read()
                took_ms.append(1000 * (time.perf_counter() - began))
                await asyncio.sleep(_LOAD_EVERY_S)


def _p99(values: Iterable[float]) -> float:
    found = list(values)
    return quantiles(found, n=100)[98] if len(found) > 1 else found[0]
