"""Probes per cluster or per host."""

import pytest

from milo_discoveryd.config import load
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.wiring.prober import probes_hosts

PER = "MILO_DISCOVERYD_CONNECTIVITY__PER"
DISENGAGE = "MILO_DISCOVERYD_CONNECTIVITY__DISENGAGE_UNREACHABLE_AFTER"


@pytest.mark.parametrize(
    ("mode", "environ", "of_hosts"),
    [
        ("project", {}, True),
        ("project", {PER: "cluster"}, False),
        ("project", {DISENGAGE: "10m"}, False),
        ("project-control-plane", {}, False),
        ("project-control-plane", {PER: "host"}, True),
        ("single", {}, False),
    ],
)
def test_probes_are_per_host_by_default_if_all_clusters_share_one_host(
    mode: str, environ: dict[str, str], of_hosts: bool
) -> None:
    assert probes_hosts(load({"mode": mode}, environ, None)) is of_hosts


def test_disengagement_of_unreachable_clusters_requires_probes_per_cluster() -> None:
    with pytest.raises(ConfigError, match="`disengage_unreachable_after` requires"):
        load({}, {PER: "host", DISENGAGE: "10m"}, None)
