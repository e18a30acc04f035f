"""Counters are there before anything is counted: to Prometheus, one that begins with its first event has not grown."""

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.telemetry.metrics import Metrics


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("milo_discoveryd_transitions_total", {"type": "ENGAGED", "reason": ""}),
        *(
            ("milo_discoveryd_transitions_total", {"type": "DISENGAGED", "reason": each.value})
            for each in DisengageReason
        ),
        ("milo_discoveryd_source_restarts_total", {"reason": "Expired"}),
        ("milo_discoveryd_kubeconfigs_issued_total", {"result": "credentials_unavailable"}),
        ("milo_discoveryd_grpc_server_handled_total", {"grpc_method": "WatchClusters", "grpc_code": "ABORTED"}),
    ],
)
def test_what_may_be_counted_is_there_from_the_start(name: str, labels: dict[str, str]) -> None:
    assert Metrics().registry.get_sample_value(name, labels) == 0
