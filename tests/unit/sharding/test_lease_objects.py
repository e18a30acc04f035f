import json
from typing import Any

import msgspec
import pytest

from milo_discoveryd.sharding import lease_objects
from milo_discoveryd.sharding.lease_objects import GROUP_LABEL, LeaseFormatError, LeaseList, LeaseNames
from milo_discoveryd.sharding.leases import (
    MAX_LEASES,
    MAX_MEMBERS,
    MAX_NUMBER,
    PENDING_NAMES,
    PENDING_SIZE,
    GroupState,
    MemberLease,
    View,
    ViewMember,
)
from milo_discoveryd.sharding.observed_group import ObservedGroup
from milo_discoveryd.sharding.timing import TIMING
from milo_discoveryd.sharding.view_change import next_view

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
    pending=frozenset({"alpha", "eu#beta"}),
    fleet="digest",
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


def decode_list(page: bytes, names: LeaseNames) -> GroupState:
    leases = LeaseList(names)
    assert leases.add(page) == ""
    return leases.group


def listed(*objects: object) -> bytes:
    return json.dumps({"items": objects}).encode()


@pytest.mark.parametrize("lease", [LEASE, MemberLease(member="b", version="uid-b/1", term="b.1", instance="")])
def test_member_lease_round_trips_through_the_api_server(lease: MemberLease) -> None:
    body = stored(lease_objects.encode_member(lease, NAMES, WALL), lease.version)
    assert decode_list(listed(body), NAMES) == GroupState(members={lease.member: lease})


def test_view_lease_round_trips_through_the_api_server() -> None:
    body = stored(lease_objects.encode_view(VIEW, "", NAMES, WALL), "uid-v/9")
    assert decode_list(listed(body), NAMES) == GroupState(members={}, view=VIEW, view_version="uid-v/9")


def test_lease_update_contains_uid_and_version_of_the_lease_that_it_replaces() -> None:
    body = json.loads(lease_objects.encode_member(LEASE, NAMES, WALL))
    assert body["metadata"]["name"] == "milo-discovery-dns-a"
    assert (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) == ("uid-a", "7")
    assert body["spec"] == {
        "leaseDurationSeconds": 30,
        "renewTime": "2023-11-14T22:13:20.250000Z",
        "holderIdentity": "a.1",
    }


def test_encoded_lease_omits_empty_resource_version_and_holder_identity() -> None:
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
        decode_list(body, NAMES)
    with pytest.raises(LeaseFormatError, match="not a Lease"):
        lease_objects.decode_version(body)


def test_owner_of_a_lease_is_not_read_from_anything_but_a_list() -> None:
    with pytest.raises(LeaseFormatError, match="the response to a list of Leases"):
        lease_objects.decode_unlisted(b"[]", NAMES)


def member_lease(name: str = "milo-discovery-dns-a", **annotations: str | None) -> dict[str, object]:
    """Return the Lease of member `a` with changed annotations; the value None removes an annotation."""
    found: Any = stored(lease_objects.encode_member(LEASE, NAMES, WALL), "uid-a/7")
    found["metadata"]["name"] = name
    for key, value in annotations.items():
        found["metadata"]["annotations"][f"discovery.miloapis.com/{key.replace('_', '-')}"] = value
    written = found["metadata"]["annotations"]
    found["metadata"]["annotations"] = {key: value for key, value in written.items() if value is not None}
    return found


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ({"term": None}, "it has no annotation discovery.miloapis.com/term"),
        ({"term": ""}, "its term is empty"),
        ({"format": None}, "it has no annotation discovery.miloapis.com/format"),
        ({"member": "b"}, "it names the member 'b'"),
        ({"weight": "inf"}, "its weight inf is not between 0 and 1000"),
        ({"weight": "nan"}, "its weight nan is not between 0 and 1000"),
        ({"weight": "-1"}, "its weight -1.0 is not between 0 and 1000"),
        ({"acknowledged_view": "-1"}, "its number -1 is not between 0 and 9007199254740992"),
        ({"acknowledged_view": "1e9"}, "invalid literal"),
        ({"renewal": "9" * 30}, "its number 9"),
        ({"pending": "{}"}, "Expected `array`"),
        ({"pending": json.dumps(["x" * 33_000, "y" * 33_000])}, "its pending clusters have more than 65536 characters"),
        ({"pending": json.dumps(["\N{SNOWMAN}"])}, "a name of its pending clusters is not ASCII"),
        ({"member": "b" * 200_000}, "it names the member 'bbbb"),
        ({"term": "t" * 301}, "an identifier in it has 301 characters, more than 300"),
        ({"term": "\x01" * 51}, "an identifier in it has 306 characters, more than 300"),
        ({"instance": "i" * 301}, "an identifier in it has 301 characters"),
        ({"fleet": "f" * 301}, "an identifier in it has 301 characters"),
    ],
)
def test_malformed_lease_has_a_problem(annotations: dict[str, str | None], reason: str) -> None:
    group = decode_list(listed(member_lease(**annotations)), NAMES)
    found = group.members["a"]
    assert reason in found.problem
    assert "Lease operators/milo-discovery-dns-a of shard group dns is malformed" in found.problem
    assert len(found.problem) < 500
    assert (found.is_held, found.version) == (True, "uid-a/7")
    written_again = member_lease(**annotations)
    written_again["metadata"] |= {"resourceVersion": "8"}  # type: ignore[operator]
    again = decode_list(listed(written_again), NAMES).members["a"]
    assert again.write_id == found.write_id, "a malformed write is not a renewal"


