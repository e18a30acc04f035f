"""Decisions about published objects: random histories, and single cases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discovery import Cluster, Connectivity, ConnectivityState
from milo_discovery._kubeconfig_access import KubeconfigAccess
from milo_discovery._removal_guard import Removal
from milo_publishing.decisions import Apply, Create, DeleteObject, Hold, Publication, Refuse
from milo_publishing.objects import DesiredObject, Document, Identity, ObservedObject, object_name
from milo_publishing.rendering import ClusterProfiles

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ACCESS = KubeconfigAccess(server="https://milo.test/alpha", authorities="PEM")
PROFILES = ClusterProfiles(cluster_manager="milo", access_provider="milo", copy_labels=("env",))
MAX_STEPS = 6
"""More consecutive actions than any state needs."""


def identity(publisher: str = "milo") -> Identity:
    return Identity(publication="cluster-profiles", publisher=publisher)


def publication(publisher: str = "milo") -> Publication:
    return Publication(PROFILES.resource, identity(publisher))


def cluster(name: str = "alpha", *, uid: str = "1", state: str = "REACHABLE", **fields: Any) -> Cluster:
    connectivity = Connectivity(state=ConnectivityState[state], since=NOW)
    return Cluster(name=name, uid=uid, engaged_at=NOW, connectivity=connectivity, **fields)


def desired(of: Cluster, *, access: KubeconfigAccess | None = ACCESS, is_known: bool = True) -> DesiredObject:
    content = PROFILES.render(of, access) if is_known else None
    name = object_name(of.name)
    assert name is not None
    return DesiredObject(name=name, cluster=of.name, cluster_uid=of.uid, content=content)


class ModelServer:
    """A model of the API server's behavior that the decisions rely on."""

    def __init__(self) -> None:
        self.objects: dict[str, Document] = {}
        self.writes = 0
        self._numbers = map(str, count(1))

    def observed(self, name: str) -> ObservedObject | None:
        found = self.objects.get(name)
        return None if found is None else ObservedObject.of(copy.deepcopy(found))

    def put(self, document: Document) -> None:
        uid = self.objects.get(document["metadata"]["name"], {}).get("metadata", {}).get("uid")
        stored = copy.deepcopy(document)
        stored["metadata"] |= {"uid": uid or next(self._numbers), "resourceVersion": next(self._numbers)}
        self.objects[stored["metadata"]["name"]] = stored

    def settle(self, of: Publication, name: str, *, may_delete: bool = True) -> Hold | Refuse | None:
        """Perform the decided actions until none is left, and return the last decision."""
        for _ in range(MAX_STEPS):
            match action := of.decide(name, may_delete=may_delete):
                case Create(body):
                    if name not in self.objects:
                        self.writes += 1
                        self.put(body)
                case Apply(uid, body, status):
                    assert self.objects[name]["metadata"]["uid"] == uid
                    self.writes += 1
                    before = self.objects[name]
                    # All former fields are replaced, because this publisher manages all of them.
                    after = {**before, **(body or {}), **({"status": status["status"]} if status else {})}
                    after["metadata"] = {**before["metadata"], **(body or before)["metadata"]}
                    self.put(after)
                case DeleteObject(uid, resource_version):
                    metadata = self.objects[name]["metadata"]
                    assert (metadata["uid"], metadata["resourceVersion"]) == (uid, resource_version)
                    self.writes += 1
                    del self.objects[name]
                case _:
                    return action
            of.observe(name, self.observed(name))
        raise AssertionError("the decisions do not converge")


@pytest.fixture
def server() -> ModelServer:
    return ModelServer()


def test_publishing_decisions_create_object_once(server):
    of = publication()
    of.desire(desired(cluster(labels={"env": "prod", "tier": "gold"})))
    assert server.settle(of, "alpha") is None
    profile = server.objects["alpha"]
    assert profile["metadata"]["labels"]["env"] == "prod"
    assert "tier" not in profile["metadata"]["labels"]
    assert profile["status"]["conditions"][0]["status"] == "True"
    writes = server.writes
    assert server.settle(of, "alpha") is None
    assert server.writes == writes


def test_publishing_decisions_create_no_object_before_access_is_known(server):
    of = publication()
    of.desire(desired(cluster(), is_known=False))
    assert server.settle(of, "alpha") is None
    assert not server.objects
    assert not of.is_complete()


def test_publishing_decisions_write_only_status_when_health_changes(server):
    of = publication()
    of.desire(desired(cluster()))
    server.settle(of, "alpha")
    of.desire(desired(cluster(state="UNREACHABLE")))
    action = of.decide("alpha", may_delete=True)
    assert isinstance(action, Apply)
    assert action.body is None
    assert action.status is not None
    assert action.status["status"]["conditions"][0]["status"] == "False"


