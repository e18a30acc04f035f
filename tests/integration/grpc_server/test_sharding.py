"""What a daemon that shares the clusters with others tells its callers."""

import msgspec

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.sharding.status import GroupStatus, MemberStatus
from tests.integration.grpc_server.conftest import World, ready

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

    def status(self) -> GroupStatus:
        return STATUS


async def test_ownership_of_a_daemon_without_a_group_does_not_end(world: World) -> None:
    async with world.client() as stub:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    assert answer == pb.RenewOwnershipResponse()
    assert not info.HasField("sharding")


async def test_ownership_of_a_member_holds_for_a_while(world: World) -> None:
    world.service.shard = shard = Shard()
    async with world.client() as stub:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        assert (answer.sharded, answer.valid_for.ToTimedelta().total_seconds()) == (True, 12.5)
        shard.valid = None
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        assert (answer.sharded, answer.HasField("valid_for")) == (True, False)


async def test_server_info_describes_the_group(world: World) -> None:
    world.service.shard = shard = Shard()
    world.listed(*(ready(f"project-{number}") for number in range(20)))
    async with world.client() as stub:
        found = (await stub.GetServerInfo(pb.GetServerInfoRequest())).sharding
        shard.valid = None
        lost = (await stub.GetServerInfo(pb.GetServerInfoRequest())).sharding
    assert (found.group, found.member, found.view, found.settled, found.problem) == ("dns", "a", 3, True, "late")
    assert [member.name for member in found.members] == ["a", "b"]
    assert all(member.clusters for member in found.members)
    assert sum(member.clusters for member in found.members) == 20
    assert found.HasField("valid_for")
    assert not lost.HasField("valid_for")


async def test_stream_of_a_member_is_marked(world: World) -> None:
    world.service.shard = Shard()
    world.listed(ready("alpha"))
    async with world.subscriber() as subscriber:
        batch = await subscriber.batch()
    assert batch.sharded


async def test_stream_of_a_daemon_without_a_group_is_not_marked(world: World) -> None:
    world.listed(ready("alpha"))
    async with world.subscriber() as subscriber:
        assert not (await subscriber.batch()).sharded
