"""Each component on each kind of workload that can carry the sidecar."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.tooling.deploy.manifests import DEPLOY, of_kind, with_components

KINDS = ("Deployment", "StatefulSet")
NEEDED = {"sidecar": (), "milo-alert-labels": ("prometheus-monitoring",)}
"""The components that a component requires, by component; `sidecar` is required by all others."""
WITHOUT_PATCHES = {"network-policy", "prometheus-monitoring", "milo-alert-labels"}
"""Components that only add objects, or patch objects other than the workload."""


@cache
def pod_template(kind: str, *components: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="milo-") as name:
        [workload] = of_kind(with_components(Path(name) / kind, *components, kind=kind), kind)
    template: dict[str, Any] = workload["spec"]["template"]
    return template


@pytest.mark.parametrize("component", sorted(path.name for path in (DEPLOY / "components").iterdir()))
def test_component_changes_the_pods_of_every_kind_of_workload_in_the_same_way(component: str) -> None:
    before = [name for name in ("sidecar", *NEEDED.get(component, ())) if component != "sidecar"]
    changed = [pod_template(kind, *before, component) for kind in KINDS]
    assert changed[0] == changed[1]
    unchanged = pod_template(KINDS[0], *before)
    assert (changed[0] == unchanged) == (component in WITHOUT_PATCHES)
