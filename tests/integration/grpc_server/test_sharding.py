"""Responses of a daemon that is a member of a shard group."""

import grpc
import msgspec
import pytest

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.sharding.singletons import VALID_S
from milo_discoveryd.sharding.status import GroupStatus, MemberStatus
from tests.integration.grpc_server.conftest import Harness, ready

STATUS = GroupStatus(
    group="dns",
    member="a",
    view=3,
    is_settled=True,
    members=tuple(
        MemberStatus(name=name, weight=1.0, is_in_view=True, is_alive=True, is_leaving=False, acknowledged=3)
        for name in "ab"
    ),
    problem="late",
)


class Shard(msgspec.Struct):
    valid: float | None = 12.5

    def valid_s(self) -> float | None:
        return self.valid

    def owns(self, key: str) -> bool:
        return key == "singleton/cleanup"

    def status(self) -> GroupStatus:
        return STATUS


async def test_renew_ownership_without_shard_group_has_no_time_limit(harness: Harness) -> None:
    async with harness.client() as stub:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    assert answer == pb.RenewOwnershipResponse()
    assert not info.HasField("sharding")


async def test_renew_ownership_of_a_shard_member_has_a_time_limit(harness: Harness) -> None:
    harness.service.shard = shard = Shard()
    async with harness.client() as stub:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        assert (answer.sharded, answer.valid_for.ToTimedelta().total_seconds()) == (True, 12.5)
        shard.valid = None
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        assert (answer.sharded, answer.HasField("valid_for")) == (True, False)


async def test_server_info_describes_the_shard_group(harness: Harness) -> None:
    harness.service.shard = shard = Shard()
    harness.listed(*(ready(f"project-{number}") for number in range(20)))
    async with harness.client() as stub:
        found = (await stub.GetServerInfo(pb.GetServerInfoRequest())).sharding
        shard.valid = None
        lost = (await stub.GetServerInfo(pb.GetServerInfoRequest())).sharding
    assert (found.group, found.member, found.view, found.settled, found.problem) == ("dns", "a", 3, True, "late")
    assert [member.name for member in found.members] == ["a", "b"]
    assert all(member.clusters for member in found.members)
    assert sum(member.clusters for member in found.members) == 20
    assert found.HasField("valid_for")
    assert not lost.HasField("valid_for")


async def test_get_cluster_names_the_shard_member_that_owns_the_cluster(harness: Harness) -> None:
    harness.service.shard = Shard()
    harness.listed(ready("alpha"))
    async with harness.client() as stub:
        found = await stub.GetCluster(pb.GetClusterRequest(name="alpha"))
    assert found.engagement.message.endswith("member a of the shard group, this daemon, owns it (view 3)")


async def test_stream_of_a_shard_member_is_marked_sharded(harness: Harness) -> None:
    harness.service.shard = Shard()
    harness.listed(ready("alpha"))
    async with harness.subscriber() as subscriber:
        batch = await subscriber.batch()
    assert batch.sharded


async def test_stream_without_shard_group_is_not_marked_sharded(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber() as subscriber:
        assert not (await subscriber.batch()).sharded


def claims(subscriber: str, state: str = "WAITING", name: str = "cleanup") -> pb.ClaimSingletonsRequest:
    wanted = pb.SingletonClaim(name=name, state=pb.SingletonClaim.State.Value(f"STATE_{state}"))
    return pb.ClaimSingletonsRequest(subscriber=subscriber, claims=[wanted])


async def test_daemon_without_shard_group_grants_singleton_work_to_one_subscriber(harness: Harness) -> None:
    async with harness.client() as stub:
        first = await stub.ClaimSingletons(claims("a", "WORKING"))
        second = await stub.ClaimSingletons(claims("b"))
        await stub.EndSubscription(pb.EndSubscriptionRequest(subscriber="a"))
        third = await stub.ClaimSingletons(claims("b", "WORKING"))
    assert (list(first.granted), first.valid_for.ToTimedelta().total_seconds()) == (["cleanup"], VALID_S)
    assert (list(second.granted), second.HasField("valid_for")) == ([], False)
    assert list(third.granted) == ["cleanup"]


async def test_shard_member_grants_the_singleton_work_that_it_owns(harness: Harness) -> None:
    harness.service.shard = shard = Shard(valid=4.0)
    async with harness.client() as stub:
        owned = await stub.ClaimSingletons(claims("a", "WORKING"))
        other = await stub.ClaimSingletons(claims("a", "WORKING", "report"))
        shard.valid = None
        lost = await stub.ClaimSingletons(claims("a", "WORKING"))
    assert (list(owned.granted), owned.valid_for.ToTimedelta().total_seconds()) == (["cleanup"], 4.0)
    assert list(other.granted) == []
    assert list(lost.granted) == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (claims(""), "subscriber"),
        (claims("a", name="no/name"), "claims.name"),
        (pb.ClaimSingletonsRequest(subscriber="a", claims=[pb.SingletonClaim(name="x", state=9)]), "claims.state"),
        (pb.ClaimSingletonsRequest(subscriber="a", claims=101 * [pb.SingletonClaim(name="x")]), "claims"),
    ],
)
async def test_claim_singletons_rejects_invalid_request(
    harness: Harness, request_: pb.ClaimSingletonsRequest, field: str
) -> None:
    async with harness.client() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ClaimSingletons(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith(f"{field}: ")