def test_published_condition_keeps_transition_time_while_status_is_unchanged(server):
    of = publication()
    of.desire(desired(cluster()))
    server.settle(of, "alpha")
    later = Connectivity(state=ConnectivityState.REACHABLE, since=datetime(2026, 11, 22, tzinfo=UTC))
    of.desire(desired(Cluster(name="alpha", uid="1", engaged_at=NOW, connectivity=later)))
    assert of.decide("alpha", may_delete=True) is None


def test_label_removed_from_cluster_is_removed_from_published_object(server):
    of = publication()
    of.desire(desired(cluster(labels={"env": "prod"})))
    server.settle(of, "alpha")
    of.desire(desired(cluster()))
    action = of.decide("alpha", may_delete=True)
    assert isinstance(action, Apply)
    assert action.body is not None
    assert "env" not in action.body["metadata"]["labels"]


def test_published_object_deletion_is_held_until_it_is_allowed(server):
    of = publication()
    of.desire(desired(cluster()))
    server.settle(of, "alpha")
    of.withdraw("alpha")
    assert server.settle(of, "alpha") is None
    assert "alpha" in server.objects, "the cluster is not engaged, and not known to have ended"
    of.end("alpha", "1")
    assert server.settle(of, "alpha", may_delete=False) == Hold()
    assert "alpha" in server.objects
    assert server.settle(of, "alpha") is None
    assert not server.objects


def test_published_object_of_a_moved_cluster_is_kept_by_the_other_replica(server):
    one, two = publication(), publication()
    one.desire(desired(cluster()))
    server.settle(one, "alpha")
    one.withdraw("alpha")
    assert [(removal.name, removal.cluster_uid) for removal in one.removals()] == [("alpha", "1")]
    uid = server.objects["alpha"]["metadata"]["uid"]
    two.desire(desired(cluster(state="UNREACHABLE")))
    two.observe("alpha", server.observed("alpha"))
    assert server.settle(two, "alpha") is None
    assert two.removals() == []
    assert server.objects["alpha"]["metadata"]["uid"] == uid


def test_removals_are_objects_of_the_publisher_whose_clusters_are_neither_engaged_nor_ended(server):
    of = publication()
    for name in ("alpha", "beta", "gamma", "delta"):
        of.desire(desired(cluster(name)))
        server.settle(of, name)
    server.put({"metadata": {"name": "foreign"}, "spec": {}})
    of.observe("foreign", server.observed("foreign"))
    assert (of.removals(), of.published) == ([], 4)
    of.withdraw("alpha")
    of.desire(desired(cluster("beta", uid="2")))
    of.withdraw("gamma")
    of.end("gamma", "1")
    uids = {name: server.objects[name]["metadata"]["uid"] for name in ("alpha", "beta")}
    assert of.removals() == [Removal(name, name, "1", uid) for name, uid in uids.items()]
    assert server.settle(of, "beta") == Hold(), "the object of the former cluster is still there"


def test_end_of_a_cluster_before_its_reengagement_does_not_allow_deletion_of_its_object(server):
    of = publication()
    of.desire(desired(cluster()))
    server.settle(of, "alpha")
    of.withdraw("alpha")
    of.end("alpha", "1")
    of.desire(desired(cluster()))
    of.withdraw("alpha")
    assert server.settle(of, "alpha") is None
    assert "alpha" in server.objects


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (identity(), ""),
        (
            replace(identity(), group="dns"),
            "belongs to the shard group 'dns', but this daemon belongs to no shard group",
        ),
        (replace(identity(), filter="-l a=b"), "was written with the filter `-l a=b`, but this run has no filter"),
    ],
)
def test_difference_in_group_or_filter_of_a_published_object_is_reported(server, other: Identity, difference: str):
    of = Publication(PROFILES.resource, other)
    of.desire(desired(cluster()))
    server.settle(of, "alpha")
    observed = server.observed("alpha")
    assert observed is not None
    assert observed.difference(identity()) == difference


def test_object_of_a_replaced_cluster_is_deleted_before_it_is_created_again(server):
    of = publication()
    of.desire(desired(cluster()))
    server.settle(of, "alpha")
    before = server.objects["alpha"]["metadata"]["uid"]
    of.desire(desired(cluster(uid="2"), is_known=False))
    of.end("alpha", "1")
    assert server.settle(of, "alpha", may_delete=False) == Hold()
    assert server.settle(of, "alpha") is None
    assert not server.objects, "the former object is deleted, since its cached content is not valid for this cluster"
    of.desire(desired(cluster(uid="2")))
    server.settle(of, "alpha")
    assert server.objects["alpha"]["metadata"]["uid"] != before


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({}, "was not created"),
        ({"app.kubernetes.io/managed-by": "Helm"}, "was not created"),
        (Identity(publication="flux-kubeconfigs", publisher="milo").labels(), "was not created"),
        (identity("other").labels(), "publisher 'other'"),
    ],
)
def test_objects_of_other_publishers_or_programs_are_neither_overwritten_nor_deleted(
    server, labels: dict[str, str], reason: str
):
    of = publication()
    server.put({"metadata": {"name": "alpha", "labels": labels}, "spec": {}})
    before = copy.deepcopy(server.objects)
    of.observe("alpha", server.observed("alpha"))
    of.desire(desired(cluster()))
    action = server.settle(of, "alpha")
    assert isinstance(action, Refuse)
    assert reason in action.reason
    of.withdraw("alpha")
    of.end("alpha", "1")
    assert server.settle(of, "alpha") is None
    assert server.objects == before


