"""A real Prometheus with our rules scrapes a real daemon."""

from pathlib import Path

from tests.end_to_end.process.conftest import Place
from tests.support.eventually import eventually
from tests.tooling.deploy import monitoring
from tests.tooling.deploy.prometheus import Prometheus, prometheus, until


async def test_prometheus_alert_fires_for_a_stale_source_and_resolves(place: Place, tmp_path: Path) -> None:
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
                await server.query(expression)  # Prometheus rejects rules that it cannot evaluate

            await place.sandbox.stop()
            await until(is_stale, tmp_path)
            assert (await server.firing())["MiloDiscoverydSourceStale"]["pod"] == "operator"

            await place.sandbox.start()
            await until(is_fresh, tmp_path)


async def eventually_answers(server: Prometheus, name: str, folder: Path) -> None:
    # Metrics of events that did not happen have no samples.
    if name in {
        "namespace_pod_type_reason:milo_discoveryd_transitions:rate5m",
        "namespace_pod:milo_discoveryd_source_restarts:increase15m",
    }:
        return

    async def answers() -> bool:
        return bool(await server.query(name))

    await until(answers, folder)


async def test_prometheus_alert_fires_for_an_absent_daemon(place: Place, tmp_path: Path) -> None:
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
