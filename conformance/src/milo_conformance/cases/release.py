"""Cases for draining: a disengagement waits until the subscriber has released the cluster."""

from __future__ import annotations

import asyncio
from functools import partial

import grpc

from milo_conformance.daemon import Abort, disengaged, draining, engaged, updated
from milo_conformance.failure import CaseFailed
from milo_conformance.run import SUBSCRIBER, Profile, Run, case
from milo_discovery.v1 import discovery_pb2 as pb

release = partial(case, Profile.RELEASE)
CONFIRMS = {"CONFORMANCE_SUBSCRIBER": SUBSCRIBER}


async def released(run: Run, name: str, incarnation: str, *, after: int = 0) -> None:
    """Release a cluster, and check the call."""
    await run.command(f"release {name}")
    request = (await run.daemon.wait_for_call("ReleaseCluster", after=after)).request
    if (request.cluster, request.incarnation, request.subscriber) != (name, incarnation, SUBSCRIBER):
        raise CaseFailed(
            f"subscriber {request.subscriber!r} released {request.cluster!r}, incarnation {request.incarnation!r}; "
            f"expected {SUBSCRIBER!r} to release {name!r}, incarnation {incarnation!r}"
        )


@release(
    "A cluster that drains is released only after its work has ended",
    why="Until then its credentials work, and no other member of the shard group engages it.",
    demands="end the work on it, or do not begin any, and call ReleaseCluster",
)
async def drain(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.synced("a")
    await stream.send(updated("a", draining=draining("MOVED")))
    await run.reported_only(stream, "UPDATED a draining=MOVED")
    await asyncio.sleep(0.5)  # long enough for a premature release to arrive
    if run.daemon.calls:
        raise CaseFailed(f"{run.daemon.calls[0].method} was called before the work in the cluster had ended")
    await released(run, "a", "a-1")
    await stream.send(disengaged("a", "MOVED", draining=draining("MOVED")))
    await run.reported_only(stream, "DISENGAGED a draining=MOVED reason=MOVED")
    if len(run.daemon.calls) > 1:
        raise CaseFailed(f"{run.daemon.calls[1].method} was called after the cluster had been released")


@release(
    "A new subscriber reports a draining cluster as ENGAGED with draining set",
    why="A subscriber that starts during a drain must not start work. The daemon waits for it to release the cluster.",
    demands="or as ENGAGED with `draining` set to a subscriber that does not know it",
)
async def engaged_as_draining(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a", draining=draining()))
    await run.reported("ENGAGED a draining=NOT_READY")
    await released(run, "a", "a-1")
    await run.nothing_else(stream)


@release(
    "A release contains the current incarnation",
    why="A restarted daemon has engaged the cluster again, and refuses to release the previous incarnation.",
    demands="The incarnation on which the work has ended.",
)
async def release_after_restart(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.resumed(await run.synced("a"))
    await stream.snapshot(engaged("a", incarnation="a-2", draining=draining()))
    await run.reported("UPDATED a draining=NOT_READY")
    await released(run, "a", "a-2")
    await run.nothing_else(stream)


@release(
    "A cluster that still drains after a reconnect can be released again",
    why="The release may have been lost with the connection, so the daemon sends the cluster again.",
    demands="The clusters that are draining are sent again on each stream that resumes.",
)
async def drain_after_reconnect(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.synced("a")
    end = draining()
    await stream.send(updated("a", draining=end))
    await run.reported("UPDATED a draining=NOT_READY")
    await released(run, "a", "a-1")
    stream = await run.resumed(stream)
    await stream.send(updated("a", draining=end))
    await run.reported("UPDATED a draining=NOT_READY")
    await released(run, "a", "a-1", after=1)
    await run.nothing_else(stream)


@release(
    "A cluster that no longer drains after a restart is disengaged and engaged again",
    why="A drain is not canceled. The work in the cluster has ended, or is about to end, and has to start again.",
    demands="A drain that has begun is not\n  // canceled",
)
async def drained_while_away(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.synced("a")
    await stream.send(updated("a", draining=draining()))
    await run.reported("UPDATED a draining=NOT_READY")
    stream = await run.resumed(stream)
    await stream.snapshot(engaged("a", incarnation="a-2"))
    await run.reported_only(stream, "DISENGAGED a draining=NOT_READY reason=NOT_READY", "ENGAGED a")


@release(
    "A refused release does not disengage the cluster",
    why="The drain's deadline has passed, or the cluster was engaged again: the stream reports which.",
    demands="FAILED_PRECONDITION with the reason\n  // OTHER_INCARNATION for any incarnation but the last, "
    "NOT_DRAINING for a cluster that is engaged and not about to end",
)
async def refused_release(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.synced("a")

    async def refuse(request: pb.ReleaseClusterRequest) -> pb.ReleaseClusterResponse:
        raise Abort(grpc.StatusCode.FAILED_PRECONDITION, "not draining")

    run.daemon.answers["ReleaseCluster"] = refuse
    await run.answer("release a", "FAILED a code=FAILED_PRECONDITION")
    await run.nothing_else(stream)


@release(
    "A subscriber that stops ends its subscription",
    why="Otherwise the daemon expects it to return, and clusters that drain wait for it.",
    demands="EndSubscription says that a subscriber has ended all of its work and will not return",
)
async def stop(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.synced("a")
    await run.command("stop")
    request = (await run.daemon.wait_for_call("EndSubscription")).request
    if request.subscriber != SUBSCRIBER:
        raise CaseFailed(f"the subscription of {request.subscriber!r} was ended, not that of {SUBSCRIBER!r}")
    await run.ended()
    stream.finish()


@release(
    "A reconnect does not end the subscription",
    why="Otherwise the daemon would no longer wait for a subscriber that is still working.",
    demands="Without it, the daemon expects a subscriber that disconnected to return",
)
async def subscription_across_reconnect(run: Run) -> None:
    await run.start(CONFIRMS)
    stream = await run.resumed(await run.synced("a"))
    await stream.send()
    await run.nothing_else(stream)
    if any(call.method == "EndSubscription" for call in run.daemon.calls):
        raise CaseFailed("the subscription was ended by a reconnect")
