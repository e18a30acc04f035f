"""An empty fleet."""

import msgspec

from milo_discoveryd.registry.direct_fleet import DirectFleet
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.pending_deletions import PendingDeletions
from tests.unit.registry.test_fleet_malformed import Ledger


def new_fleet() -> DirectFleet:
    return DirectFleet(ChangeLog(msgspec.json.encode, Retention()), PendingDeletions(lambda: 0.0), Ledger())
