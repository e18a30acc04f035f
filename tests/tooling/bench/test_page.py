"""docs/performance.md is generated from bench/results."""

import re
from xml.etree import ElementTree

import pytest

from bench import page, plots
from bench.report import Results


def test_performance_page_is_generated_from_the_results() -> None:
    assert page.main(["--check"]) == 0


def test_performance_page_tables_have_rows() -> None:
    for block in re.findall(r"<!-- figures: .*?<!-- end -->", page.PAGE.read_text(), re.DOTALL):
        assert block.count("\n| `") > 0, block


def test_performance_table_has_selected_figures_and_bars() -> None:
    results = Results(
        figures={"idle.cpu_percent": 0.2, "idle.rss_mib": 80.0, "fanout.1.ratio_to_bare": None},
        spread={"idle.cpu_percent": (0.1, 0.3)},
        missed=[],
        scale="full",
        upstream="sandbox",
        at="",
        machine={},
    )
    text = "<!-- figures: sandbox idle.cpu_* fanout.* -->\nold\n<!-- end -->\n"
    assert page.filled(text, {"sandbox": results}) == (
        "<!-- figures: sandbox idle.cpu_* fanout.* -->\n"
        "| key | figure | rounds | bar | |\n"
        "|---|--:|---|---|---|\n"
        "| `idle.cpu_percent` | 0.2 | 0.1 to 0.3 | ≤ 0.5 | met |\n"
        "| `fanout.1.ratio_to_bare` | n/a |  | ≥ 0.8 |  |\n"
        "<!-- end -->\n"
    )


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


def test_plots_have_names_and_values() -> None:
    for drawn in (
        plots.lines("Memory", {"ours & theirs": [(1_000, 70.0), (100_000, 210.0)]}, x="projects", y="MiB"),
        plots.bars("Seconds", {"1k": {"ours & theirs": 70.0}, "10k": {"ours & theirs": 210.0}}, y="s"),
    ):
        texts = [each.text for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
        assert any("ours & theirs" in text for text in texts if text)
        assert {"100", "200"} <= set(texts)


def test_plots_draw_higher_values_higher() -> None:
    drawn = plots.bars("Seconds", {"1k": {"a": 1.0, "b": 10.0}}, y="s")
    rects = ElementTree.fromstring(drawn).findall("{http://www.w3.org/2000/svg}rect")
    _, low, high = (float(each.get("height", "0")) for each in rects)
    assert low < high
