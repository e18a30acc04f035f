import json

import pytest

from milo_discoveryd.sharding import lease_objects
from milo_discoveryd.sharding.lease_objects import LeaseFormatError, LeaseNames
from milo_discoveryd.sharding.leases import GroupState, MemberLease, View, ViewMember

NAMES = LeaseNames("operators", "dns")
LEASE = MemberLease(
    member="a",
    version="uid-a/7",
    holder="a.1",
    term="a.1.1",
    weight=2.5,
    acknowledged=3,
    is_leaving=True,
    is_stopped=True,
    renewal=12,
    instance="pod",
)
VIEW = View(
    number=3,
    id="a.1.3",
    members={"a": ViewMember("a.1.1", 2.5)},
    previous={"a": ViewMember("a.1.1"), "b": ViewMember("b")},
)
WALL = 1_700_000_000.25


def stored(body: bytes, version: str) -> dict[str, object]:
    """Return an object as the API server stores it."""
    found: dict[str, object] = json.loads(body)
    uid, _, resource_version = version.partition("/")
    assert isinstance(found["metadata"], dict)
    found["metadata"] |= {"uid": uid, "resourceVersion": resource_version}
    return found


def listed(*objects: object) -> bytes:
    return json.dumps({"items": objects}).encode()


@pytest.mark.parametrize("lease", [LEASE, MemberLease(member="b", version="uid-b/1", term="b.1", instance="")])
def test_member_lease_round_trips_through_the_api_server(lease: MemberLease) -> None:
    body = stored(lease_objects.encode_member(lease, NAMES, WALL), lease.version)
    assert lease_objects.decode_list(listed(body), NAMES) == GroupState(members={lease.member: lease})


def test_view_lease_round_trips_through_the_api_server() -> None:
    body = stored(lease_objects.encode_view(VIEW, "", NAMES, WALL), "uid-v/9")
    assert lease_objects.decode_list(listed(body), NAMES) == GroupState(members={}, view=VIEW, view_version="uid-v/9")


def test_lease_update_contains_uid_and_version_that_it_replaces() -> None:
    body = json.loads(lease_objects.encode_member(LEASE, NAMES, WALL))
    assert body["metadata"]["name"] == "milo-discovery-dns-a"
    assert (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) == ("uid-a", "7")
    assert body["spec"] == {
        "leaseDurationSeconds": 30,
        "renewTime": "2023-11-14T22:13:20.250000Z",
        "holderIdentity": "a.1",
    }


def test_lease_creation_contains_no_version_and_cleared_lease_no_holder() -> None:
    body = json.loads(lease_objects.encode_member(MemberLease(member="a"), NAMES, WALL))
    assert "resourceVersion" not in body["metadata"]
    assert "holderIdentity" not in body["spec"]


def test_lease_deletion_precondition_is_uid_and_version() -> None:
    assert json.loads(lease_objects.encode_precondition("uid-a/7")) == {
        "preconditions": {"uid": "uid-a", "resourceVersion": "7"}
    }


def test_version_of_a_written_lease_is_read_from_the_response() -> None:
    body = json.dumps(stored(lease_objects.encode_member(LEASE, NAMES, WALL), "uid-a/8")).encode()
    assert lease_objects.decode_version(body) == "uid-a/8"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"items": [{"metadata": {}}]}'])
def test_list_that_is_not_a_list_of_leases_is_refused(body: bytes) -> None:
    with pytest.raises(LeaseFormatError, match="the response to a list of Leases"):
        lease_objects.decode_list(body, NAMES)
    with pytest.raises(LeaseFormatError, match="not a Lease"):
        lease_objects.decode_version(body)


@pytest.mark.parametrize("name", ["milo-discovery-dns-a", "milo-discovery-dns-view"])
@pytest.mark.parametrize(
    "annotations", [{}, {"discovery.miloapis.com/member": "a", "discovery.miloapis.com/view": "{"}]
)
def test_lease_of_another_program_is_rejected_by_name(name: str, annotations: dict[str, str]) -> None:
    lease = {"metadata": {"name": name, "uid": "u", "resourceVersion": "1", "annotations": annotations}}
    with pytest.raises(LeaseFormatError, match=f"operators/{name} .* delete it"):
        lease_objects.decode_list(listed(lease), NAMES)


def test_lease_names_and_label_selector_contain_the_group() -> None:
    assert NAMES.path(NAMES.view) == "/apis/coordination.k8s.io/v1/namespaces/operators/leases/milo-discovery-dns-view"
    assert NAMES.selector == "discovery.miloapis.com/shard-group=dns"
