"""Probe results as a field of the cluster."""

from milo_discoveryd.log.events import EventType
from milo_discoveryd.model.cluster import ConnectivityStatus, Reachability
from tests.unit.fleet.fleets import at, engagements, not_ready, ready

FOUND = ConnectivityStatus(Reachability.REACHABLE, 5.0)


def test_connectivity_change_is_sent_as_update() -> None:
    known = engagements()
    (engaged,) = known.commit((ready("alpha"),), at(0.0))
    (updated,) = known.set_connectivity("alpha", engaged.cluster.incarnation, FOUND, at(1.0))
    assert (updated.type, updated.cluster.connectivity) == (EventType.UPDATED, FOUND)


def test_connectivity_survives_other_changes_and_is_reset_when_cluster_is_engaged_again() -> None:
    known = engagements()
    (engaged,) = known.commit((ready("alpha"),), at(0.0))
    known.set_connectivity("alpha", engaged.cluster.incarnation, FOUND, at(1.0))
    (updated,) = known.commit((ready("alpha", version="2", labels={"env": "prod"}),), at(2.0))
    assert updated.cluster.connectivity == FOUND
    known.commit((not_ready("alpha", version="3"),), at(3.0))
    (again,) = known.commit((ready("alpha", version="4"),), at(4.0))
    assert again.cluster.connectivity.state is Reachability.UNKNOWN


def test_connectivity_result_for_unknown_or_disengaged_cluster_is_ignored() -> None:
    known = engagements()
    (engaged,) = known.commit((ready("alpha"),), at(0.0))
    assert known.set_connectivity("nobody", 1, FOUND, at(1.0)) == []
    assert known.set_connectivity("alpha", engaged.cluster.incarnation + 1, FOUND, at(1.0)) == []
    known.commit((not_ready("alpha"),), at(2.0))
    assert known.set_connectivity("alpha", engaged.cluster.incarnation, FOUND, at(3.0)) == []
