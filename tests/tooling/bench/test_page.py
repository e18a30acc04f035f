"""The tables of README.md, docs/sizing.md and docs/reviewers/performance.md are generated from bench/results."""

from typing import Any

import pytest

from bench import page
from bench.figures import REASONS
from bench.report import Results

MACHINE: dict[str, Any] = {"cpus": 2, "cpu": "a processor", "python": "3.13", "load": (0.5, 0.5, 0.5)}


def results(
    figures: dict[str, float | None],
    spread: dict[str, tuple[float, float]] | None = None,
    commits: dict[str, str] | None = None,
) -> Results:
    return Results(
        figures=figures,
        spread=spread or {},
        missed=[],
        scale="full",
        upstream="sandbox",
        at="2026-11-25T00:00:00+00:00",
        machine=MACHINE,
        commits=commits or {},
    )


def filled(kind: str, files: dict[str, Results]) -> list[str]:
    text = page.filled(f"<!-- figures: {kind} -->\nanything\n<!-- end -->\n", files)
    assert text.startswith(f"<!-- figures: {kind} -->\n")
    assert text.endswith("<!-- end -->\n")
    return text.splitlines()[1:-1]


def test_published_figures_match_the_result_files() -> None:
    assert page.main(["--check"]) == 0


def test_figures_of_two_runs_agree_if_their_widened_ranges_overlap() -> None:
    one = results({"met": 1.0, "near": 1.0, "far": 1.0, "unknown": None}, {"met": (0.5, 2.0), "far": (0.9, 1.1)})
    other = results({"met": 1.9, "near": 1.15, "far": 1.6, "unknown": 1.0}, {"far": (1.5, 1.7)})
    assert filled("noise", {"sandbox": one, "again": other}) == [
        "Of 3 figures of `sandbox` and `again`, 2 agree.",
        "",
        "| figures that differ | one run | rounds | other run | rounds |",
        "|---|--:|---|--:|---|",
        "| `far` | 1 | 0.9 to 1.1 | 1.6 | 1.5 to 1.7 |",
    ]


def test_capacity_table_has_a_row_for_each_fleet_and_number_of_subscribers() -> None:
    figures: dict[str, float | None] = {}
    for changes, cpu in ((1, 3.0), (100, 15.0)):
        key = f"capacity.1000.20.{changes}"
        figures |= {f"{key}.cpu_percent": cpu, f"{key}.rss_mib": 50.0 + changes, f"{key}.requests_per_s": 20.0}
    table = filled("capacity", {"capacity": results(figures, commits={"milo-discoveryd": "abc"})})
    assert table[0] == (
        "| clusters | subscribers | CPU at 1 changes/s | CPU at 100 changes/s | memory, MiB | requests/s |"
    )
    assert table[2] == "| 1,000 | 20 | 3 % | 15 % | 150 | 20 |"
    assert table[4] == "`./dev bench capacity`, `abc`, 2 cores (a processor), Python 3.13, load 0.5."


def test_bench_page_explains_each_missed_target() -> None:
    key = "latency.cpu_ratio_to_client_go"
    files = {"sandbox": results({key: 2.0, "issue.p99_ms": 1.0})}
    text = " ".join("".join(f"{line}\n" for line in filled("missed", files)).split())
    assert text == f"- `{key}` of `sandbox`: 2, bar ≤ 1. {REASONS[key]}"
    assert [*page.unexplained(files)] == []


def test_missed_target_without_an_explanation_is_reported() -> None:
    files = {"sandbox": results({"issue.p99_ms": 100.0})}
    assert [*page.unexplained(files)] == [
        "issue.p99_ms of bench/results/sandbox.json misses its bar: give the reason in bench/figures.py"
    ]


def test_figures_missing_from_bench_results_are_reported() -> None:
    problems = [*page.missing({})]
    assert "bench/results/sandbox.json lacks bytes_per_cluster, which bench/figures.py shows" in problems
    assert "bench/results/go.json and COMMANDS in bench/figures.py do not match" in problems


def test_print_option_of_the_bench_page_shows_figures_of_a_results_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--print", "fleet"]) == 0
    assert "| `fleet_50k.p99_ms` |" in capsys.readouterr().out
