"""The metrics of controllers."""

from prometheus_client import CollectorRegistry

from milo_discovery.controllers.metrics import ControllerMetrics


def test_controller_metrics_share_one_label_for_clusters_beyond_the_limit() -> None:
    metrics = ControllerMetrics(CollectorRegistry(), max_clusters=2)
    labels = [metrics.cluster_label(name) for name in ("alpha", "beta", "gamma", "delta", "alpha")]
    assert labels == ["alpha", "beta", "_other", "_other", "alpha"]
