"""Tests of what a soak test's verdict relies on: its arithmetic, its report and the restartable sandbox."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from milo_sandbox import Sandbox
from milo_sandbox.history import CompactedError
from milo_sandbox.resources import PROJECTS
from tests.end_to_end.soak.gauges import Gauges, Sample
from tests.end_to_end.soak.report import Recovery, Report, Subscriber, merged
from tests.end_to_end.soak.sandbox_process import DATA, remember
from tests.end_to_end.soak.saved_state import DAEMONS, Ports, SavedState
from tests.end_to_end.soak.servers import SandboxServer
from tests.end_to_end.soak.soak import Soak

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
    """Return samples that grow, after an initial rise that is ignored."""
    gauges = Gauges()
    for minute in range(minutes):
        memory = 50.0 if minute < 10 else 80.0 + mib_an_hour * minute / 60.0
        gauges.samples.append(Sample(minute * 60.0, memory, memory + 40.0, 22, 31))
    return gauges


def test_soak_sample_is_parsed_from_the_metrics_page() -> None:
    gauges = Gauges()
    gauges.take(PAGE, STATUS, 7.0)
    assert gauges.samples == [Sample(7.0, 61.0, 100.0, 22, 31)]
    assert gauges.last["grpc_server_handled_total Aborted WatchClusters Discovery"] == 4.0


@pytest.mark.parametrize("slope", [0.0, 1.0, -3.5])
def test_memory_growth_is_measured_after_warm_up(slope: float) -> None:
    assert growing(slope).slope("memory_mib") == pytest.approx(slope, abs=1e-6)


def test_soak_sample_reports_start_and_end() -> None:
    first, last, most = growing(6.0).ends("memory_mib")
    assert (round(first), round(last), round(most)) == (83, 86, 86)


def report(**changes: Any) -> Report:
    plain = Report(
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
        stalled=4,
        slopes=growing(1.5).slopes(),
        failures=["not well 150 s after: cut"],
    )
    return replace(plain, **changes)


def test_soak_report_counts_and_lists_failures() -> None:
    text = report().markdown()
    assert "60 minutes against the sandbox, seed 1: 3 faults of 2 kinds" in text
    assert "Validated: 150 events on 3 streams" in text
    assert "and 7 credentials." in text
    assert "over the limit: 1.**\n- not well 150 s after: cut" in text
    assert "| **all of transport** | 2 | 3.0 s | 3.0 s | 3.0 s |" in text
    assert "| anonymous memory, MiB | 80.8 | 81.5 | 81.5 | +1.50 |" in text
    assert "never" not in text
    found = json.loads(report().json())
    assert found["recoveries"]["killed"] == [{"lasted_s": 2.0, "took_s": 4.0}]


def test_soak_reports_of_pieces_are_merged() -> None:
    pieces = [report(minutes=480.0), report(minutes=960.0, slopes=growing(3.0).slopes(), failures=[], restored=1)]
    whole = merged(pieces)
    text = whole.markdown()
    assert "24.0 hours in 2 pieces, 1 of which continued another, against the sandbox, seed 1: 6 faults" in text
    assert "Validated: 300 events on 6 streams, of 1 recorded subscribers" in text
    assert "over the limit: 1.**\n- piece 1: not well" in text
    assert whole.slopes["memory_mib"].an_hour == pytest.approx(2.5)
    assert merged([merged(pieces), report()]).pieces == 3


def test_saved_state_keeps_the_reports_of_pieces(tmp_path: Path) -> None:
    saved = SavedState(tmp_path / "state")
    for each in (report(), report(minutes=2.0)):
        saved.add(each)
    assert SavedState(tmp_path / "state").reports() == [report(), report(minutes=2.0)]


def test_saved_state_restores_the_last_complete_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, work = SavedState(tmp_path / "state"), tmp_path / "work"
    for daemon in DAEMONS:
        (work / f"{daemon}.state").mkdir(parents=True)
    (work / DATA).write_text("first")
    saved.save(work, Ports(1, 2), {})
    (work / DATA).write_text("second")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            saved.save(work, Ports(3, 4), {})
    (begun := tmp_path / "begun").mkdir()
    assert SavedState(tmp_path / "state").restore(begun) == Ports(1, 2)
    assert (begun / DATA).read_text() == "first"
    saved.save(work, Ports(5, 6), {})
    assert saved.restore(begun) == Ports(5, 6)
    assert (begun / DATA).read_text() == "second"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-0002"]


async def test_soak_piece_continues_with_objects_and_state_of_the_previous_piece(tmp_path: Path) -> None:
    saved = SavedState(tmp_path / "state")
    names: list[set[str]] = []
    for piece in range(2):
        with TemporaryDirectory(prefix="milo-") as name:
            work = Path(name)
            ports = saved.restore(work)
            soak = Soak(SandboxServer(work), work, 1, lambda _: None, ports, piece=piece)
            found = await soak.run(0.0, saved)
            assert found.failures == []
            assert found.restored == piece
            names.append(set(soak._writer.upstream.names()))
        saved.add(found)
    assert names[0] == names[1]
    assert [each.restored for each in saved.reports()] == [0, 1]


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
