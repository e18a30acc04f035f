"""The watched event loop of the daemon."""

import asyncio
import time

from milo_discoveryd.app import watched_loop
from milo_discoveryd.telemetry.metrics import Metrics
from tests.support.eventually import eventually
from tests.support.logs import capture_logs


async def test_blocked_event_loop_is_measured_and_logged_with_its_stack() -> None:
    metrics = Metrics()

    def a_long_step() -> None:
        time.sleep(0.8)  # the event loop is blocked, so no state can be awaited

    def measured(name: str) -> float:
        return metrics.registry.get_sample_value(f"milo_discoveryd_event_loop_delay_seconds_{name}") or 0.0

    with capture_logs() as logged, watched_loop(metrics.loop_was_late, blocked_s=0.2):
        await eventually(lambda: measured("count") > 0)
        task = asyncio.current_task()
        assert task is not None
        task.set_name("the culprit")
        a_long_step()
        await eventually(lambda: measured("sum") > 0.5)
        [blocked] = [line for line in logged if line["event"] == "event loop is blocked"]
        assert blocked["task"] == "the culprit"
        assert "a_long_step" in blocked["stack"]
        [was_blocked] = [line for line in logged if line["event"] == "event loop was blocked"]
        assert was_blocked["seconds"] >= blocked["seconds"]
