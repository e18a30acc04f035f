"""A real Prometheus with the shipped rules, at shorter intervals."""

import asyncio
import json
import re
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.debian import program
from tests.support.ports import free_address
from tests.tooling.deploy import monitoring
from tests.tooling.deploy.web import get

_OFTEN = "200ms"
_SPEED = 100.0
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_RANGE = re.compile(r"\[(\d+[smh])\]")


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    async def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return result

    async def query_range(self, expression: str, begin: float, end: float, step_s: float) -> list[dict[str, Any]]:
        found = await self._get("query_range", query=expression, start=begin, end=end, step=step_s)
        result: list[dict[str, Any]] = found["result"]
        return result

    async def firing(self) -> dict[str, dict[str, str]]:
        """Return the labels of firing alerts, by name."""
        found = (await self._get("alerts"))["alerts"]
        return {alert["labels"]["alertname"]: alert["labels"] for alert in found if alert["state"] == "firing"}

    async def rules(self) -> list[dict[str, Any]]:
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def is_ready(self) -> bool:
        try:
            return bool(await self.query("vector(1)"))
        except OSError:
            return False

    async def _get(self, path: str, **asked: str | float) -> Any:
        return json.loads(await get(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(asked)}"))["data"]


def _hurried(groups: list[dict[str, Any]], speed: float) -> list[dict[str, Any]]:
    """Return the rules with all durations divided by `speed`."""

    def shorter(duration: str) -> str:
        seconds = int(duration[:-1]) * _SECONDS[duration[-1]]
        return f"{round(seconds * 1000 / speed)}ms"

    def hurried(rule: dict[str, Any]) -> dict[str, Any]:
        waits = {key: shorter(rule[key]) for key in ("for", "keep_firing_for") if key in rule}
        return {**rule, **waits, "expr": _RANGE.sub(lambda found: f"[{shorter(found[1])}]", rule["expr"])}

    return [{**group, "interval": _OFTEN, "rules": [hurried(rule) for rule in group["rules"]]} for group in groups]


@asynccontextmanager
async def prometheus(directory: Path, target: str, *, speed: float = _SPEED) -> AsyncIterator[Prometheus]:
    """Run a Prometheus. Durations in the rules are divided by `speed`: by default, five minutes take three seconds."""
    listen = free_address()
    # As with the PodMonitor: the job name, and the labels of a pod.
    labels = {"namespace": "ns", "pod": "operator", "container": "milo-discoveryd"}
    config = {
        "global": {"scrape_interval": _OFTEN, "scrape_timeout": _OFTEN},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": "milo-discoveryd", "static_configs": [{"targets": [target], "labels": labels}]}
        ],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": _hurried(monitoring.groups(), speed)}))
    log = (directory / "prometheus.log").open("w")
    process = await asyncio.create_subprocess_exec(
        program("prometheus", "prometheus"),
        f"--config.file={directory}/prometheus.yaml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address={listen}",
        stdout=log,
        stderr=log,
    )
    try:
        server = Prometheus(f"http://{listen}")
        await until(server.is_ready, directory)
        yield server
    finally:
        process.terminate()
        await process.wait()
        log.close()


async def until(holds: Any, directory: Path, within_s: float = 150.0) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not await holds():  # noqa: ASYNC110 - Prometheus sends no event
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail((directory / "prometheus.log").read_text()[-3000:])