def test_holder_of_a_malformed_lease_is_kept_in_part() -> None:
    """API servers limit annotations, but not the holder's identity: 230 of 1.4 MB exhausted a daemon's memory."""
    forged = member_lease(format=None)
    forged["spec"] = {"holderIdentity": "h" * 1_400_000}
    assert decode_list(listed(forged), NAMES).members["a"].holder == "h" * 300


@pytest.mark.parametrize("character", ["m", "\x01", "\N{SNOWMAN}", '"'])
def test_next_view_after_the_largest_one_fits_into_annotations(character: str) -> None:
    letters = character * (300 // len(json.dumps(character, ensure_ascii=False)[1:-1].encode()) - 4)
    names = [f"{letters}{number:03}" for number in range(MAX_MEMBERS)]
    members = {name: ViewMember(f"{letters}{'t' * 4}", 2.2250738585072014e-308) for name in names}
    view = View(number=MAX_NUMBER - 2, id="i" * 300, members=members)
    read = decode_list(listed(stored(lease_objects.encode_view(view, "", NAMES, WALL), "uid-v/9")), NAMES)
    leases = {
        f"{number:03}".ljust(253, "n"): MemberLease(member="", holder="h", term=member.term, weight=member.weight)
        for number, member in enumerate(members.values())
    }
    joining = {name: msgspec.structs.replace(lease, member=name) for name, lease in leases.items()}
    group = ObservedGroup().read(
        msgspec.structs.replace(read, members=joining), "own", started_at=0, now=0, timing=TIMING
    )
    next_one = next_view(group, "h" * 250, 100, TIMING)
    assert next_one is not None
    assert (len(next_one.view.members), next_one.view.previous) == (MAX_MEMBERS, members)
    body = lease_objects.encode_view(next_one.view, next_one.version, NAMES, WALL)
    annotations = json.loads(body)["metadata"]["annotations"]
    assert sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) <= 256 << 10
    assert decode_list(listed(stored(body, "uid-v/10")), NAMES).view == next_one.view


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "i" * 301}, "an identifier in it has 301 characters"),
        ({"members": {"m" * 301: ViewMember("t")}}, "an identifier in it has 301 characters"),
        ({"members": {"m": ViewMember("t" * 301)}}, "an identifier in it has 301 characters"),
        ({"previous": {"m" * 301: ViewMember("t")}}, "an identifier in it has 301 characters"),
        ({"previous": {"m": ViewMember("\x01" * 51)}}, "an identifier in it has 306 characters"),
        ({"number": -1}, "its number -1 is not between 0 and 9007199254740991"),
        ({"number": MAX_NUMBER}, "its number 9007199254740992 is not between 0 and"),
        ({"number": 2**63 - 1}, "its number 9223372036854775807 is not between 0 and"),
        ({"number": 2**64}, "its number 18446744073709551616 is not between 0 and"),
    ],
)
def test_view_that_no_other_could_follow_counts_as_deleted(changes: dict[str, Any], reason: str) -> None:
    """The API server refused each view that named the members of a forged one, which had long names, as the previous
    ones: no member owned a cluster until the view was deleted."""
    view = msgspec.structs.replace(VIEW, **changes)
    group = decode_list(listed(stored(lease_objects.encode_view(view, "", NAMES, WALL), "uid-v/9")), NAMES)
    assert (group.view, group.view_version) == (None, "uid-v/9")
    assert reason in group.problems[0]


