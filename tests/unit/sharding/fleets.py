"""A fleet with one empty source."""

from typing import Any

import msgspec

from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.model.removal_limits import RemovalLimits
from tests.support.sources import new_source
from tests.unit.fleet.test_fleet_malformed import Ledger


def fleet_of_one_source(**policy: Any) -> Fleet:
    fleet = Fleet(ChangeLog(msgspec.json.encode, Retention()))
    new_source(Ledger(), fleet=fleet, removals=RemovalLimits(), **policy)
    return fleet
