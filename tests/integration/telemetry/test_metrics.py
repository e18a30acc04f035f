"""Counters, which are 0 before their first event, since `increase()` would otherwise miss it, and metrics of RPCs."""

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.telemetry.metrics import Metrics

WATCH = {
    "grpc_type": "server_stream",
    "grpc_service": "milo.discovery.v1.DiscoveryService",
    "grpc_method": "WatchClusters",
}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("milo_discoveryd_transitions_total", {"type": "ENGAGED", "reason": ""}),
        *(
            ("milo_discoveryd_transitions_total", {"type": "DISENGAGED", "reason": reason.value})
            for reason in DisengageReason
        ),
        ("milo_discoveryd_source_restarts_total", {"reason": "Expired"}),
        ("milo_discoveryd_kubeconfigs_issued_total", {"result": "credentials_unavailable"}),
        ("grpc_server_handled_total", {**WATCH, "grpc_code": "Aborted"}),
    ],
)
def test_counters_start_at_zero_before_the_first_event(name: str, labels: dict[str, str]) -> None:
    assert Metrics().registry.get_sample_value(name, labels) == 0


def test_number_of_relist_reasons_that_a_server_can_add_to_metrics_is_limited() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.sources.relisting(f"Reason{number}")
    [found] = [metric for metric in metrics.registry.collect() if metric.name == "milo_discoveryd_source_restarts"]
    counts = {sample.labels["reason"]: sample.value for sample in found.samples if sample.name.endswith("_total")}
    assert len(counts) < 50
    assert (counts["Reason0"], sum(counts.values())) == (1, 1000)


@pytest.mark.parametrize(
    ("name", "label"),
    [("OK", "OK"), ("NOT_FOUND", "NotFound"), ("CANCELLED", "Canceled"), ("UNAVAILABLE", "Unavailable")],
)
def test_grpc_code_labels_have_the_spelling_of_common_interceptors(name: str, label: str) -> None:
    metrics = Metrics()
    metrics.calls.call_handled(("unary", "service", "Get"), name, 0.1)
    labels = {"grpc_type": "unary", "grpc_service": "service", "grpc_method": "Get", "grpc_code": label}
    assert metrics.registry.get_sample_value("grpc_server_handled_total", labels) == 1


def test_durations_are_observed_for_unary_rpcs_only() -> None:
    metrics = Metrics()
    for kind in ("unary", "server_stream"):
        metrics.calls.call_handled((kind, "service", kind), "OK", 0.1)
    count = metrics.registry.get_sample_value
    for kind, observed in (("unary", 1), ("server_stream", None)):
        labels = {"grpc_type": kind, "grpc_service": "service", "grpc_method": kind}
        assert count("grpc_server_handling_seconds_count", labels) == observed
