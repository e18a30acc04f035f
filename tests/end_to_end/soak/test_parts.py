"""Tests of what a soak test's verdict relies on: its arithmetic, its report and the restartable sandbox."""

from pathlib import Path

import pytest

from milo_sandbox import Sandbox
from milo_sandbox.history import CompactedError
from milo_sandbox.resources import PROJECTS
from tests.end_to_end.soak.gauges import Gauges, Sample
from tests.end_to_end.soak.report import Recovery, Report, Subscriber
from tests.end_to_end.soak.sandbox_process import remember

PAGE = """\
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1.048576e+08
# TYPE process_open_fds gauge
process_open_fds 22.0
# TYPE milo_discoveryd_asyncio_tasks gauge
milo_discoveryd_asyncio_tasks 31.0
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{grpc_code="Aborted",grpc_method="WatchClusters",grpc_service="Discovery"} 4.0
"""
STATUS = """\
Name:\tpython3
VmRSS:\t  102400 kB
RssAnon:\t   61440 kB
RssFile:\t   40960 kB
VmSwap:\t    1024 kB
"""


def growing(mib_an_hour: float, minutes: int = 60) -> Gauges:
    """After a first rise that counts for nothing."""
    gauges = Gauges()
    for minute in range(minutes):
        memory = 50.0 if minute < 10 else 80.0 + mib_an_hour * minute / 60.0
        gauges.samples.append(Sample(minute * 60.0, memory, memory + 40.0, 22, 31))
    return gauges


def test_metrics_page_is_parsed_into_a_sample() -> None:
    gauges = Gauges()
    gauges.take(PAGE, STATUS, 7.0)
    assert gauges.samples == [Sample(7.0, 61.0, 100.0, 22, 31)]
    assert gauges.last["grpc_server_handled_total Aborted WatchClusters Discovery"] == 4.0


@pytest.mark.parametrize("slope", [0.0, 1.0, -3.5])
def test_growth_is_measured_after_warm_up(slope: float) -> None:
    assert growing(slope).slope("memory_mib") == pytest.approx(slope, abs=1e-6)


def test_sample_reports_start_and_end() -> None:
    first, last, most = growing(6.0).ends("memory_mib")
    assert (round(first), round(last), round(most)) == (83, 86, 86)


def test_report_counts_and_lists_failures() -> None:
    report = Report(
        server="the sandbox",
        seed=1,
        minutes=60.0,
        faults={"cut": 2, "killed": 1},
        groups={"cut": "transport", "killed": "server", "never": "server"},
        recoveries={"cut": [Recovery(1.0, 0.5), Recovery(1.0, 3.0)], "killed": [Recovery(2.0, 4.0)]},
        disk="a full tmpfs",
        writes=100,
        writes_lost=3,
        subscribers=[Subscriber("fast", 3, 200, 100)],
        client_events=50,
        handed=7,
        gauges=growing(1.5),
        failures=["not well 150 s after: cut"],
    )
    text = report.markdown()
    assert "3 faults of 2 kinds" in text
    assert "Validated: 150 events on 3 streams" in text
    assert "and 7 credentials." in text
    assert "over the limit: 1.**\n- not well 150 s after: cut" in text
    assert "| **all of transport** | 2 | 3.0 s | 3.0 s | 3.0 s |" in text
    assert "| anonymous memory, MiB | 80.8 | 81.5 | 81.5 | +1.50 |" in text
    assert "never" not in text
    assert report.json()["recoveries"]["killed"] == [{"lasted_s": 2.0, "took_s": 4.0}]


def test_sandbox_restart_keeps_objects_and_compacts_history(tmp_path: Path) -> None:
    first = Sandbox()
    remember(first.store, tmp_path / "objects")
    made = first.projects.create("alpha", ready=True)
    first.projects.create("beta")
    first.projects.delete("beta")

    second = Sandbox()
    remember(second.store, tmp_path / "objects")

    assert second.projects.read("alpha")["metadata"]["uid"] == made["metadata"]["uid"]
    assert [record.name for record in second.store[PROJECTS]] == ["alpha"]
    assert second.store.version == first.store.version
    assert not second.store[PROJECTS].history.since(second.store.version)
    with pytest.raises(CompactedError):
        second.store[PROJECTS].history.since(second.store.version - 1)