@pytest.mark.parametrize("digits", [300, 5_000])
def test_view_whose_number_has_many_digits_counts_as_deleted(digits: int) -> None:
    body: Any = stored(lease_objects.encode_view(VIEW, "", NAMES, WALL), "uid-v/9")
    annotations = body["metadata"]["annotations"]
    view = annotations["discovery.miloapis.com/view"].replace('"number":3', f'"number":{"9" * digits}')
    annotations["discovery.miloapis.com/view"] = view
    group = decode_list(listed(body), NAMES)
    assert (group.view, group.view_version, len(group.problems[0]) < 500) == (None, "uid-v/9", True)


def test_lease_of_another_format_is_reported_and_its_writes_count_as_renewals() -> None:
    first, second = (member_lease(format="2") for _ in range(2))
    second["metadata"] |= {"resourceVersion": "8"}  # type: ignore[operator]
    found, again = (decode_list(listed(lease), NAMES).members["a"] for lease in (first, second))
    assert "its format is '2', but this daemon's is '1': run one version in all members" in found.problem
    assert found.write_id != again.write_id


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (1, "other0"),
        (5, "other0, other1, other2, other3, other4"),
        (7, "other0, other1, other2, other3, other4 and 2 more"),
    ],
)
def test_lease_that_does_not_belong_to_the_group_is_skipped_and_reported(count: int, named: str) -> None:
    group = decode_list(listed(*(member_lease(f"other{number}") for number in range(count)), member_lease()), NAMES)
    assert group.members == {"a": LEASE}
    assert group.problems == (
        f"{count} Leases in namespace operators have the label of shard group dns without belonging to it, and are "
        f"skipped: {named}; remove their label discovery.miloapis.com/shard-group",
    )


def test_leases_of_all_pages_of_a_list_form_the_group() -> None:
    leases = LeaseList(NAMES)
    view = stored(lease_objects.encode_view(VIEW, "", NAMES, WALL), "uid-v/9")
    page = {"items": [member_lease(), member_lease("other")], "metadata": {"continue": "next"}}
    assert leases.add(json.dumps(page).encode()) == "next"
    assert leases.add(listed(view, member_lease("another"))) == ""
    assert (leases.group.members, leases.group.view) == ({"a": LEASE}, VIEW)
    assert "other, another" in leases.group.problems[0]


@pytest.mark.parametrize("weight", ["null", "-1", "1e999"])
def test_malformed_view_counts_as_deleted(weight: str) -> None:
    body: Any = stored(lease_objects.encode_view(VIEW, "", NAMES, WALL), "uid-v/9")
    annotations = body["metadata"]["annotations"]
    annotations["discovery.miloapis.com/view"] = annotations["discovery.miloapis.com/view"].replace("2.5", weight)
    group = decode_list(listed(body), NAMES)
    assert (group.view, group.view_version) == (None, "uid-v/9")
    assert "milo-discovery-dns-view of shard group dns is malformed" in group.problems[0]


@pytest.mark.parametrize("field", ["members", "previous"])
def test_view_with_more_members_than_a_group_can_have_counts_as_deleted(field: str) -> None:
    for number, is_malformed in ((MAX_MEMBERS, False), (MAX_MEMBERS + 1, True)):
        forged = {f"m{member}": ViewMember("t") for member in range(number)}
        view = msgspec.structs.replace(VIEW, **{field: forged})
        group = decode_list(listed(stored(lease_objects.encode_view(view, "", NAMES, WALL), "u/9")), NAMES)
        assert (group.view is None) is is_malformed
        assert ("it has 201 members, more than 200" in "".join(group.problems)) is is_malformed


def test_deeply_nested_view_counts_as_deleted() -> None:
    body: Any = stored(lease_objects.encode_view(VIEW, "", NAMES, WALL), "uid-v/9")
    view = body["metadata"]["annotations"]["discovery.miloapis.com/view"]
    nested = f"{'[' * 100_000}{']' * 100_000}"
    body["metadata"]["annotations"]["discovery.miloapis.com/view"] = f'{{"x":{nested},{view[1:]}'
    group = decode_list(listed(body), NAMES)
    assert (group.view, group.view_version) == (None, "uid-v/9")


