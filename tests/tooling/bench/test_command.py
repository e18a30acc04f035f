"""The command `./dev bench`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import against, bars, report
from bench.__main__ import main
from bench.bars import Bar, Verdict
from bench.commits import built_from
from bench.report import Figures, Results

ROOT = Path(__file__).resolve().parents[3]


def test_bench_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", "startup", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert "startup.import_ms" in done.stdout
    written = json.loads(file.read_text())
    assert set(written["figures"]) == {"startup.import_ms", "startup.python_ms", "startup.ratio_to_python"}
    # The figures are meaningless here, since other tests run at the same time.
    assert (done.returncode == 1) is bool(written["missed"]), done.stderr
    assert (written["scale"], written["upstream"]) == ("quick", "sandbox")
    assert f"built from {written['commits']['milo-discoveryd']} (milo-discoveryd)" in done.stdout


@pytest.mark.parametrize(
    ("build_info", "commit"),
    [
        ("\tbuild\tvcs.revision=862dc4d2f1a2327e139536f7a07f3755b9562c3a\n", "862dc4d2f1a2"),
        (
            "\tbuild\tvcs.revision=862dc4d2f1a2327e139536f7a07f3755b9562c3a\n\tbuild\tvcs.modified=true\n",
            "862dc4d2f1a2-dirty",
        ),
        ("\tmod\texample.com/milo\t(devel)\n", "unknown commit"),
        ("", "unknown commit"),
    ],
)
def test_bench_reports_the_commit_that_a_go_program_was_built_from(build_info: str, commit: str) -> None:
    assert built_from(build_info) == commit


def test_bench_of_sharding_requires_the_option_real(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sharding"])
    assert "add --real" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["go", "go_memory", "shared_objects", "milo"])
def test_bench_of_go_programs_rejects_the_flag_quick(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MILO_CONTROLLER_MANAGER_MOVED", raising=False)

    with pytest.raises(SystemExit):
        main([name, "--quick"])
    assert f"{name} measures Go programs, which --quick does not build" in capsys.readouterr().err


def test_bench_of_milo_groups_requires_environment_variable_with_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MILO_CONTROLLER_MANAGER_MOVED", raising=False)

    with pytest.raises(SystemExit):
        main(["milo_groups", "--real"])
    assert "MILO_CONTROLLER_MANAGER_MOVED: set this variable" in capsys.readouterr().err


def test_bench_rejects_an_unknown_name_and_lists_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["snyc_10k"])

    assert ended.value.code == 2
    assert "unknown measurement: snyc_10k; measurements: startup, cli, " in capsys.readouterr().err


def test_bench_compares_figures_with_their_targets() -> None:
    limits = {"a.seconds": Bar(1.5), "fanout.*.ratio": Bar(0.8, is_floor=True)}

    assert bars.verdict("a.seconds", 1.5, limits) is Verdict.MET
    assert bars.verdict("a.seconds", 1.6, limits) is Verdict.MISSED
    assert bars.verdict("fanout.20.ratio", 0.9, limits) is Verdict.MET
    assert bars.verdict("fanout.20.ratio", 0.7, limits) is Verdict.MISSED
    assert bars.verdict("other", 7.0, limits) is Verdict.NO_BAR
    assert bars.verdict("a.seconds", None, limits) is Verdict.NO_BAR


def test_bench_lists_figures_that_miss_their_target() -> None:
    assert report.missed({"a": 1.0, "b": 3.0, "c": None}, {"a": Bar(2), "b": Bar(2), "c": Bar(2)}) == ["b"]


@pytest.mark.parametrize(("value", "shown"), [(None, "n/a"), (0.04987, "0.0499"), (101.4, "101"), (12_345.6, "12,346")])
def test_bench_rounds_figures_to_three_digits(value: float | None, shown: str) -> None:
    assert report.rounded(value) == shown


def test_bench_against_an_earlier_commit_requires_measurement_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--against", "HEAD"])
    assert "--against needs the names of measurements" in capsys.readouterr().err


def _results(figures: Figures, spread: dict[str, tuple[float, float]] | None = None) -> Results:
    return Results(figures=figures, spread=spread or {}, missed=[], scale="full", upstream="sandbox", at="", machine={})


def test_bench_against_an_earlier_commit_prints_the_ratio_of_each_pair() -> None:
    runs: list[tuple[Figures, Figures]] = [
        ({"a.us": 10.0, "gone.us": 1.0, "failed.us": None}, {"a.us": 20.0, "failed.us": 1.0}),
        ({"a.us": 20.0, "gone.us": 1.0, "failed.us": 1.0}, {"a.us": 20.0, "failed.us": 1.0}),
        ({"a.us": 30.0, "gone.us": 1.0, "failed.us": 1.0}, {"a.us": 45.0, "failed.us": 3.0}),
    ]

    shown = against.table("v1", [(_results(before), _results(now)) for before, now in runs])

    assert [list(column.cells) for column in shown.columns] == [
        ["a.us", "failed.us"],
        ["20", "1"],
        ["20", "2"],
        ["1.50", "2.00"],
        ["1 to 2", "1 to 3"],
    ]


@pytest.mark.parametrize(
    ("key", "before", "now", "is_worse"),
    [
        ("sync_10k.seconds", (1.0, 1.1), (1.3, 1.4), True),
        ("sync_10k.seconds", (1.0, 1.1), (1.11, 1.12), False),  # less than 15 %
        ("sync_10k.seconds", (1.0, 1.5), (1.4, 1.8), False),  # rounds overlap
        ("sync_10k.seconds", (1.3, 1.4), (1.0, 1.1), False),  # better
        ("sync_10k.client_go_seconds", (1.0, 1.1), (1.3, 1.4), False),  # not a figure of the daemon
        ("fanout.1.ratio_to_bare", (0.8, 0.9), (0.2, 0.3), True),  # its bar is a minimum
        ("fanout.1.live_events_per_s", (8.0, 9.0), (2.0, 3.0), True),
        ("fanout.1.live_events_per_s", (2.0, 3.0), (8.0, 9.0), False),
    ],
)
def test_bench_against_an_earlier_commit_fails_on_worse_figures(
    key: str, before: tuple[float, float], now: tuple[float, float], is_worse: bool
) -> None:
    pair = [_results({key: sum(rounds) / 2}, {key: rounds}) for rounds in (before, now)]
    assert against.worse([(pair[0], pair[1])]) == ([key] if is_worse else [])


def test_bench_against_an_earlier_commit_compares_rounds_of_all_runs() -> None:
    before, now = _results({"a.us": 1.0}, {"a.us": (0.9, 1.1)}), _results({"a.us": 1.5}, {"a.us": (1.4, 1.6)})
    noisy = _results({"a.us": 1.0}, {"a.us": (0.9, 1.5)})
    assert against.worse([(before, now)] * 3) == ["a.us"]
    assert against.worse([(before, now), (noisy, now), (before, now)]) == []
    assert against.worse([(before, _results({"a.us": None})), (before, now)]) == ["a.us"]
    assert against.worse([(before, _results({"a.us": None}))]) == []
