"""An unreachable cluster is disengaged if configured, and engaged again once it is reachable."""

from milo_discovery import EngagementReason
from milo_discovery._gen import discovery_pb2 as pb
from tests.end_to_end.process.conftest import Place
from tests.end_to_end.process.streams import Stream


async def told(stream: Stream, kind: "pb.ClusterEvent.Type.ValueType") -> pb.ClusterEvent:
    """The next of that kind; what probes find otherwise is passed over."""
    while True:
        for event in (await stream.batch()).events:
            if event.type == kind:
                return event


async def test_unreachable_cluster_is_disengaged_and_engaged_again(place: Place) -> None:
    for name in ("alpha", "beta", "gamma"):
        place.sandbox.projects.create(name, ready=True)
    probing = {"interval": "1s", "unreachable_after": "0s", "disengage_unreachable_after": "1s"}
    async with place.daemon(connectivity=probing) as daemon, place.client() as client:
        await daemon.start()
        async with place.stream() as stream:
            await stream.until_synced()
            place.sandbox.faults.unreachable("beta")

            gone = await told(stream, pb.ClusterEvent.TYPE_DISENGAGED)

            assert gone.cluster.name == "beta"
            assert gone.reason == pb.DISENGAGE_REASON_UNREACHABLE
            assert gone.message == "not reached for too long; 5xx: the API server answered 503"
            report = await client.get("beta")
            assert not report.engagement.engaged
            assert report.engagement.reason is EngagementReason.UNREACHABLE
            place.sandbox.projects.annotate("beta", {"example.com/touched": "yes"})
            place.sandbox.faults.clear()

            back = await told(stream, pb.ClusterEvent.TYPE_ENGAGED)

            assert back.cluster.name == "beta"
            assert back.cluster.incarnation != gone.cluster.incarnation
            assert back.cluster.connectivity.state == pb.Connectivity.STATE_REACHABLE
