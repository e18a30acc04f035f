"""An unreachable cluster is disengaged if configured, and engaged again once it is reachable."""

import asyncio

from milo_discovery import ClusterNotFound, DisengageReason, EngagementReason
from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.streams import Stream
from tests.support.eventually import LIMIT_S


async def next_event(stream: Stream, kind: "pb.ClusterEvent.Type.ValueType") -> pb.ClusterEvent:
    """Return the next event of a type; skip others, such as results of probes."""
    while True:
        for event in (await stream.batch()).events:
            if event.type == kind:
                return event


async def test_unreachable_cluster_is_disengaged_and_engaged_again(workspace: Workspace) -> None:
    for name in ("alpha", "beta", "gamma"):
        workspace.sandbox.projects.create(name, ready=True)
    probing = {"interval": "1s", "unreachable_after": "0s", "disengage_unreachable_after": "1s"}
    async with workspace.daemon(connectivity=probing) as daemon, workspace.client() as client:
        await daemon.start()
        async with workspace.stream() as stream:
            await stream.until_synced()
            workspace.sandbox.faults.unreachable("beta")

            gone = await next_event(stream, pb.ClusterEvent.TYPE_DISENGAGED)

            assert gone.cluster.name == "beta"
            assert gone.reason == pb.DISENGAGE_REASON_UNREACHABLE
            assert gone.message == "unreachable for too long; 5xx: the API server answered 503"
            report = await client.get("beta")
            assert not report.engagement.engaged
            assert report.engagement.reason is EngagementReason.UNREACHABLE
            workspace.sandbox.projects.annotate("beta", {"example.com/touched": "yes"})
            workspace.sandbox.faults.clear()

            back = await next_event(stream, pb.ClusterEvent.TYPE_ENGAGED)

            assert back.cluster.name == "beta"
            assert back.cluster.incarnation != gone.cluster.incarnation
            assert back.cluster.connectivity.state == pb.Connectivity.STATE_REACHABLE


async def test_unreachable_cluster_is_engaged_after_restart_until_its_timeout_expires_again(
    workspace: Workspace,
) -> None:
    """Results of probes are not in the state file."""
    for name in ("alpha", "beta", "gamma"):
        workspace.sandbox.projects.create(name, ready=True)
    workspace.sandbox.faults.unreachable("beta")
    state = workspace.directory / "state"
    state.mkdir(mode=0o700)
    probing = {"interval": "1s", "unreachable_after": "0s", "disengage_unreachable_after": "1s"}
    async with (
        workspace.daemon(connectivity=probing, state_directory=str(state)) as daemon,
        workspace.client() as client,
    ):
        for _ in range(2):
            await daemon.start()

            async def is_given_up() -> bool:
                try:
                    past = (await client.get("beta")).transitions
                except ClusterNotFound:
                    return False  # no list is complete yet
                ends = (DisengageReason.UNSPECIFIED, DisengageReason.UNREACHABLE)
                return tuple(transition.reason for transition in past) == ends

            async with asyncio.timeout(LIMIT_S):
                while not await is_given_up():  # noqa: ASYNC110 - polled, since it has no event
                    await asyncio.sleep(0.05)
            assert await daemon.terminate() == 0
