"""docs/reviewers/performance.md is generated from bench/results."""

import pytest

from bench import page
from bench.report import Results


def test_performance_page_is_generated_from_the_results() -> None:
    assert page.main(["--check"]) == 0


def _results(figures: dict[str, float | None], spread: dict[str, tuple[float, float]]) -> Results:
    return Results(figures=figures, spread=spread, missed=[], scale="full", upstream="sandbox", at="", machine={})


def test_bench_runs_agree_if_their_widened_ranges_overlap() -> None:
    one = _results({"met": 1.0, "near": 1.0, "far": 1.0, "unknown": None}, {"met": (0.5, 2.0), "far": (0.9, 1.1)})
    other = _results({"met": 1.9, "near": 1.15, "far": 1.6, "unknown": 1.0}, {"far": (1.5, 1.7)})
    text = "<!-- twice: one other -->\n<!-- end -->\n"
    assert page.filled(text, {"one": one, "other": other}) == (
        "<!-- twice: one other -->\n"
        "Of 3 figures, 2 agree.\n"
        "\n"
        "| those that don't | one run | rounds | the other | rounds |\n"
        "|---|--:|---|--:|---|\n"
        "| `far` | 1 | 0.9 to 1.1 | 1.6 | 1.5 to 1.7 |\n"
        "<!-- end -->\n"
    )


def test_performance_page_reports_missing_figures() -> None:
    with pytest.raises(SystemExit, match=r"there is no bench/results/other\.json"):
        page.filled("<!-- run: other -->\n<!-- end -->", {})
