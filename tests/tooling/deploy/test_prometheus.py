"""A real Prometheus with the shipped rules, which scrapes a real daemon."""

import time
from pathlib import Path

from tests.end_to_end.process.conftest import Workspace
from tests.support.eventually import eventually
from tests.tooling.deploy import monitoring
from tests.tooling.deploy.prometheus import Prometheus, prometheus, until


async def test_prometheus_fires_and_resolves_one_alert_for_one_outage(workspace: Workspace, tmp_path: Path) -> None:
    workspace.sandbox.populate(3)
    probes = {"interval": "1s", "unreachable_after": "1s"}
    # Without cluster names, as for a Prometheus that is not on loopback.
    async with workspace.daemon(http_listen="127.0.0.1:0", http_names="nobody", connectivity=probes) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        target = str(daemon.events("started")[-1]["http"]).removeprefix("http://")
        # MiloDiscoverydSourceStale, which inhibits MiloDiscoverydSourceFreshnessBurn, fires a minute before that one
        # would: 1.5 s at this speed.
        async with prometheus(tmp_path, target, speed=40.0) as server:

            async def is_fresh() -> bool:
                [*found] = await server.query(
                    "milo_discoveryd_source_up == 1 and milo_discoveryd_engaged_clusters == 3"
                )
                return bool(found) and not await server.firing()

            async def is_lost() -> bool:
                # Unreachable for longer than the alert for unreachable clusters waits.
                lasting = await server.query("min_over_time(milo_discoveryd_unreachable_clusters[17s]) == 3")
                counted = [sample["value"][1] for sample in await server.query(panels["Unreachable clusters"])]
                return bool(lasting) and counted == ["3"] and "MiloDiscoverydSourceStale" in await server.firing()

            async def is_over() -> bool:
                return bool(await server.query("milo_discoveryd_unreachable_clusters == 0")) and await is_fresh()

            await until(is_fresh, tmp_path)
            assert {rule["name"]: rule["lastError"] for rule in await server.rules() if rule.get("lastError")} == {}
            for name in monitoring.recorded():
                await eventually_answers(server, name, tmp_path)
            panels = dict(monitoring.dashboard_expressions())
            for expression in panels.values():
                await server.query(expression)  # Prometheus rejects rules that it cannot evaluate

            stopped = time.time()
            await workspace.sandbox.stop()
            await until(is_lost, tmp_path)
            assert (await server.firing())["MiloDiscoverydSourceStale"]["pod"] == "operator"

            await workspace.sandbox.start()
            await until(is_over, tmp_path)
            fired = await server.query_range('ALERTS{alertstate="firing"}', stopped, time.time(), 0.2)
            # At this speed, an error-budget alert follows the outage; rule_tests verify its inhibition.
            names = [alert["metric"]["alertname"] for alert in fired]
            assert [name for name in names if name != "MiloDiscoverydSourceFreshnessBurn"] == [
                "MiloDiscoverydSourceStale"
            ]


async def eventually_answers(server: Prometheus, name: str, directory: Path) -> None:
    # Metrics have no samples before their first event.
    if name in {
        "namespace_pod_type_reason:milo_discoveryd_transitions:rate5m",
        "namespace_pod:milo_discoveryd_source_restarts:increase15m",
    } or name.startswith("namespace_pod:milo_discoveryd_changes_late:"):
        return

    async def answers() -> bool:
        return bool(await server.query(name))

    await until(answers, directory)


async def test_prometheus_scrapes_cluster_series_if_http_names_is_everyone(
    workspace: Workspace, tmp_path: Path
) -> None:
    """The setting is that of the component `prometheus-cluster-names`."""
    workspace.sandbox.populate(3)
    async with workspace.daemon(http_listen="127.0.0.1:0", http_names="everyone") as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        target = str(daemon.events("started")[-1]["http"]).removeprefix("http://")
        async with prometheus(tmp_path, target) as server:
            names = {*workspace.sandbox.projects.names()}

            async def are_named() -> bool:
                found = await server.query("milo_discoveryd_cluster_info")
                return {sample["metric"]["cluster"] for sample in found} == names

            await until(are_named, tmp_path)


async def test_prometheus_alert_fires_if_the_daemon_is_absent(workspace: Workspace, tmp_path: Path) -> None:
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        await daemon.start()
        await daemon.wait_for_output('"started"')
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
