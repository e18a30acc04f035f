"""The metrics of controllers."""

from prometheus_client import CollectorRegistry

from milo_discovery.controllers.metrics import ControllerMetrics


def test_clusters_beyond_the_limit_share_a_label() -> None:
    metrics = ControllerMetrics(CollectorRegistry(), max_clusters=2)
    labels = [metrics.cluster_label(name) for name in ("alpha", "beta", "gamma", "delta", "alpha")]
    assert labels == ["alpha", "beta", "_other", "_other", "alpha"]
