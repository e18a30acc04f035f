"""Each component on each kind of workload that can carry the sidecar."""

from pathlib import Path
from typing import Any

import pytest

from tests.tooling.deploy.manifests import DEPLOY, of_kind, with_components

KINDS = ("Deployment", "StatefulSet")
NEEDED = {"sidecar": (), "milo-alert-labels": ("prometheus-monitoring",)}
"""The components that a component requires, by component; `sidecar` is required by all others."""
WITHOUT_PATCHES = {"network-policy", "prometheus-monitoring", "milo-alert-labels"}
"""Components that only add objects, or patch objects other than the workload."""


def pod_template(directory: Path, kind: str, *components: str) -> dict[str, Any]:
    [workload] = of_kind(with_components(directory, *components, kind=kind), kind)
    template: dict[str, Any] = workload["spec"]["template"]
    return template


@pytest.mark.parametrize("component", sorted(path.name for path in (DEPLOY / "components").iterdir()))
def test_component_changes_the_pods_of_every_kind_of_workload_alike(component: str, tmp_path: Path) -> None:
    before = [name for name in ("sidecar", *NEEDED.get(component, ())) if component != "sidecar"]
    changed = [pod_template(tmp_path / kind, kind, *before, component) for kind in KINDS]
    assert changed[0] == changed[1]
    unchanged = pod_template(tmp_path / "without", KINDS[0], *before)
    assert (changed[0] == unchanged) == (component in WITHOUT_PATCHES)