def test_lease_names_and_label_selector_contain_the_group() -> None:
    assert NAMES.path(NAMES.view) == "/apis/coordination.k8s.io/v1/namespaces/operators/leases/milo-discovery-dns-view"
    assert NAMES.selector == "discovery.miloapis.com/shard-group=dns"


def unlabeled(lease: Any, *labels: str) -> Any:
    """Return the Lease without these labels."""
    for label in labels:
        del lease["metadata"]["labels"][label]
    return lease


MANAGED_BY = "app.kubernetes.io/managed-by"
OTHER = {"metadata": {"name": "milo-discovery-dns-a", "uid": "uid-x", "resourceVersion": "7"}}
STORED_VIEW = stored(lease_objects.encode_view(VIEW, "", NAMES, WALL), "uid-v/9")


@pytest.mark.parametrize(
    ("leases", "group", "is_replaceable"),
    [
        ([member_lease()], "dns", False),
        ([unlabeled(member_lease(), GROUP_LABEL)], "", True),
        ([unlabeled(member_lease(), GROUP_LABEL, MANAGED_BY)], "", True),
        ([unlabeled(member_lease(format=None), GROUP_LABEL)], "", True),
        ([unlabeled(member_lease(format=None), GROUP_LABEL, MANAGED_BY)], "", False),
        ([unlabeled(member_lease(member="b"), GROUP_LABEL)], "", False),
        ([unlabeled(member_lease(member=None), GROUP_LABEL)], "", False),
        ([unlabeled(STORED_VIEW, GROUP_LABEL)], "", True),
        ([OTHER], "", False),
    ],
)
def test_lease_is_replaceable_if_only_its_label_was_removed(
    leases: list[object], group: str, is_replaceable: bool
) -> None:
    found = lease_objects.decode_unlisted(listed(*leases), NAMES)
    assert found is not None
    assert (found.group, found.is_replaceable) == (group, is_replaceable)


def test_no_lease_is_found_in_an_empty_list() -> None:
    assert lease_objects.decode_unlisted(listed(), NAMES) is None


def test_pending_clusters_of_all_leases_together_are_limited() -> None:
    """Each Lease is valid alone, so none is malformed: a member would lose its clusters for what others wrote."""
    pending = frozenset(f"{cluster:x}" for cluster in range(16_000))
    many = [msgspec.structs.replace(LEASE, member=f"m{number}", pending=pending) for number in range(13)]
    bodies = [stored(lease_objects.encode_member(lease, NAMES, WALL), lease.version) for lease in (*many, LEASE)]
    with pytest.raises(LeaseFormatError, match=f"more than {PENDING_NAMES} pending clusters"):
        decode_list(listed(*bodies), NAMES)
    members = decode_list(listed(*bodies[1:]), NAMES).members
    assert not any(lease.problem for lease in members.values())


def test_number_of_leases_of_a_group_is_limited() -> None:
    many = [member_lease(f"milo-discovery-dns-{number}", format=None) for number in range(MAX_LEASES + 1)]
    assert len(decode_list(listed(*many[1:]), NAMES).members) == MAX_LEASES
    with pytest.raises(LeaseFormatError, match=f"Leases of shard group dns are more than {MAX_LEASES}: delete those"):
        decode_list(listed(*many), NAMES)


def test_length_of_all_pending_clusters_together_is_limited() -> None:
    pending = {"pending": json.dumps(["x" * PENDING_SIZE])}
    many = [member_lease(f"milo-discovery-dns-{n}", member=str(n), **pending) for n in range(MAX_MEMBERS + 1)]
    assert not list(decode_list(listed(*many[1:]), NAMES).all_problems)
    with pytest.raises(LeaseFormatError, match="have pending clusters whose names have more than 13107200 characters"):
        decode_list(listed(*many), NAMES)


def test_pending_clusters_of_deleted_leases_are_kept_for_as_many_members_as_a_group_has() -> None:
    group = ObservedGroup()
    for number in range(3):
        names = (f"{number}-{member}" for member in range(MAX_MEMBERS))
        leases = {name: msgspec.structs.replace(LEASE, member=name) for name in names}
        group = group.read(GroupState(members=leases), "own", started_at=number, now=number, timing=TIMING)
    kept = [name for name, _ in group.pending_elsewhere("own", 3, TIMING)]
    assert len(kept) == 2 * MAX_MEMBERS
