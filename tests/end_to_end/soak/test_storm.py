"""A short storm, and the arithmetic of its report."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.end_to_end.soak.report import Subscriber
from tests.end_to_end.soak.storm import KILLS, Storm
from tests.end_to_end.soak.storm_report import StormReport, markdown

REPORT = StormReport(
    seed="7-0",
    seconds=104.0,
    recovery_s=4.0,
    faults={"daemon killed": 5, "API server compacted": 2},
    kills=5,
    writes=300,
    subscribers=[Subscriber("resuming", 6, 200, 100)],
    client_events=40,
    credentials=9,
    failures=[],
)


@pytest.mark.parametrize("keeps_state", [True, False])
async def test_views_of_subscribers_match_the_api_server_after_overlapping_kills(keeps_state: bool) -> None:
    with TemporaryDirectory(prefix="milo-") as name:
        report = await Storm(Path(name), "70", keeps_state=keeps_state).run(10.0)
    assert report.failures == []
    assert all(report.faults.get(kill, 0) >= 1 for kill in KILLS), report.faults
    assert all(subscriber.events >= 10 for subscriber in report.subscribers)
    assert all(subscriber.streams >= 2 for subscriber in report.subscribers)


def test_storm_report_sums_faults_and_lists_failures() -> None:
    text = markdown([REPORT, replace(REPORT, seed="7-1", recovery_s=9.0, failures=["resuming: lost"])], 100.0)
    assert "2 storms of 100 s: 14 faults with 10 kills, 600 writes upstream." in text
    assert "Validated: 280 events on 12 streams, and 18 credentials." in text
    assert "median 6.5 s, longest 9.0 s" in text
    assert "without convergence: 1.**\n- storm 7-1: resuming: lost" in text
    assert "| daemon killed | 10 |" in text
