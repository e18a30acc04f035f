"""An empty source of clusters."""

from milo_discoveryd.objects.removal_guard import RemovalGuard, RemovalLimits
from milo_discoveryd.registry.source import ClusterSource
from tests.support.sources import new_source
from tests.unit.registry.test_fleet_malformed import Ledger


def empty_source() -> ClusterSource:
    return new_source(Ledger(), guard=RemovalGuard(RemovalLimits()))
