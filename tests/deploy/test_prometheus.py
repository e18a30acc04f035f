"""A real Prometheus with our rules scrapes a real daemon; only the waiting times are shorter than shipped."""

import asyncio
import json
import socket
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import monitoring
from tests.deploy.debian import program
from tests.deploy.web import get
from tests.eventually import eventually
from tests.process.conftest import Place

EVERY = "200ms"


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    async def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = (await self._get(f"query?query={urllib.parse.quote(expression)}"))["result"]
        return result

    async def firing(self) -> dict[str, dict[str, str]]:
        """The labels of each alert that fires, by its name."""
        found = (await self._get("alerts"))["alerts"]
        return {alert["labels"]["alertname"]: alert["labels"] for alert in found if alert["state"] == "firing"}

    async def rules(self) -> list[dict[str, Any]]:
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def is_ready(self) -> bool:
        try:
            return bool(await self.query("vector(1)"))
        except OSError:
            return False

    async def _get(self, path: str) -> Any:
        return json.loads(await get(f"{self._url}/api/v1/{path}"))["data"]


def hurried(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rules, asked often, and with nothing to wait for."""
    return [
        {
            **group,
            "interval": EVERY,
            "rules": [
                {key: "0s" if key in ("for", "keep_firing_for") else value for key, value in rule.items()}
                for rule in group["rules"]
            ],
        }
        for group in groups
    ]


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{unused.getsockname()[1]}"
    # As the PodMonitor has it: a job by that name, and the labels that Kubernetes' own discovery puts on a pod's.
    labels = {"namespace": "ns", "pod": "operator", "container": "milo-discoveryd"}
    config = {
        "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": "milo-discoveryd", "static_configs": [{"targets": [target], "labels": labels}]}
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": hurried(monitoring.groups())}))
    log = (folder / "prometheus.log").open("w")
    process = await asyncio.create_subprocess_exec(
        program("prometheus", "prometheus"),
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={listen}",
        stdout=log,
        stderr=log,
    )
    try:
        server = Prometheus(f"http://{listen}")
        await until(server.is_ready, folder)
        yield server
    finally:
        process.terminate()
        await process.wait()
        log.close()


async def until(holds: Any, folder: Path, within_s: float = 60.0) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not await holds():  # noqa: ASYNC110 - Prometheus tells nobody
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail((folder / "prometheus.log").read_text()[-3000:])


async def test_a_stopped_source_fires_the_alert_and_its_return_ends_it(place: Place, tmp_path: Path) -> None:
    place.sandbox.populate(3)
    async with place.daemon(http_listen="127.0.0.1:0") as daemon:
        await daemon.start()
        await daemon.until_said('"synced"')
        target = str(daemon.events("started")[-1]["http"]).removeprefix("http://")
        async with prometheus(tmp_path, target) as server:

            async def is_fresh() -> bool:
                [*found] = await server.query(
                    "milo_discoveryd_source_up == 1 and milo_discoveryd_engaged_clusters == 3"
                )
                return bool(found) and not await server.firing()

            async def is_stale() -> bool:
                return "MiloDiscoverydSourceStale" in await server.firing()

            await until(is_fresh, tmp_path)
            assert {rule["name"]: rule["lastError"] for rule in await server.rules() if rule.get("lastError")} == {}
            for name in monitoring.recorded():
                await eventually_answers(server, name, tmp_path)
            for _, expression in monitoring.dashboard_expressions():
                await server.query(expression)  # what it can't evaluate, it refuses

            await place.sandbox.stop()
            await until(is_stale, tmp_path)
            assert (await server.firing())["MiloDiscoverydSourceStale"]["pod"] == "operator"

            await place.sandbox.start()
            await until(is_fresh, tmp_path)


async def eventually_answers(server: Prometheus, name: str, folder: Path) -> None:
    # Of what has not happened to this daemon, there is nothing to record.
    if name in {"milo_discoveryd:transitions:rate5m", "milo_discoveryd:source_restarts:increase15m"}:
        return

    async def answers() -> bool:
        return bool(await server.query(name))

    await until(answers, folder)


async def test_a_dead_daemon_fires_the_alert_of_its_absence(place: Place, tmp_path: Path) -> None:
    async with place.daemon(http_listen="127.0.0.1:0") as daemon:
        await daemon.start()
        await daemon.until_said('"started"')
        target = str(daemon.events("started")[-1]["http"]).removeprefix("http://")
        async with prometheus(tmp_path, target) as server:

            async def is_absent() -> bool:
                return "MiloDiscoverydAbsent" in await server.firing()

            async def is_scraped() -> bool:
                return bool(await server.query('up{job="milo-discoveryd"} == 1'))

            await until(is_scraped, tmp_path)
            await daemon.kill()
            await eventually(lambda: not daemon.is_running)
            await until(is_absent, tmp_path)
