"""docs/metrics.md is up to date."""

from tools import metrics_reference


def test_metrics_reference_is_up_to_date() -> None:
    assert metrics_reference.DOCUMENT.read_text() == metrics_reference.render(), "run ./dev gen"


def test_metric_help_is_a_sentence() -> None:
    for family in metrics_reference.families():
        assert family.help.endswith("."), family.name
