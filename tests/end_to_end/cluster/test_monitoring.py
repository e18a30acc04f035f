"""The PodMonitor, as the Prometheus operator configures Prometheus by it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.pods import operator, started, watcher
from tests.end_to_end.cluster.test_pods import DEFINITION, OF_PROMETHEUS, eventually
from tests.support.debian import program

NAMESPACE = "monitored"
TARGETS = "printf 'GET /api/v1/targets HTTP/1.0\\r\\n\\r\\n' | socat -t 5 - TCP:127.0.0.1:9090"


def test_prometheus_finds_the_daemon_in_the_pod_by_the_pod_monitor(node: Node, tmp_path: Path) -> None:
    node.kubectl("apply", "-f", "-", given=DEFINITION.read_text())
    components = ("sidecar", "prometheus-monitoring")
    objects = operator(tmp_path / "operator", NAMESPACE, [watcher("changes")], components=components)
    [monitor] = [each for each in objects if each["kind"] == "PodMonitor"]
    directory = node.files / "prometheus"
    directory.mkdir()
    shutil.copy(program("prometheus", "prometheus"), directory)
    configuration = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape(monitor)]}
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    command = ["/prometheus/prometheus", "--config.file=/prometheus/prometheus.yaml", "--storage.tsdb.path=/tmp/data"]
    with started(node, [each for each in objects if each["kind"] not in OF_PROMETHEUS]):
        checked = [str(program("promtool", "prometheus")), "check", "config", str(directory / "prometheus.yaml")]
        subprocess.run(checked, check=True, capture_output=True)
        with subprocess.Popen(node.enter(*command), stderr=subprocess.DEVNULL) as prometheus:
            try:
                target = eventually(lambda: scraped(node))
            finally:
                prometheus.terminate()
    labels = target["labels"]
    assert labels["job"] == "milo-discoveryd"
    assert labels["namespace"] == NAMESPACE
    assert labels["container"] == "milo-discoveryd"
    assert labels["pod"].startswith("example-operator-")


def scraped(node: Node) -> Any:
    """Return the only target, once it was scraped."""
    done = subprocess.run(node.enter("sh", "-c", TARGETS), capture_output=True, text=True, check=False)
    if not (body := done.stdout.partition("\r\n\r\n")[2]):
        return None
    targets = json.loads(body)["data"]["activeTargets"]
    assert len(targets) <= 1
    return next((each for each in targets if each["health"] == "up"), None)


def scrape(monitor: dict[str, Any]) -> dict[str, Any]:
    """Return what the Prometheus operator makes of a PodMonitor (its `generatePodMonitorConfig`)."""
    namespace, [endpoint] = monitor["metadata"]["namespace"], monitor["spec"]["podMetricsEndpoints"]
    meta = "__meta_kubernetes_pod"
    rules: list[dict[str, Any]] = [
        {"action": "drop", "source_labels": [f"{meta}_phase"], "regex": "(Failed|Succeeded)"},
        *(
            {
                "action": "keep",
                "source_labels": [f"{meta}_label_{key.translate(str.maketrans('./-', '___'))}"],
                "regex": value,
            }
            for key, value in monitor["spec"]["selector"]["matchLabels"].items()
        ),
        {"action": "keep", "source_labels": [f"{meta}_container_port_name"], "regex": endpoint["port"]},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": [f"{meta}_container_name"], "target_label": "container"},
        {"source_labels": [f"{meta}_name"], "target_label": "pod"},
        {"target_label": "job", "replacement": f"{namespace}/{monitor['metadata']['name']}"},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
        *(
            {"target_label": each["targetLabel"], "replacement": each["replacement"]}
            for each in endpoint["relabelings"]
        ),
    ]
    discovery = {"role": "pod", "namespaces": {"names": [namespace]}, "kubeconfig_file": "/etc/kubernetes/admin.conf"}
    return {
        "job_name": f"podMonitor/{namespace}/{monitor['metadata']['name']}/0",
        "metrics_path": endpoint["path"],
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": rules,
    }
