"""docs/metrics.md is what the metrics are."""

from tools import metrics_reference


def test_the_reference_of_metrics_is_fresh() -> None:
    assert metrics_reference.DOCUMENT.read_text() == metrics_reference.render(), "run ./dev gen"


def test_every_metric_says_what_it_is_in_a_sentence() -> None:
    for family in metrics_reference.families():
        assert family.help.endswith("."), family.name
