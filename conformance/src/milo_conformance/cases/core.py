"""Cases for every client: following the fleet through disconnects, restarts and errors of the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from operator import mul

import grpc

from milo_conformance.daemon import ScriptedStream, cluster, disengaged, engaged, updated
from milo_conformance.failure import CaseFailed
from milo_conformance.run import Feature, Profile, Run, case
from milo_discovery.v1 import discovery_pb2 as pb

HEARTBEAT_S = 2
"""The interval of cases that wait for missed heartbeats. A client can take a second or two for its first stream."""
HEARTBEAT_TIMEOUT_S = 3 * HEARTBEAT_S
SHORT_HEARTBEAT = {"CONFORMANCE_HEARTBEAT_S": str(HEARTBEAT_S)}
LARGE_LIMIT_S = 150.0
"""Time limit for a client that reads megabytes on a busy machine."""
REFUSALS_TO_THE_LONGEST_DELAY = 7
"""Number of refusals after which delays that double from 0.1 s have reached several seconds."""
ROUNDS = 6
"""Number of subscribers whose delays are averaged, since each delay has jitter."""
CURVATURE = (2, -1, -2, -1, 2)
"""Weights of five consecutive delays, whose weighted sum is 0 if the delays grow linearly. A constant time for each
reconnect cancels out."""
SLOPE = (-2, -1, 0, 1, 2)
CURVATURE_OF_DOUBLING = 0.25
"""The ratio of curvature to slope above which delays count as doubling. Doubling gives 0.44, linear growth 0."""
SNAPSHOTS_WITHIN_S = 8.0
MAX_SNAPSHOTS = 12
"""Number of streams within this time if delays double from 0.1 s, and some more."""
GOAWAYS_WITHIN_S = 5.0
MAX_GOAWAYS = 60
"""Number of connections within this time. gRPC in Java opens some eight a second, with a delay between them."""
LATEST_SHORT_DELAY_S = 0.6
"""Upper limit of a delay after the backoff was reset: 0.2 s, and time for a reconnect on a busy machine."""
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

core = partial(case, Profile.CORE)


@core(
    "A snapshot in one batch engages its clusters",
    why="Every operator begins with a snapshot.",
    demands="The first batches are a snapshot of the fleet, every cluster as one\n//     ENGAGED event.",
)
async def first_snapshot(run: Run) -> None:
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a"), engaged("b", suspended=True))
    await run.reported_only(stream, "ENGAGED a", "ENGAGED b suspended")


@core(
    "A snapshot in many batches is reported only when it is complete",
    why="A large fleet does not fit into one batch. An incomplete snapshot may be discarded, and its clusters may be "
    "missing from the next one.",
    demands="`synced` is true from the batch that completes\n  // them.",
)
async def snapshot_in_many_batches(run: Run) -> None:
    stream = await run.stream(resuming="")
    await stream.send(engaged("a"), engaged("b"), reset=True, synced=False)
    await stream.send(disengaged("a"), updated("b", endpoint="https://other"), engaged("c"), synced=False)
    await stream.send(engaged("d"))
    await run.reported_only(stream, "ENGAGED b endpoint=https://other", "ENGAGED c", "ENGAGED d")


@core(
    "An empty fleet is a complete view",
    why="A client that considers a snapshot complete only if it contains a cluster never disengages the clusters of a "
    "fleet that has become empty.",
    demands="An empty fleet is one batch without events, `reset = true`, `synced = true`.",
)
async def empty_fleet(run: Run) -> None:
    stream = await run.resumed(await run.synced("a"))
    await stream.snapshot()
    await run.reported_only(stream, "DISENGAGED a")


@core(
    "Heartbeats before the first snapshot are not reported as an empty fleet",
    why="A daemon that is starting sends only heartbeats on its streams until it has seen a complete list. An operator "
    "that takes these heartbeats to mean an empty fleet stops all of its work.",
    demands="it holds the stream open and sends only heartbeats with\n  // `synced = false`",
)
async def unsynced_heartbeats(run: Run) -> None:
    stream = await run.resumed(await run.synced("a"))
    await stream.send(synced=False, revision="0", previous="")
    await stream.heartbeat(synced=False)
    await stream.snapshot(engaged("a"))
    await run.nothing_else(stream)


@core(
    "A heartbeat before a snapshot does not change the resume revision",
    why="A client that resumes from the revision of such a heartbeat receives a snapshot instead of the changes.",
    demands="The stream has delivered a complete view, and all that follows are changes to it.",
)
async def revision_before_snapshot(run: Run) -> None:
    stream = await run.resumed(await run.synced("a"))
    old = stream.revision
    await stream.send(synced=False, revision="0", previous="")
    stream.end(UNAVAILABLE)
    stream = await run.stream(resuming=old)
    await stream.send(engaged("b"))
    await run.reported_only(stream, "ENGAGED b")


@core(
    "Changes are reported as they happen",
    why="A client that reads only the snapshot misses all later changes.",
    demands="Go on reading: each further batch holds what changed since.",
)
async def changes(run: Run) -> None:
    stream = await run.synced("a", "b")
    await stream.send(engaged("c"), updated("a", labels={"env": "prod"}))
    await run.reported("ENGAGED c", "UPDATED a")
    await stream.send(disengaged("b", "NOT_READY"))
    await stream.send(disengaged("a", "DELETED"), engaged("b"))
    await run.reported_only(stream, "DISENGAGED b reason=NOT_READY", "ENGAGED b", "DISENGAGED a reason=DELETED")


@core(
    "A project that is re-created under its old name is reported as a new cluster",
    why="An operator that takes both projects for the same cluster uses the old project's state for the new one.",
    demands="DISENGAGED (REPLACED), then ENGAGED, in one batch",
)
async def replaced_in_one_batch(run: Run) -> None:
    stream = await run.synced("a")
    await stream.send(disengaged("a", "REPLACED"), engaged("a", uid="other"))
    await run.reported_only(stream, "DISENGAGED a reason=REPLACED", "ENGAGED a uid=other")


@core(
    "A cluster that ends and is engaged again in one batch is reported as disengaged and engaged",
    why="The engagement that the work belongs to has ended, although the project is the same: an operator that misses "
    "its end goes on with a state and a credential that are not valid any more.",
    demands="ENGAGED first, then any number of UPDATED and KUBECONFIG, then DISENGAGED.",
)
async def engaged_again_in_one_batch(run: Run) -> None:
    stream = await run.synced("a")
    await stream.send(disengaged("a", "NOT_READY"), engaged("a", incarnation="a-2"))
    await run.reported_only(stream, "DISENGAGED a reason=NOT_READY", "ENGAGED a")


@core(
    "A stream resumes from the last revision",
    why="Otherwise the client receives a full snapshot on each reconnect, or misses changes.",
    demands="open it again with the last `revision` you\n//     received. It goes on from there",
)
async def resume(run: Run) -> None:
    stream = await run.synced("a", "b")
    await stream.send(updated("a", labels={"env": "prod"}))
    await stream.send(disengaged("b"))
    await run.reported("UPDATED a", "DISENGAGED b reason=DELETED")
    stream = await run.resumed(stream)
    await stream.send(engaged("b"), engaged("c"))
    await run.reported_only(stream, "ENGAGED b", "ENGAGED c")


@core(
    "The revision of a batch without events is the next resume revision",
    why="Changes outside the filter advance the revision. Resuming from a revision that is too old causes a snapshot.",
    demands="Where the stream stands after this batch. Opaque: hand it back as `resume_revision`",
)
async def revision_of_empty_batch(run: Run) -> None:
    stream = await run.synced("a")
    await stream.send()
    await run.nothing_else(stream)
    await stream.send()
    await asyncio.sleep(0.2)  # time for the client to read the batch: it could otherwise resume from an older revision
    stream.end(UNAVAILABLE)
    await run.stream(resuming=stream.revision)


@core(
    "A revision of a megabyte is not sent back",
    why="A daemon refuses a request as long as that. A client that repeats it receives nothing any more, also from the "
    "daemon that follows one with a bug.",
    demands="instead of a longer one, which a daemon may refuse with every request, hand back an empty one",
)
async def overlong_revision(run: Run) -> None:
    stream = await run.synced("a")
    await stream.send(engaged("b"), revision="r" * (1 << 20))
    await run.reported("ENGAGED b")
    stream.end(UNAVAILABLE)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a"), engaged("b"))
    await run.nothing_else(stream)


@core(
    "Every reconnect sends the same filter",
    why="If a reconnect omits the filter, a subscriber that selected some of the clusters receives all of them.",
    demands="The `revision` of the last batch received from an earlier stream with the same filter.",
)
async def same_filter(run: Run) -> None:
    await run.start({"CONFORMANCE_LABEL_SELECTOR": "env in (prod, staging)"})
    stream = await run.resumed(await run.synced("a"))
    await stream.send()
    await run.nothing_else(stream)


@core(
    "After a refused resume, only the differences between view and snapshot are reported",
    why="A restarted daemon sends a snapshot. A client that engages all clusters again rebuilds its caches for "
    "nothing.",
    demands="clusters known from before that are not named between here and `synced` are disengaged",
)
async def resume_refused(run: Run) -> None:
    stream = await run.resumed(await run.synced("stays", "goes", "changes"))
    await stream.send(engaged("stays"), engaged("comes"), reset=True, synced=False)
    await stream.send(engaged("changes", suspended=True))
    await run.reported_only(stream, "DISENGAGED goes", "ENGAGED comes", "UPDATED changes suspended")


@core(
    "A reset within a stream discards an incomplete snapshot",
    why="When a source has been listed completely, the daemon sends another snapshot on the same stream.",
    demands="This batch starts over: clusters known from before that are not named between here and `synced` are "
    "disengaged",
)
async def reset_within_stream(run: Run) -> None:
    stream = await run.synced("a", "b")
    await stream.send(engaged("b"), engaged("x"), reset=True, synced=False)
    await stream.send(engaged("b"), engaged("c"), reset=True)
    await run.reported_only(stream, "DISENGAGED a", "ENGAGED c")


def cut_at(boundary: int) -> Callable[[Run], Awaitable[None]]:
    async def script(run: Run) -> None:
        stream = await run.resumed(await run.synced("a"))
        old = stream.revision
        await stream.send(engaged("cut-1"), reset=True, synced=False)
        for batch in range(1, boundary):
            await stream.send(engaged(f"cut-{batch + 1}"), synced=False)
        stream.end(UNAVAILABLE)
        stream = await run.stream(resuming=old)
        await stream.send(engaged("a"), reset=True, synced=False)
        await stream.send(engaged("b"), synced=False)
        await stream.send(engaged("c"))
        await run.reported_only(stream, "ENGAGED b", "ENGAGED c")

    return script


for number in (1, 2, 3):
    core(
        f"A snapshot that is interrupted after batch {number} has no effect",
        why="A client that treats a part of a snapshot as complete disengages all other clusters. One that resumes "
        "from a revision within a snapshot never receives the other clusters.",
        demands="A revision that can't be resumed from (another incarnation of the daemon, too old, another filter, a"
        "\n  // snapshot that was cut) is answered by a snapshot with `reset = true`",
        name=f"snapshot-cut-after-batch-{number}",
    )(cut_at(number))


@core(
    "A restart of the daemon disengages no cluster that still exists",
    why="Only the incarnations are new. A client that engages the clusters again rebuilds every cache.",
    demands="The same name and UID are the same cluster whatever its\n  // incarnation",
)
async def restart_with_same_clusters(run: Run) -> None:
    stream = await run.resumed(await run.synced("a", "b"))
    await stream.snapshot(
        *[engaged(name, incarnation=f"{name}-2", source_resource_version="77") for name in ("b", "a")]
    )
    await run.nothing_else(stream)


@core(
    "A cluster that is missing after a restart is disengaged with the reason UNSPECIFIED",
    why="Operators delete data only if the reason is DELETED, and no deletion was confirmed in this case.",
    demands="clusters known from before that are not named between here and `synced` are disengaged",
)
async def restart_with_fewer_clusters(run: Run) -> None:
    stream = await run.resumed(await run.synced("a", "b", "c"))
    await stream.snapshot(engaged("b"))
    await run.reported_only(stream, "DISENGAGED a", "DISENGAGED c")


@core(
    "A cluster that is new after a restart is engaged",
    why="Otherwise no operator works in projects that were created while the daemon was down.",
    demands="begins with `reset = true` and the clusters of the fleet as\n  // ENGAGED events",
)
async def restart_with_more_clusters(run: Run) -> None:
    stream = await run.resumed(await run.synced("a"))
    new = [f"new-{number}" for number in range(5)]
    await stream.snapshot(engaged("a"), *map(engaged, new))
    await run.reported_only(stream, *[f"ENGAGED {name}" for name in new])


@core(
    "A cluster that has a different UID after a restart is reported as a new cluster",
    why="The project was deleted and re-created while the daemon was down. Only the name is the same.",
    demands="A project that was deleted and created again under\n  // its old name is another cluster",
)
async def restart_with_replaced_cluster(run: Run) -> None:
    stream = await run.resumed(await run.synced("a", "b"))
    await stream.snapshot(engaged("a", uid="other"), engaged("b"))
    await run.reported_only(stream, "DISENGAGED a reason=REPLACED", "ENGAGED a uid=other")


@core(
    "A cluster that changed while the daemon was down is updated",
    why="An operator that misses the update keeps the old endpoint, labels or suspension.",
    demands="One that is named with the same UID is UPDATED if any field differs",
)
async def restart_with_changed_cluster(run: Run) -> None:
    stream = await run.resumed(await run.synced("a", "b"))
    await stream.snapshot(engaged("a", endpoint="https://elsewhere"), engaged("b", annotations={"note": "x"}))
    await run.reported_only(stream, "UPDATED a endpoint=https://elsewhere", "UPDATED b")


@core(
    "After a missing batch, the client reconnects and resumes from the batch before it",
    why="Otherwise the changes in the missing batch would never be reported.",
    demands="If it isn't what you last received, a batch is missing.",
)
async def missing_batch(run: Run) -> None:
    stream = await run.synced("a")
    old = stream.revision
    await stream.send(engaged("c"), previous="lost")
    stream = await run.stream(resuming=old)
    await stream.send(engaged("b"), engaged("c"))
    await run.reported_only(stream, "ENGAGED b", "ENGAGED c")


@core(
    "A missing batch within a snapshot closes the stream",
    why="A client that applies a snapshot without one of its batches disengages the clusters of that batch.",
    demands="The `revision` of the batch before this one on this stream",
)
async def missing_batch_in_snapshot(run: Run) -> None:
    stream = await run.resumed(await run.synced("a"))
    old = stream.revision
    await stream.send(engaged("b"), reset=True, synced=False)
    await stream.send(engaged("c"), previous="lost")
    stream = await run.stream(resuming=old)
    await stream.snapshot(engaged("a"), engaged("b"), engaged("c"))
    await run.reported_only(stream, "ENGAGED b", "ENGAGED c")


@core(
    "A resumed stream that does not continue from the requested revision is closed",
    why="The first batch names the revision from which the stream resumes. If this is not the requested one, changes "
    "may be missing.",
    demands="in the first batch of a resumed stream, what it\n  // was resumed from",
)
async def resumed_from_another_revision(run: Run) -> None:
    stream = await run.resumed(await run.synced("a"))
    old = stream.revision
    await stream.send(engaged("c"), previous="another")
    stream = await run.stream(resuming=old)
    await stream.send(engaged("b"))
    await run.reported_only(stream, "ENGAGED b")


@core(
    "A batch that arrives twice is applied once",
    why="A bug in the daemon or in a proxy can repeat a batch, and work would start twice.",
    demands="Nothing is delivered twice on a stream, nor across a\n  // resume;",
)
async def duplicate_batch(run: Run) -> None:
    stream = await run.synced("a")
    before = stream.revision
    await stream.send(updated("a", suspended=True), engaged("b"))
    await run.reported("UPDATED a suspended", "ENGAGED b")
    await stream.send(updated("a", suspended=True), previous=before, revision=stream.revision)
    stream = await run.stream(resuming=stream.revision)
    await stream.send()
    await run.nothing_else(stream)


def contradiction(*events: pb.ClusterEvent, then: tuple[str, ...] = ()) -> Callable[[Run], Awaitable[None]]:
    """Return a script that sends a batch which contradicts the view: the subscriber must apply none of it."""

    async def script(run: Run) -> None:
        stream = await run.synced("a")
        await stream.send(engaged("with-it"), *events)
        wrong = stream.revision
        stream = await run.stream()
        if stream.request.resume_revision == wrong:
            raise CaseFailed(f"the stream resumed from {wrong!r}, the revision of the batch that contradicts the view")
        await stream.snapshot(engaged("a"), engaged("b"))
        await run.reported_only(stream, "ENGAGED b", *then)

    return script


FIRST_ENGAGED = "ENGAGED first, then any number of UPDATED and KUBECONFIG, then DISENGAGED."

for what, event, rule in (
    (
        "ENGAGED of an engaged cluster",
        engaged("a", uid="other"),
        "Never ENGAGED twice without a DISENGAGED in between.",
    ),
    ("UPDATED of an unknown cluster", updated("unknown"), FIRST_ENGAGED),
    ("DISENGAGED of an unknown cluster", disengaged("unknown"), FIRST_ENGAGED),
):
    core(
        f"{what} closes the stream",
        why="The client's view is wrong, and only a snapshot can correct it.",
        demands=rule,
        name="contradiction-" + what.lower().replace(" of an ", "-").replace(" cluster", ""),
    )(contradiction(event))


@core(
    "After a batch that contradicts the view, the client requests a snapshot",
    why="A client that resumes from its last revision keeps a wrong view.",
    demands="open the next stream\n  // with an empty `resume_revision`",
)
async def starts_over_after_contradiction(run: Run) -> None:
    stream = await run.synced("a")
    await stream.send(updated("unknown"))
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a"), engaged("b"))
    await run.reported_only(stream, "ENGAGED b")


@core(
    "A new stream that begins with changes instead of a snapshot is closed",
    why="A client without a snapshot would miss the clusters that do not change.",
    demands="A stream that starts over begins with `reset = true`",
)
async def changes_without_snapshot(run: Run) -> None:
    stream = await run.stream(resuming="")
    await stream.send(engaged("b"), previous="")
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a"))
    await run.reported_only(stream, "ENGAGED a")


@core(
    "Unknown event types from a newer daemon are ignored",
    why="A daemon may be updated before its operators. The other events of the batch must still be applied.",
    demands="Newer daemons add events, reasons and fields: ignore what you do not know.",
)
async def unknown_event_type(run: Run) -> None:
    stream = await run.synced("a")
    unknown = engaged("other")
    unknown.type = 99  # type: ignore[assignment]
    about = pb.ClusterEvent(cluster=cluster("a"))
    about.type = 98  # type: ignore[assignment]
    await stream.send(unknown, about, engaged("b"))
    await run.reported("ENGAGED b")
    await stream.send(updated("a", suspended=True))
    await run.reported_only(stream, "UPDATED a suspended")


@core(
    "Unknown event types from a newer daemon are ignored in a snapshot",
    why="A client must not engage a cluster that appears only in an event of an unknown type.",
    demands="Newer daemons add events, reasons and fields: ignore what you do not know.",
)
async def unknown_event_type_in_snapshot(run: Run) -> None:
    stream = await run.stream(resuming="")
    unknown = engaged("other")
    unknown.type = 99  # type: ignore[assignment]
    await stream.snapshot(engaged("a"), unknown)
    await run.reported_only(stream, "ENGAGED a")


@core(
    "A disengagement with an unknown reason is reported",
    why="The work in the cluster has to stop, whatever the reason.",
    demands="Newer daemons add events, reasons and fields: ignore what you do not know.",
)
async def unknown_reason(run: Run) -> None:
    stream = await run.synced("a")
    await stream.send(disengaged("a", 99))
    found = await run.reported("DISENGAGED a", ignoring=("reason",))
    if (reason := found[0].fields.get("reason")) in {"DELETED", "REPLACED"}:
        raise CaseFailed(f"the unknown reason 99 was reported as {reason}, for which operators may delete data")
    await run.nothing_else(stream)


@core(
    "Unknown fields from a newer daemon are ignored",
    why="A client that rejects unknown fields stops working when its daemon is updated.",
    demands="Newer daemons add events, reasons and fields: ignore what you do not know.",
)
async def unknown_fields(run: Run) -> None:
    stream = await run.stream(resuming="")
    await stream.send(engaged("a"), reset=True, unknown_fields=True)
    await run.reported("ENGAGED a")
    await stream.send(updated("a", suspended=True), unknown_fields=True)
    await run.reported_only(stream, "UPDATED a suspended")


@core(
    "No cluster is disengaged because its source is stale",
    why="While Milo is unreachable, the last known state remains valid.",
    demands="Milo can't be watched at present. What was known remains valid",
)
async def stale_source(run: Run) -> None:
    stream = await run.synced("a")
    stale = pb.SourceStatus(state=pb.SourceStatus.STATE_STALE, reason="ConnectFailed", message="connection refused")
    await stream.heartbeat(source=stale)
    stream = await run.resumed(stream)
    await stream.heartbeat(source=stale)
    await run.nothing_else(stream)


@core(
    "A connection is closed after three missed heartbeats",
    why="A daemon that hangs, or a host that vanished, sends no error. The client would wait forever.",
    demands="client that receives nothing for three intervals should treat the connection as dead",
)
async def heartbeat_silence(run: Run) -> None:
    await run.start(SHORT_HEARTBEAT)
    stream = await run.synced("a")
    stream.stop_heartbeats()
    since = time.monotonic()
    again = await run.stream(resuming=stream.revision, limit_s=HEARTBEAT_TIMEOUT_S + 6)
    silent = again.opened_at - since
    if silent < HEARTBEAT_TIMEOUT_S - 1:
        raise CaseFailed(
            f"another stream was opened {silent:.1f} s after the heartbeats stopped, not after {HEARTBEAT_TIMEOUT_S} s"
        )
    await again.send(engaged("b"))
    await run.reported_only(again, "ENGAGED b")


@core(
    "A new stream that receives no first batch is closed after three heartbeat intervals",
    why="A daemon that hangs still accepts connections. The client would wait for its first batch forever.",
    demands="also\n  // where it has not received the first batch yet",
)
async def silent_from_the_start(run: Run) -> None:
    await run.start(SHORT_HEARTBEAT)
    stream = await run.resumed(await run.synced("a"))
    again = await run.stream(resuming=stream.revision, limit_s=HEARTBEAT_TIMEOUT_S + 6)
    await again.send(engaged("b"))
    await run.reported_only(again, "ENGAGED b")


@core(
    "One late heartbeat does not close the stream",
    why="A busy machine delays heartbeats. Clients that do not tolerate this delay would all reconnect at once.",
    demands="client that receives nothing for three intervals should treat the connection as dead",
)
async def late_heartbeat(run: Run) -> None:
    await run.start(SHORT_HEARTBEAT)
    stream = await run.synced("a")
    stream.stop_heartbeats()
    late_s = 0.8 * HEARTBEAT_TIMEOUT_S
    why = f"within {late_s:g} s after the heartbeats stopped, although three intervals are {HEARTBEAT_TIMEOUT_S} s"
    await run.no_stream(late_s, why)
    await stream.heartbeat()
    await run.no_stream(0.4 * HEARTBEAT_TIMEOUT_S, "although a heartbeat arrived in time")
    await run.nothing_else(stream)


@core(
    "A half-open connection is not used again",
    why="The peer vanished without closing the connection. A new stream on it would receive nothing either.",
    demands="should treat the connection as dead, and open another",
)
async def half_open_connection(run: Run) -> None:
    await run.start(SHORT_HEARTBEAT)
    stream = await run.synced("a")
    run.daemon.relay.fall_silent()
    again = await run.stream(limit_s=HEARTBEAT_TIMEOUT_S + 10)
    if again.request.resume_revision:
        await again.send(previous=again.request.resume_revision)
    else:
        await again.snapshot(engaged("a"))
    await run.nothing_else(again)
    stream.finish()


@core(
    "No cluster is disengaged when the connection breaks repeatedly",
    why="When a daemon is killed, its connections break, and its streams end without a status.",
    demands="a broken connection: none of them disengages a cluster",
)
async def cut_connection(run: Run) -> None:
    stream = await run.synced("a")
    for name in ("b", "c", "d"):
        run.daemon.relay.cut()
        stream = await run.stream(resuming=stream.revision)
        await stream.send(engaged(name))
        await run.reported_only(stream, f"ENGAGED {name}")


@core(
    "The delay that a daemon requests when it shuts down is respected",
    why="Before the delay has passed, the daemon's successor may not be running: attempts until then fail, and "
    "lengthen the backoff.",
    demands="A daemon that shuts down ends the stream with UNAVAILABLE and a RetryInfo.",
)
async def retry_info(run: Run) -> None:
    stream = await run.synced("a")
    ended = time.monotonic()
    stream.end(UNAVAILABLE, "shutting down", retry_after_s=2.0)
    again = await run.stream(resuming=stream.revision)
    if (waited := again.opened_at - ended) < 1.9:
        raise CaseFailed(f"the next stream was opened after {waited:.2f} s, not after the 2 s of RetryInfo")
    await again.send()
    await run.nothing_else(again)


@core(
    "A requested delay of 30 days does not become a short one",
    why="Timers of some languages overflow at 25 days, and then elapse at once: the client opens hundreds of streams a "
    "second to a daemon that asked for a pause. A client may wait for less than what is requested, some minutes.",
    demands="A daemon that shuts down ends the stream with UNAVAILABLE and a RetryInfo.",
)
async def retry_info_of_days(run: Run) -> None:
    stream = await run.synced("a")
    stream.end(UNAVAILABLE, "shutting down", retry_after_s=30 * 24 * 3600)
    await run.no_stream(4.0, "although the daemon requested a delay of 30 days")


@core(
    "A status whose details cannot be decoded ends the stream as any other",
    why="A client that fails to decode them ends its watch with an error that is not retried, and the operator stops.",
    demands="After any other end, and where nothing listens yet, open it again",
)
async def malformed_details(run: Run) -> None:
    stream = await run.synced("a")
    stream.end(UNAVAILABLE, "shutting down", malformed=True)
    stream = await run.stream(resuming=stream.revision)
    await stream.send(engaged("b"))
    await run.reported_only(stream, "ENGAGED b")


@core(
    "Connections that end with GOAWAY before they carry a call are opened with backoff",
    why="gRPC repeats such a call by itself, in some languages without a delay: the client uses up a CPU, and memory "
    "for each attempt.",
    demands="at first soon, then with backoff and\n// jitter",
)
async def goaway_at_once(run: Run) -> None:
    stream = await run.synced("a")
    relay = run.daemon.relay
    relay.sends_goaway = True
    relay.cut()
    before = relay.connected
    await asyncio.sleep(GOAWAYS_WITHIN_S)
    relay.sends_goaway = False
    if (connected := relay.connected - before) > MAX_GOAWAYS:
        raise CaseFailed(
            f"{connected} connections were opened in {GOAWAYS_WITHIN_S:g} s; at most {MAX_GOAWAYS} are allowed"
        )
    if not connected:
        raise CaseFailed(f"no connection was opened in {GOAWAYS_WITHIN_S:g} s")
    stream = await run.stream(resuming=stream.revision)
    await stream.send(engaged("b"))
    await run.reported_only(stream, "ENGAGED b")


@core(
    "The first reconnect is prompt, and later ones back off",
    why="Without backoff, a daemon that refuses streams is flooded. With a long first delay, operators "
    "receive changes late after a restart of the daemon.",
    demands="at first soon, then with backoff and\n// jitter",
)
async def backoff(run: Run) -> None:
    stream = await run.synced("a")
    stream.end(UNAVAILABLE)
    attempts, until = 0, time.monotonic() + 3
    while (left := until - time.monotonic()) > 0:
        try:
            stream = await run.stream(resuming=stream.revision, limit_s=left)
        except CaseFailed:
            if attempts:
                break
            raise
        attempts += 1
        stream.end(UNAVAILABLE)
    if attempts > 12:
        raise CaseFailed(f"{attempts} streams were opened within 3 s to a daemon that refuses them; the limit is 12")
    stream = await run.stream(resuming=stream.revision)
    await stream.send()
    await run.nothing_else(stream)


@core(
    "Streams that break after their snapshot are opened with backoff",
    why="A snapshot is what costs a daemon most. If each resets the delay, a connection that breaks soon, as behind a "
    "proxy with a low limit, transfers the whole fleet several times a second.",
    demands="at first soon, then with backoff and\n// jitter",
)
async def backoff_after_snapshots(run: Run) -> None:
    stream = await run.synced("a")
    snapshots, until = 1, time.monotonic() + SNAPSHOTS_WITHIN_S
    with suppress(TimeoutError):
        while True:
            stream.end(UNAVAILABLE)
            stream = await asyncio.wait_for(run.daemon.streams.get(), max(0.0, until - time.monotonic()))
            await stream.snapshot(engaged("a"))
            await asyncio.sleep(0.05)  # long enough for the snapshot to arrive
            snapshots += 1
    if snapshots > MAX_SNAPSHOTS:
        raise CaseFailed(
            f"a daemon whose streams break after their snapshot sent {snapshots} snapshots within "
            f"{SNAPSHOTS_WITHIN_S:g} s; the limit is {MAX_SNAPSHOTS}"
        )
    stream = await run.stream()
    await stream.snapshot(engaged("a"))
    await run.nothing_else(stream)


async def refusals(run: Run, stream: ScriptedStream, count: int) -> tuple[ScriptedStream, list[float]]:
    """End `count` streams, each as soon as it is open. Return the next stream, and the delay before each new stream."""
    waits = []
    for _ in range(count):
        ended = time.monotonic()
        stream.end(UNAVAILABLE)
        stream = await run.stream(resuming=stream.revision)
        waits.append(stream.opened_at - ended)
    return stream, waits


@core(
    "The delay before a reconnect doubles",
    why="With a constant short delay, or one that grows slowly, a client makes thousands of attempts in an outage.",
    demands="at first soon, then with backoff and\n// jitter",
)
async def backoff_doubles(run: Run) -> None:
    for tries in (1, 2, 3):  # Repeat, since a busy machine lengthens some of the delays.
        rounds = []
        for _ in range(ROUNDS):
            _, waits = await refusals(run, await run.synced("a"), len(CURVATURE))
            rounds.append(waits)
            await run.restart()
        means = [sum(waits) / ROUNDS for waits in zip(*rounds, strict=True)]
        curvature, slope = (sum(map(mul, weights, means)) for weights in (CURVATURE, SLOPE))
        if means[-1] >= max(0.8, 2.5 * means[0]) and curvature >= CURVATURE_OF_DOUBLING * slope:
            break
        if tries == 3:
            shown = ", ".join(f"{mean:.2f} s" for mean in means)
            raise CaseFailed(
                f"the first {len(means)} delays before a reconnect should double each time, to 0.8 s or more; "
                f"on average they are {shown}"
            )


@core(
    "The delay before a reconnect has jitter",
    why="Without jitter, all subscribers of a restarted daemon reconnect at the same time.",
    demands="at first soon, then with backoff and\n// jitter",
)
async def backoff_jitter(run: Run) -> None:
    stream, _ = await refusals(run, await run.synced("a"), REFUSALS_TO_THE_LONGEST_DELAY)
    stream, waits = await refusals(run, stream, 6)
    if (spread := max(waits) - min(waits)) < 0.25:
        shown = ", ".join(f"{wait:.2f} s" for wait in waits)
        raise CaseFailed(f"the delays should differ by 0.25 s or more, but differ by {spread:.2f} s: {shown}")
    await stream.send()
    await run.nothing_else(stream)


@core(
    "A healthy stream resets the backoff",
    why="Otherwise the first delay after a restart of the daemon can be as long as the last one of an earlier outage.",
    demands="at first soon, then with backoff and\n// jitter",
)
async def backoff_resets(run: Run) -> None:
    await run.start(SHORT_HEARTBEAT)
    stream = await run.synced("a")
    delays: list[float] = []
    while len(delays) < 3:  # Repeat, since a busy machine can cause a single long delay.
        stream, _ = await refusals(run, stream, REFUSALS_TO_THE_LONGEST_DELAY)
        await stream.heartbeat()
        await asyncio.sleep(10.5)  # the kit sends heartbeats during this time
        stream, [delay] = await refusals(run, stream, 1)
        if delay < LATEST_SHORT_DELAY_S:
            break
        delays.append(delay)
    else:
        shown = ", ".join(f"{delay:.2f} s" for delay in delays)
        raise CaseFailed(
            f"after streams that had worked for ten seconds, each delay was {LATEST_SHORT_DELAY_S} s or more: {shown}"
        )
    await stream.send()
    await run.nothing_else(stream)


def fatal(code: grpc.StatusCode) -> Callable[[Run], Awaitable[None]]:
    async def script(run: Run) -> None:
        stream = await run.stream(resuming="")
        stream.end(code, "scripted")
        await run.fatal(code.name)
        await run.no_stream(1.0, f"although {code.name} is final")

    return script


for status in (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.FAILED_PRECONDITION,
):
    core(
        f"{status.name} is reported to the user, and not retried",
        why="No retry can fix this error. A program that hides it looks healthy, but does nothing.",
        demands="INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED and FAILED_PRECONDITION end a "
        "stream permanently:\n// report them",
        name=f"fatal-{status.name.lower().replace('_', '-')}",
    )(fatal(status))


def transient(code: grpc.StatusCode) -> Callable[[Run], Awaitable[None]]:
    async def script(run: Run) -> None:
        stream = await run.synced("a")
        if code is grpc.StatusCode.OK:
            stream.finish()
        else:
            stream.end(code, "scripted")
        stream = await run.stream(resuming=stream.revision)
        await stream.send(engaged("b"))
        await run.reported_only(stream, "ENGAGED b")

    return script


for status, reason in (
    (grpc.StatusCode.ABORTED, "The daemon ends the stream of a slow subscriber, which can resume."),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "A quota may be exhausted only temporarily."),
    (grpc.StatusCode.INTERNAL, "A proxy between client and daemon failed."),
    (grpc.StatusCode.UNKNOWN, "A bug in the daemon must not stop an operator."),
    (grpc.StatusCode.NOT_FOUND, "The protocol does not define this status for streams, so it may be temporary."),
    (grpc.StatusCode.DEADLINE_EXCEEDED, "A proxy, or a library, limits how long a stream may last."),
    (grpc.StatusCode.DATA_LOSS, "The next stream resumes after the last batch that was received."),
    (grpc.StatusCode.CANCELLED, "A proxy that shuts down cancels the streams through it."),
    (grpc.StatusCode.OK, "A stream that ends without an error has to be resumed as well."),
):
    core(
        f"{status.name} ends the stream, which the client then resumes",
        why=reason,
        demands="After any other end, and where nothing listens yet, open it again",
        name=f"transient-{status.name.lower().replace('_', '-')}",
    )(transient(status))


@core(
    "GOAWAY does not end streams",
    why="A server that shuts down keeps its streams open, and may still send batches on them.",
    demands="A daemon that shuts down ends the stream with UNAVAILABLE and a RetryInfo.",
)
async def goaway(run: Run) -> None:
    stream = await run.synced("a")
    await run.daemon.shut_down()
    await stream.send(engaged("b"))
    await run.reported("ENGAGED b")
    stream = await run.resumed(stream)
    await stream.send(engaged("c"))
    await run.reported_only(stream, "ENGAGED c")


@core(
    "A batch of nearly 4 MiB is read",
    why="A batch of many clusters, or of one with many labels, can be as large as gRPC allows by default.",
    demands="Messages can be larger than the 4 MiB that gRPC receives by default: allow 64 MiB.",
)
async def large_batch(run: Run) -> None:
    stream = await run.synced("a")
    label = "x" * 4000
    clusters = [engaged(f"c{number}", annotations={"note": label}) for number in range(1000)]
    await stream.send(*clusters)
    await run.reported(*[f"ENGAGED c{number}" for number in range(1000)], limit_s=LARGE_LIMIT_S)
    await run.nothing_else(stream)


@core(
    "A batch of more than 4 MiB is read",
    why="gRPC rejects such a batch by default, and a client that resumes receives the same batch again.",
    demands="Messages can be larger than the 4 MiB that gRPC receives by default: allow 64 MiB.",
)
async def larger_batch(run: Run) -> None:
    stream = await run.synced("a")
    await stream.send(*[engaged(f"c{number}", annotations={"note": "x" * 4000}) for number in range(2000)])
    await run.reported(*[f"ENGAGED c{number}" for number in range(2000)], limit_s=LARGE_LIMIT_S)
    await run.nothing_else(stream)


@core(
    "A snapshot of 50,000 clusters is applied, and an identical snapshot after it changes nothing",
    why="An algorithm that is quadratic in the number of clusters takes minutes, and blocks the stream.",
    demands="WatchClusters streams the fleet and then every change to it",
    is_large=True,
)
async def large_fleet(run: Run) -> None:
    names = [f"c{number}" for number in range(50_000)]
    stream = await run.stream(resuming="")

    async def send() -> None:
        for start in range(0, len(names), 1000):
            events = [engaged(name) for name in names[start : start + 1000]]
            await stream.send(*events, reset=start == 0, synced=start + 1000 >= len(names))

    await send()
    await run.reported(*[f"ENGAGED {name}" for name in names], limit_s=LARGE_LIMIT_S)
    await stream.heartbeat()
    stream = await run.resumed(stream)
    await send()
    await run.nothing_else(stream, limit_s=LARGE_LIMIT_S)


@core(
    "The clusters of a pending source stay engaged",
    why="A restarted daemon serves the sources that it has listed. The clusters of the other sources still exist.",
    demands="of these sources,\n  // clusters known from before stay engaged",
    needs=Feature.PENDING_SOURCES,
)
async def pending_source(run: Run) -> None:
    stream = await run.stream(resuming="")
    if not stream.request.accepts_pending_sources:
        raise CaseFailed("the stream was opened without accepts_pending_sources")
    await stream.snapshot(engaged("east#a", source="east"), engaged("west#b", source="west"))
    await run.reported("ENGAGED east#a", "ENGAGED west#b")
    stream = await run.resumed(stream)
    await stream.snapshot(engaged("west#c", source="west"), pending_sources=["east"])
    await run.reported_only(stream, "DISENGAGED west#b", "ENGAGED west#c")
    await stream.snapshot(engaged("west#c", source="west"), engaged("barrier-1"))
    await run.reported_only(stream, "DISENGAGED east#a")


@core(
    "A subscriber retries until the daemon listens on its address",
    why="A sidecar and its operator start in any order.",
    demands="and where nothing listens yet, open it again",
)
async def address_not_there_yet(run: Run) -> None:
    await run.no_stream(await run.start_again(listening=False), "although nothing listens on the address")
    await run.daemon.relay.listen()
    stream = await run.synced("a")
    await run.nothing_else(stream)


@core(
    "After the socket file is replaced, the client connects to the new socket",
    why="A restarted daemon creates its socket again. A client that keeps the old socket waits forever.",
    demands="When the stream breaks, for whatever reason, open it again",
)
async def socket_replaced(run: Run) -> None:
    stream = await run.synced("a")
    await run.daemon.relay.stop_listening()
    await run.daemon.relay.listen()
    run.daemon.relay.cut()
    stream = await run.stream(resuming=stream.revision)
    await stream.send(engaged("b"))
    await run.reported_only(stream, "ENGAGED b")
