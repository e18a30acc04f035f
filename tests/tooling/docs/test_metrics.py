"""The help of metrics in docs/metrics.md."""

from tools import metrics_reference


def test_metric_help_is_a_sentence() -> None:
    for family in metrics_reference.families():
        assert family.help.endswith("."), family.name
