"""Positions in a state file: up to which revision of each run it contains everything that subscribers received."""

import msgspec

from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import DeclaredTarget
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.wiring.source import ANY_REVISION, EARLIER_RUNS, positions
from milo_kube.moment import Moment
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.sources import new_source
from tests.unit.fleet.fleets import finish, ready
from tests.unit.fleet.test_fleet_malformed import Ledger

STALE = ViewStatus(ViewState.STALE, 0.0, "Restored", "")


def source() -> ClusterSource:
    log = ChangeLog(msgspec.json.encode, Retention())
    return new_source(Ledger(), log, drain_timeout_s=60.0)


def lists(of: ClusterSource, *seen: Ready) -> None:
    for _ in of.apply(of.collections[0], [ListStarted(), *map(Listed, seen), ListEnded()], 0.0):
        pass


def test_resume_positions_contain_the_latest_revision_of_this_run() -> None:
    of = source()
    lists(of, ready("a", "1"), ready("b", "2"))
    assert positions(of, "this") == {"this": of.changes.log.head}


def test_complete_list_extends_resume_positions_of_earlier_runs_to_any_revision() -> None:
    of = source()
    of.restored_positions = {"before": 7}
    list(of.restore([(ready("a", ""), 1.0)], (), STALE))
    assert positions(of, "this") == {"before": 7, "this": of.changes.log.head}
    lists(of, ready("a", "1"))
    assert positions(of, "this") == {"before": ANY_REVISION, "this": of.changes.log.head}


def test_resume_positions_of_the_most_recent_earlier_runs_are_kept() -> None:
    of = source()
    of.restored_positions = {f"run-{number}": 1 for number in range(100)}
    lists(of, ready("a", "1"))
    assert [*positions(of, "this")] == [*(f"run-{number}" for number in range(100 - EARLIER_RUNS, 100)), "this"]


def test_fleet_with_a_draining_cluster_has_no_resume_positions() -> None:
    """A drain is not stored, so after a restart its subscribers would see a drain that was canceled."""
    of = source()
    lists(of, ready("a", "1"))
    key = SubscriberKey("caller", "name")
    finish(of.engagements.releases.open(Subscription(key, "", Filter(confirms_releases=True)), 0.0))
    of.engagements.assigned_elsewhere = lambda _: "another member owns it"
    of.engagements.reassign("a", 60.0, Moment(0.0, 0.0))
    assert positions(of, "this") == {}


def test_clusters_of_mode_declarative_have_no_resume_positions() -> None:
    """The state file lacks some of the fields that subscribers receive, such as the CA."""
    of = source()
    seen = ready("a", "1")
    fields = {name: getattr(seen.target, name) for name in seen.target.__struct_fields__}
    declared = DeclaredTarget(**fields, object_namespace="", object_name="a")
    lists(of, msgspec.structs.replace(seen, target=declared))
    assert positions(of, "this") == {}
