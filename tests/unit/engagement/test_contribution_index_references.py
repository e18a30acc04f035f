"""Clusters whose objects reference other objects, such as Secrets."""

from collections.abc import Sequence

import pytest

from milo_discoveryd.engagement import contribution_index as module
from milo_discoveryd.engagement.contribution_index import CLUSTERS_PER_STEP
from milo_discoveryd.model.contributions import (
    ContributingObject,
    Contribution,
    ObjectContent,
    ObjectContribution,
    earliest,
)
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready
from milo_discoveryd.objects.pending_deletions import Absent
from milo_kube.reflect.messages import DeletionReported, ObjectChanged
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.unit.engagement.test_contribution_index import RecordedFleet
from tests.unit.fleet.fleets import target

OBJECTS, SECRETS = 0, 1
RESTORED = ViewStatus(ViewState.STALE, 0.0, "Restored", "")


def at_secret(cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
    """Engage the cluster of the earliest object, at the server that the Secret of this object contains."""
    seen = earliest(cluster, [contribution for contribution in contributions if contribution.watch == OBJECTS])
    if not isinstance(seen, Ready):
        return seen
    secret = seen.target.organization
    server = next(
        (
            contribution.content
            for contribution in contributions
            if (contribution.watch, contribution.object) == (SECRETS, secret)
        ),
        None,
    )
    if server is None:
        return NotReady(cluster, seen.uid, seen.version, f"there is no kubeconfig in Secret {secret}")
    return Ready(seen.uid, seen.version, target(cluster, seen.uid, organization=server))


def an_object(name: str, needs: str, version: int = 1, *, ready: bool = True, cluster: str = "") -> ContributingObject:
    """Return an object that references the Secret `needs`, for the cluster `cluster`, by default of the same name."""
    uid, cluster = f"uid-{name}", cluster or name
    seen = (
        Ready(uid, str(version), target(cluster, uid, organization=needs))
        if ready
        else NotReady(cluster, uid, str(version), "not ready")
    )
    contribution = Contribution(cluster, seen, ((SECRETS, needs),) if ready else ())
    return ContributingObject(name, uid, str(version), ObjectContent((contribution,)))


def a_secret(name: str, server: str = "s1", version: int = 1, uid: str = "") -> ContributingObject:
    uid = uid or f"uid-{name}"
    return ContributingObject(name, uid, str(version), ObjectContent(value=server))


class JoinedFleet(RecordedFleet):
    def __init__(self, grace_s: float = 0.0) -> None:
        super().__init__(at_secret, resources=2, grace_s=grace_s)

    @property
    def servers(self) -> dict[str, str]:
        return {cluster.target.name: cluster.target.organization for cluster in self.source.engagements.clusters()}

    def message(self, cluster: str) -> str:
        record = self.source.engagements[cluster]
        assert record is not None
        return record.message


@pytest.mark.parametrize("first", [OBJECTS, SECRETS])
def test_cluster_with_secret_is_engaged_whichever_list_is_complete_first(first: int) -> None:
    fleet = JoinedFleet()
    lists = [an_object("shop", "k")], [a_secret("k")]
    assert fleet.listed(*lists[first], watch=first) == []
    assert fleet.listed(*lists[1 - first], watch=1 - first) == [("ENGAGED", "shop")]
    assert fleet.servers == {"shop": "s1"}


@pytest.fixture
def fleet() -> JoinedFleet:
    """Return a fleet with the clusters shop and bank, which need the Secrets k and m."""
    fleet = JoinedFleet()
    fleet.listed(an_object("shop", "k"), an_object("bank", "m"))
    fleet.listed(a_secret("k"), a_secret("m"), watch=SECRETS)
    assert fleet.engaged == {"shop", "bank"}
    return fleet


def test_cluster_is_not_ready_until_its_secret_is_created(fleet: JoinedFleet) -> None:
    assert fleet.take(ObjectChanged(an_object("farm", "n", 2))) == []
    record = fleet.source.engagements["farm"]
    assert record is not None
    assert (record.state, record.message) == (ObjectState.NOT_READY, "there is no kubeconfig in Secret n")
    assert fleet.take(ObjectChanged(a_secret("n", version=3)), watch=SECRETS) == [("ENGAGED", "farm")]


def test_changed_secret_updates_only_the_clusters_that_reference_it(fleet: JoinedFleet) -> None:
    fleet.take(ObjectChanged(an_object("mall", "k", 2)))
    changed = fleet.take(ObjectChanged(a_secret("k", "s2", 3)), watch=SECRETS)
    assert sorted(changed) == [("UPDATED", "mall"), ("UPDATED", "shop")]
    assert fleet.servers == {"shop": "s2", "mall": "s2", "bank": "s1"}


def test_secret_of_many_clusters_is_applied_in_batches_interleaved_with_other_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_DEPENDENTS", 1000)
    fleet = JoinedFleet()
    fleet.listed(*(an_object(f"c{number}", "k") for number in range(2 * CLUSTERS_PER_STEP + 1)))
    fleet.listed(a_secret("k"), a_secret("m"), watch=SECRETS)
    steps = fleet.source.apply(fleet.collection(SECRETS), [ObjectChanged(a_secret("k", "s2", 3))], 0.0)
    for done in (1, 2):
        next(steps)
        assert [*fleet.servers.values()].count("s2") == done * CLUSTERS_PER_STEP
    last = f"c{2 * CLUSTERS_PER_STEP}"
    fleet.take(ObjectChanged(an_object(last, "m", 4)))
    assert [*steps] == []
    assert fleet.servers == {name: "s1" if name == last else "s2" for name in fleet.servers}


def test_only_the_earliest_of_very_many_clusters_that_need_one_secret_follow_it() -> None:
    """A change of the Secret would otherwise change all of them, before later changes of other objects."""
    fleet, most = JoinedFleet(), module.MOST_DEPENDENTS
    fleet.listed(a_secret("k"), a_secret("m"), watch=SECRETS)
    fleet.listed()
    fleet.take(*(ObjectChanged(an_object(f"c{number}", "k")) for number in range(most + 3)))
    assert [*fleet.servers] == [f"c{number}" for number in range(most)]
    assert fleet.message(f"c{most}") == "more than 100 clusters need k, and this is not one of the earliest"
    assert len(fleet.take(ObjectChanged(a_secret("k", "s2", 3)), watch=SECRETS)) == most
    fleet.take(ObjectChanged(an_object("c0", "m", 4)), ObjectChanged(an_object(f"c{most + 2}", "m", 5)))
    assert fleet.servers == {"c0": "s1", f"c{most + 2}": "s1"} | {f"c{number}": "s2" for number in range(1, most + 1)}
    assert fleet.delete("c1", "uid-c1") == [("DISENGAGED", "c1", "DELETED"), ("ENGAGED", f"c{most + 1}")]


def test_cluster_stays_engaged_when_its_secret_is_created_again(fleet: JoinedFleet) -> None:
    assert fleet.take(ObjectChanged(a_secret("k", "s2", 3, uid="another")), watch=SECRETS) == [("UPDATED", "shop")]


def test_cluster_is_updated_when_its_object_references_another_secret(fleet: JoinedFleet) -> None:
    fleet.take(ObjectChanged(a_secret("m", "s2", 2)), watch=SECRETS)
    assert fleet.take(ObjectChanged(an_object("shop", "m", 3))) == [("UPDATED", "shop")]
    assert fleet.take(ObjectChanged(a_secret("k", "s9", 4)), watch=SECRETS) == []
    assert fleet.delete("m", "uid-m", SECRETS) == [
        ("DISENGAGED", "bank", "NOT_READY"),
        ("DISENGAGED", "shop", "NOT_READY"),
    ]


def test_cluster_is_not_ready_after_the_deletion_of_its_secret_was_confirmed(fleet: JoinedFleet) -> None:
    fleet.take(DeletionReported("k", "uid-k"), watch=SECRETS)
    assert fleet.source.pending_deletion("shop") == (0.0, "")
    assert fleet.source.pending_deletion("bank") is None
    assert fleet.engaged == {"shop", "bank"}
    assert fleet.delete("k", "uid-k", SECRETS) == [("DISENGAGED", "shop", "NOT_READY")]
    assert fleet.message("shop") == "there is no kubeconfig in Secret k"
    assert fleet.take(ObjectChanged(a_secret("k", version=9, uid="another")), watch=SECRETS) == [("ENGAGED", "shop")]


def test_secret_recreated_within_grace_period_sends_no_event() -> None:
    fleet = JoinedFleet(grace_s=10.0)
    fleet.listed(an_object("shop", "k"))
    fleet.listed(a_secret("k"), watch=SECRETS)
    assert fleet.delete("k", "uid-k", SECRETS) == []
    assert fleet.take(ObjectChanged(a_secret("k", version=9, uid="another")), watch=SECRETS) == []
    assert fleet.source.due_at is None


def test_cluster_keeps_its_last_state_while_its_secret_is_malformed(fleet: JoinedFleet) -> None:
    fleet.take(ObjectChanged(Malformed("k", "uid-k", "3", "no YAML")), watch=SECRETS)
    assert fleet.take(ObjectChanged(an_object("shop", "k", 4))) == []
    assert fleet.servers["shop"] == "s1"
    assert fleet.source.problem_of("shop") == "no YAML"
    assert fleet.source.problem_of("bank") == ""


def test_cluster_with_malformed_secret_reports_the_problem(fleet: JoinedFleet) -> None:
    fleet.take(ObjectChanged(Malformed("n", "uid-n", "3", "no YAML")), watch=SECRETS)
    assert fleet.take(ObjectChanged(an_object("farm", "n", 4))) == []
    assert fleet.message("farm") == "there is no kubeconfig in Secret n"
    assert fleet.source.problem_of("farm") == "no YAML"


def test_secret_without_a_kubeconfig_is_neither_stored_nor_counted_by_the_removal_guard(fleet: JoinedFleet) -> None:
    others: list[Observation] = [NotReady(f"other-{n}", f"uid-other-{n}", "1", "nothing") for n in range(30)]
    fleet.take(*map(ObjectChanged, others), watch=SECRETS)
    assert len(list(fleet.source.stored_objects())) == 4
    assert fleet.listed(*others, watch=SECRETS) == []
    assert fleet.source.deletions_held == 2


def test_list_that_lacks_most_secrets_holds_their_removal() -> None:
    fleet = JoinedFleet()
    fleet.listed(*(an_object(f"c{n}", f"k{n}") for n in range(30)))
    fleet.listed(*(a_secret(f"k{n}") for n in range(30)), watch=SECRETS)
    assert len(fleet.engaged) == 30
    assert fleet.listed(watch=SECRETS) == []
    assert fleet.source.deletions_held == 30
    assert len(fleet.engaged) == 30


def restarted(before: JoinedFleet, *, without: str = "") -> JoinedFleet:
    """Return a fleet restored from the state of `before`, without the Secret `without`."""
    fleet = JoinedFleet()
    stored = [(Ready(cluster.target.uid, "", cluster.target), 5.0) for cluster in before.source.engagements.clusters()]
    objects = [obj for obj in before.source.stored_objects() if obj.key != without]
    list(fleet.source.restore(stored, objects, RESTORED))
    fleet.journal.events.clear()
    return fleet


def test_restored_cluster_stays_engaged_until_both_resources_were_listed(fleet: JoinedFleet) -> None:
    after = restarted(fleet)
    assert after.listed(an_object("shop", "k", 8), an_object("bank", "m", 8)) == []
    assert after.listed(a_secret("k", version=9), a_secret("m", "s2", 9), watch=SECRETS) == [("UPDATED", "bank")]


@pytest.mark.parametrize("first", [OBJECTS, SECRETS])
def test_restored_cluster_without_stored_secret_stays_engaged_until_both_lists_are_complete(
    fleet: JoinedFleet, first: int
) -> None:
    after = restarted(fleet, without="m")
    lists = [an_object("shop", "k", 8), an_object("bank", "m", 8)], [a_secret("k", version=9)]
    assert after.listed(*lists[first], watch=first) == []
    assert after.listed(*lists[1 - first], watch=1 - first) == [("DISENGAGED", "bank", "NOT_READY")]


def test_restored_cluster_is_disengaged_when_the_deletion_of_its_secret_is_confirmed(fleet: JoinedFleet) -> None:
    after = restarted(fleet)
    after.listed(an_object("shop", "k", 8), an_object("bank", "m", 8))
    assert after.listed(a_secret("k", version=9), watch=SECRETS) == []
    collection = after.collection(SECRETS)
    for request in collection.pending_deletions.take_due(0.0):
        after.source.resolve(collection, request, Absent(), 0.0)
    assert after.journal.events == [("DISENGAGED", "bank", "NOT_READY")]


def test_restored_cluster_with_malformed_secret_stays_engaged(fleet: JoinedFleet) -> None:
    after = restarted(fleet)
    after.listed(Malformed("k", "uid-k", "9", "no YAML"), a_secret("m", version=9), watch=SECRETS)
    assert after.listed(an_object("shop", "k", 8), an_object("bank", "m", 8)) == []
    assert after.engaged == {"shop", "bank"}
    assert after.source.problem_of("shop") == "no YAML"


def test_cluster_reports_missing_secret_before_all_resources_were_listed(fleet: JoinedFleet) -> None:
    after = restarted(fleet)
    after.listed(an_object("shop", "k", 8), an_object("bank", "m", 8), an_object("farm", "n", 8))
    assert after.message("farm") == "there is no kubeconfig in Secret n"