def test_object_of_another_publisher_with_same_cluster_uid_is_not_taken_over(server):
    of, other = publication(), publication("other")
    other.desire(desired(cluster()))
    server.settle(other, "alpha")
    before = copy.deepcopy(server.objects)
    of.observe("alpha", server.observed("alpha"))
    of.desire(desired(cluster(organization="acme")))
    assert isinstance(server.settle(of, "alpha"), Refuse)
    assert server.objects == before


def test_object_created_concurrently_by_another_client_is_not_overwritten(server):
    of = publication()
    of.desire(desired(cluster()))
    assert isinstance(of.decide("alpha", may_delete=True), Create), "a creation fails if the object exists"
    server.put({"metadata": {"name": "alpha"}, "spec": {}})
    assert isinstance(server.settle(of, "alpha"), Refuse)
    assert server.objects["alpha"]["spec"] == {}


NAMES = st.sampled_from(["a", "b"])
CLUSTERS = st.builds(
    cluster,
    NAMES,
    uid=st.sampled_from(["1", "2"]),
    state=st.sampled_from(["REACHABLE", "UNREACHABLE", "UNKNOWN"]),
    labels=st.sampled_from([{}, {"env": "prod"}]),
    organization=st.sampled_from(["", "acme"]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("desire"), CLUSTERS, st.booleans()),
        st.tuples(st.just("withdraw"), NAMES, st.booleans()),
        st.tuples(st.just("settle"), NAMES, st.booleans()),
        st.tuples(st.just("restart"), NAMES, st.booleans()),
        st.tuples(st.just("foreign"), NAMES, st.booleans()),
        st.tuples(st.just("remove"), NAMES, st.booleans()),
    )
)


@given(STEPS)
def test_publishing_decisions_converge_over_random_histories(steps: list[tuple[str, Any, bool]]):
    server, of = ModelServer(), publication()
    engaged: dict[str, DesiredObject] = {}
    perform: dict[str, Callable[[Any, bool], None]] = {}

    def desire(one: Cluster, is_known: bool) -> None:
        if one.name in engaged and engaged[one.name].cluster_uid != one.uid:
            withdraw(one.name, True)
        engaged[one.name] = desired(one, is_known=is_known)
        of.desire(engaged[one.name])

    def withdraw(name: str, _: bool) -> None:
        if name in engaged:
            of.end(name, engaged.pop(name).cluster_uid)
        of.withdraw(name)

    def settle(name: str, may_delete: bool) -> None:
        before = copy.deepcopy(server.objects.get(name))
        server.settle(of, name, may_delete=may_delete)
        if before is not None and (not may_delete or is_foreign(before)):
            assert server.objects[name]["metadata"]["uid"] == before["metadata"]["uid"]
        if before is not None and is_foreign(before):
            assert server.objects[name] == before

    def restart(_: str, __: bool) -> None:
        nonlocal of
        of = publication()
        of.observe_all(own())
        for wanted in engaged.values():
            of.desire(wanted)

    def own() -> list[ObservedObject]:
        return [
            found for name, obj in server.objects.items() if not is_foreign(obj) and (found := server.observed(name))
        ]

    def foreign(name: str, _: bool) -> None:
        if name not in server.objects:
            server.put({"metadata": {"name": name}, "spec": {}})

    def remove(name: str, _: bool) -> None:
        """Another client deletes the object, and the publisher lists its objects again."""
        server.objects.pop(name, None)
        of.observe_all(own())

    def is_foreign(document: Document) -> bool:
        return "labels" not in document["metadata"]

    perform |= {
        "desire": desire,
        "withdraw": withdraw,
        "settle": settle,
        "restart": restart,
        "foreign": foreign,
        "remove": remove,
    }
    for kind, what, flag in steps:
        perform[kind](what, flag)
    restart("", False)
    for removal in of.removals():
        of.end(removal.name, removal.cluster_uid)
    for name in of.names():
        settle(name, True)
    for name, document in server.objects.items():
        if not is_foreign(document):
            assert (
                document["metadata"]["annotations"]["discovery.miloapis.com/cluster-uid"] == engaged[name].cluster_uid
            )
    for name, wanted in engaged.items():
        assert name in server.objects or wanted.content is None
