"""An empty source of clusters."""

from milo_discoveryd.registry.source import Source
from tests.support.sources import new_source
from tests.unit.registry.test_fleet_malformed import Ledger


def empty_source() -> Source:
    return new_source(Ledger())
