"""Cases for shard groups: work in clusters only while the daemon owns them."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import grpc

from milo_conformance.daemon import MALFORMED, Abort, ScriptedStream, engaged
from milo_conformance.failure import CaseFailed
from milo_conformance.ownership import LATE_S, Renewal, once, owned, refused, response, unanswered
from milo_conformance.run import SUBSCRIBER, Profile, Run, case
from milo_discovery.v1 import discovery_pb2 as pb

sharded = partial(case, Profile.SHARDED)


async def sharded_stream(run: Run, renew: Renewal, *, is_silent: bool = False) -> ScriptedStream:
    """Return a stream of a daemon that owns its clusters, once the subscriber has reported the snapshot."""
    run.daemon.answers["RenewOwnership"] = renew
    stream = await run.stream(resuming="")
    stream.sharded = True
    if is_silent:
        stream.stop_heartbeats()
    await stream.snapshot(engaged("a"), engaged("b"))
    await run.reported("ENGAGED a", "ENGAGED b")
    return stream


async def lost(run: Run, *, by: float) -> float:
    """Wait until the subscriber has reported all clusters as disengaged; return the time."""
    lines = await run.reported("DISENGAGED a reason=OWNERSHIP_LOST", "DISENGAGED b reason=OWNERSHIP_LOST")
    at = max(line.at for line in lines)
    if at > by + LATE_S:
        raise CaseFailed(f"the clusters were disengaged {at - by:.1f} s late; at most {LATE_S} s are allowed")
    return at


@sharded(
    "Ownership is renewed early enough for a slow response",
    why="If a renewal is sent just before the ownership expires, the response of a busy daemon arrives too late.",
    demands="Call it every few seconds on streams\n  // that are `sharded`",
)
async def renewals(run: Run) -> None:
    async def slow(_: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        await asyncio.sleep(1.5)
        return response(12)  # seconds; long enough for some renewals to fail, as on a machine that stalls

    stream = await sharded_stream(run, slow)
    await run.daemon.wait_for_call("RenewOwnership", after=3, limit_s=60)
    await run.nothing_else(stream)


@sharded(
    "All clusters are disengaged when the ownership expires while the daemon is unresponsive",
    why="Another daemon may engage them then, and two operators must not work in one cluster.",
    demands="stop working in all clusters when the `valid_for` of the last response has passed",
)
async def ownership_runs_out(run: Run) -> None:
    stream = await sharded_stream(run, once(response(2), unanswered), is_silent=True)
    first = await run.daemon.wait_for_call("RenewOwnership")
    await lost(run, by=first.at + 2)
    stream.finish()


@sharded(
    "Ownership granted by a response is timed from when the request was sent",
    why="A response may be delayed. If ownership were timed from its arrival, the work could end after another "
    "operator has started.",
    demands="counted\n  // from when you sent its request",
)
async def counted_from_the_request(run: Run) -> None:
    async def late(_: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        await asyncio.sleep(2)
        return response(4)

    answers = iter([late])

    async def renew(request: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        return await next(answers, refused)(request)

    stream = await sharded_stream(run, renew)
    first = await run.daemon.wait_for_call("RenewOwnership")
    await lost(run, by=first.at + 4)
    stream.finish()


@sharded(
    "The stream starts over when the daemon owns its clusters again",
    why="Another daemon may have owned them in between, so the last revision is not valid any more.",
    demands="Work in them only while RenewOwnership says that they are this daemon's",
)
async def starts_over_after_loss(run: Run) -> None:
    stream = await sharded_stream(run, once(response(1.5), refused))
    await run.reported("DISENGAGED a reason=OWNERSHIP_LOST", "DISENGAGED b reason=OWNERSHIP_LOST")
    run.daemon.answers["RenewOwnership"] = owned(5)
    again = await run.stream(resuming="")
    again.sharded = True
    await again.snapshot(engaged("a"), engaged("b"))
    await run.reported_only(again, "ENGAGED a", "ENGAGED b")
    stream.finish()


@sharded(
    "Nothing is engaged before the daemon owns its clusters",
    why="A daemon that has just lost its Lease still sends its former clusters, which another daemon may own by now.",
    demands="Unset while the daemon owns nothing",
)
async def not_owned_yet(run: Run) -> None:
    run.daemon.answers["RenewOwnership"] = owned(None)
    stream = await run.stream(resuming="")
    stream.sharded = True
    await stream.snapshot(engaged("early"))
    await run.daemon.wait_for_call("RenewOwnership", after=1)
    run.daemon.answers["RenewOwnership"] = owned(5)
    stream = await run.stream(resuming="")
    stream.sharded = True
    await stream.snapshot(engaged("a"))
    await run.reported_only(stream, "ENGAGED a")


@sharded(
    "Clusters are disengaged if the daemon joins a shard group and owns none of them",
    why="The daemon was restarted with a different configuration. Another daemon may own the known clusters by now.",
    demands="Work in them only while RenewOwnership says that they are this daemon's",
)
async def becomes_sharded(run: Run) -> None:
    run.daemon.answers["RenewOwnership"] = owned(None)
    stream = await run.resumed(await run.synced("a"))
    stream.sharded = True
    await stream.send()
    await run.reported("DISENGAGED a reason=OWNERSHIP_LOST")
    run.daemon.answers["RenewOwnership"] = owned(5)
    stream = await run.stream()
    stream.sharded = True
    await stream.snapshot(engaged("a"))
    await run.reported_only(stream, "ENGAGED a")


@sharded(
    "A response without `valid_for` does not shorten the ownership",
    why="The daemon cannot renew its ownership at present, and keeps it until the `valid_for` of an earlier response "
    "has passed. Ending all work before then would be an outage.",
    demands="an earlier\n  // response stands until its `valid_for` has passed",
)
async def response_without_time(run: Run) -> None:
    stream = await sharded_stream(run, once(response(3), owned(None)))
    first = await run.daemon.wait_for_call("RenewOwnership")
    at = await lost(run, by=first.at + 3)
    if at < first.at + 2.5:
        raise CaseFailed(f"the clusters were disengaged {first.at + 3 - at:.1f} s before the ownership expired")
    stream.finish()


@sharded(
    "A failed renewal does not shorten the ownership",
    why="A restart of the daemon takes seconds, and does not end its ownership.",
    demands="when the `valid_for` of the last response has passed",
)
async def failed_renewal(run: Run) -> None:
    failures = 0

    async def fail_twice(_: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise Abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return response(30)

    stream = await sharded_stream(run, once(response(30), fail_twice))
    for number in (1, 2, 3):
        await run.daemon.wait_for_call("RenewOwnership", after=number)
    await run.nothing_else(stream)


@sharded(
    "A response that cannot be decoded counts as a failed renewal",
    why="A client whose renewals end with it never learns that the ownership has expired, and works on in the clusters "
    "that another daemon engages.",
    demands="when the `valid_for` of the last response has passed",
)
async def malformed_renewal(run: Run) -> None:
    async def malformed(_: pb.RenewOwnershipRequest) -> bytes:
        return MALFORMED

    stream = await sharded_stream(run, once(response(3), malformed))
    first = await run.daemon.wait_for_call("RenewOwnership")
    await lost(run, by=first.at + 3)
    run.daemon.answers["RenewOwnership"] = owned(60)
    again = await run.stream(resuming="")
    again.sharded = True
    await again.snapshot(engaged("a"))
    await run.reported_only(again, "ENGAGED a")
    stream.finish()


@sharded(
    "Ownership is renewed while the stream is broken",
    why="The daemon owns its clusters, whether or not it serves the stream at present.",
    demands="Call it every few seconds",
)
async def renewals_without_stream(run: Run) -> None:
    stream = await sharded_stream(run, owned(60))  # seconds; long enough for a busy machine not to lose it
    await run.daemon.wait_for_call("RenewOwnership")
    stream.end(grpc.StatusCode.UNAVAILABLE, "busy", retry_after_s=12)
    before = len(run.daemon.calls)
    again = await run.stream(resuming=stream.revision)
    if len(run.daemon.calls) == before:
        raise CaseFailed("the ownership was not renewed in the 12 s for which the stream was broken")
    again.sharded = True
    await again.send()
    await run.nothing_else(again)


@sharded(
    "Ownership is renewed in the name of a subscriber that releases clusters, while it has some",
    why="Without a stream, it is not told that a cluster moves, so the daemon does not renew its ownership. A program "
    "that gives no name works on in the cluster, and one that gives it without clusters waits for ever.",
    demands="Set while you hold clusters of it",
)
async def renewals_name_the_subscriber(run: Run) -> None:
    is_open = True

    async def renew(request: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        return response(3 if is_open or request.subscriber != SUBSCRIBER else None)

    await run.start({"CONFORMANCE_SUBSCRIBER": SUBSCRIBER})
    stream = await sharded_stream(run, renew)
    is_open, since = False, time.monotonic()
    stream.end(grpc.StatusCode.UNAVAILABLE, "too many streams", retry_after_s=8)
    await lost(run, by=since + 3)
    again = await run.stream(resuming="")
    again.sharded = is_open = True
    await again.snapshot(engaged("a"), engaged("b"))
    await run.reported_only(again, "ENGAGED a", "ENGAGED b")


@sharded(
    "The ownership of a daemon that leaves its shard group does not expire",
    why="The daemon was reconfigured. Its responses no longer contain `valid_for`, and the work continues.",
    demands="on a daemon that shares clusters with no other",
)
async def no_longer_sharded(run: Run) -> None:
    stream = await sharded_stream(run, owned(2))
    run.daemon.answers["RenewOwnership"] = lambda _: asyncio.sleep(0, response(None, is_sharded=False))
    stream.sharded = False
    await asyncio.sleep(3.5)
    await run.nothing_else(stream)


@sharded(
    "A program that was suspended until the ownership expired disengages all clusters when it resumes",
    why="A laptop was closed, or a machine was migrated. When the program resumes, another operator may work in its "
    "clusters, even if the next renewal succeeds.",
    demands="on a clock that also advances while the machine is suspended",
)
async def suspended(run: Run) -> None:
    stream = await sharded_stream(run, owned(2))
    run.subscriber.pause()
    stream.stop_heartbeats()
    await asyncio.sleep(3)
    since = time.monotonic()
    run.subscriber.resume()
    await lost(run, by=since)
    again = await run.stream()
    again.sharded = True
    await again.snapshot(engaged("a"), engaged("b"))
    await run.reported_only(again, "ENGAGED a", "ENGAGED b")
