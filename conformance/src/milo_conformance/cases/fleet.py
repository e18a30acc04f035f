"""Cases for handlers: one handler runs for each engaged cluster, and gets credentials of only that engagement."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import grpc

from milo_conformance.control_plane import ScriptedControlPlane
from milo_conformance.daemon import Abort, ScriptedStream, disengaged, draining, engaged, kubeconfig, renewed, updated
from milo_conformance.failure import CaseFailed
from milo_conformance.ownership import LATE_S, once, owned, refused, response, unanswered
from milo_conformance.run import SUBSCRIBER, Feature, Profile, Run, case
from milo_discovery.v1 import discovery_pb2 as pb

fleet = partial(case, Profile.FLEET)
RUNS = {"CONFORMANCE_FLEET": "1", "CONFORMANCE_SUBSCRIBER": SUBSCRIBER}
LINGERS = RUNS | {"CONFORMANCE_LINGER": "1"}
WITH_STREAM = {"CONFORMANCE_KUBECONFIGS": "1"}
ANSWER = ("uid", "token", "server", "as", "code", "kubeconfig")
MOVED = "https://moved.test/a"
MAX_CONNECTIONS = 3
"""Connections for a stream and for requests, and one more of a client that renews the ownership on its own."""
OWNED_S = 6.0
STOPS_WITHIN_S = 5.0


async def credential(run: Run, name: str) -> tuple[str, str, str]:
    """Return the token, server and impersonated user with which the oldest handler would send its next request."""
    await run.command(f"credential {name}")
    fields = (await run.reported(f"CREDENTIAL {name}", ignoring=ANSWER))[0].fields
    return str(fields.get("token") or "refused"), str(fields.get("server") or ""), str(fields.get("as") or "")


async def expect_token(run: Run, name: str, expected: str, when: str) -> None:
    if (found := (await credential(run, name))[0]) != expected:
        raise CaseFailed(f"the handler's credential {when} is {found!r}, not {expected!r}")


async def request(run: Run, name: str) -> str:
    """Send a request with the API client of the oldest handler; return its error, empty if it succeeded."""
    await run.command(f"request {name}")
    fields = (await run.reported(f"ANSWERED {name}", ignoring=ANSWER))[0].fields
    return str(fields.get("code") or "")


def issue_by_incarnation(run: Run, server: str = "") -> None:
    async def issue(request: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        issued = kubeconfig(request.cluster, f"for-{request.incarnation}", server=server)
        return pb.IssueKubeconfigResponse(kubeconfig=issued)

    run.daemon.answers["IssueKubeconfig"] = issue


def calls(run: Run, method: str) -> int:
    return sum(call.method == method for call in run.daemon.calls)


async def working(run: Run, environment: dict[str, str]) -> ScriptedStream:
    """Return a stream with one cluster, whose handler has a credential."""
    await run.start(environment)
    issue_by_incarnation(run)
    stream = await run.synced("a")
    await expect_token(run, "a", "for-a-1", "while the cluster is engaged")
    return stream


@fleet(
    "One handler runs from engagement to disengagement",
    why="An update, or a restart of the daemon, must not restart the work.",
    demands="The same name and UID are the same cluster whatever its\n  // incarnation",
)
async def one_handler(run: Run) -> None:
    await run.start(RUNS)
    stream = await run.synced("a", "b")
    await stream.send(updated("a", suspended=True))
    stream = await run.resumed(stream)
    await stream.snapshot(engaged("a", incarnation="a-2"), engaged("b", incarnation="b-2"))
    await run.nothing_else(stream)
    await stream.send(disengaged("b"))
    await run.reported("SIGNALED b", "END b")
    await stream.send(engaged("b"))
    await run.reported_only(stream, "BEGIN b")


@fleet(
    "The handler of a replacement cluster starts after the previous handler has ended",
    why="Both handlers use the same local state: caches, queues and metrics under the cluster's name.",
    demands="DISENGAGED (REPLACED), then ENGAGED, in one batch",
)
async def next_begins_after_end(run: Run) -> None:
    await run.start(LINGERS)
    stream = await run.synced("a")
    await stream.send(disengaged("a", "REPLACED"), engaged("a", uid="other", incarnation="a-2"))
    await run.reported_only(stream, "SIGNALED a")
    await run.command("finish a")
    await run.reported_only(stream, "END a", "BEGIN a uid=other")


@fleet(
    "A handler of a replaced cluster gets no credential of the replacement cluster",
    why="Otherwise, the cleanup for the former project would run in the new project.",
    demands="A project that was deleted and created again under\n  // its old name is another cluster",
)
async def credential_of_a_replaced_cluster(run: Run) -> None:
    stream = await working(run, LINGERS)
    await stream.send(disengaged("a", "REPLACED"), engaged("a", uid="other", incarnation="a-2"))
    await run.reported("SIGNALED a")
    await expect_token(run, "a", "refused", "after the cluster was replaced")
    await run.command("finish a")
    await run.reported("END a", "BEGIN a uid=other")
    await expect_token(run, "a", "for-a-2", "of the replacement cluster")
    await run.nothing_else(stream)


@fleet(
    "A handler gets no credential after its cluster was disengaged",
    why="Another daemon's operator may be working in the cluster by then, or the caller's rights may have been "
    "revoked, but the old token still works.",
    demands="Stop working on it.",
)
async def credential_after_the_end(run: Run) -> None:
    stream = await working(run, LINGERS)
    await stream.send(disengaged("a", "REVOKED"))
    await run.reported("SIGNALED a")
    await expect_token(run, "a", "refused", "after the cluster was disengaged")
    await run.command("finish a")
    await run.reported_only(stream, "END a")


@fleet(
    "A handler gets no credential of a later engagement of its cluster",
    why="The engagement that the handler worked for is over. With a valid credential, the handler could continue "
    "during the later one.",
    demands="Identifies one engagement by one daemon process: new each time the daemon engages the cluster",
)
async def credential_of_a_later_engagement(run: Run) -> None:
    await run.start(LINGERS | WITH_STREAM)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a", kubeconfig("a", "one")))
    await run.reported("BEGIN a")
    await expect_token(run, "a", "one", "while the cluster is engaged")
    await stream.send(disengaged("a", "NOT_READY"), engaged("a", kubeconfig("a", "two"), incarnation="a-2"))
    await run.reported("SIGNALED a")
    await expect_token(run, "a", "refused", "after the cluster was engaged again")
    await run.command("finish a")
    await run.reported("END a", "BEGIN a")
    await expect_token(run, "a", "two", "of the later engagement")
    await run.nothing_else(stream)


@fleet(
    "A handler's request takes the server, the token and the impersonated user from the same kubeconfig",
    why="A new token that is sent to the old server can be stolen there. A request that impersonates the wrong user "
    "may have more rights.",
    demands="Kubeconfig is a credential with the server that it is for.",
)
async def endpoint_and_user_of_the_token(run: Run) -> None:
    await run.start(RUNS | WITH_STREAM)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a", kubeconfig("a", "one")))
    await run.reported("BEGIN a")
    if (found := await credential(run, "a")) != ("one", "https://milo.test/a", ""):
        raise CaseFailed(
            f"the handler's credential is {found}, not 'one' at https://milo.test/a without an impersonated user"
        )
    second = kubeconfig("a", "two", server="https://moved.test/a", user={"token": "two", "as": "shop"})
    await stream.send(updated("a", endpoint="https://moved.test/a"), renewed("a", second))
    await run.nothing_else(stream)
    if (found := await credential(run, "a")) != ("two", "https://moved.test/a", "shop"):
        raise CaseFailed(
            f"after the endpoint and the user changed, the handler's credential is {found}, "
            "not 'two' at https://moved.test/a as shop"
        )


async def expect_credential(run: Run, expected: tuple[str, str, str], when: str) -> None:
    if (found := await credential(run, "a")) != expected:
        raise CaseFailed(f"{when}, the token, the server and the user of the handler are {found}, not {expected}")


@fleet(
    "An endpoint that changed while the daemon restarted gets a credential of its own",
    why="The former endpoint may be another project's by now. Its credential, which is valid for an hour, must neither "
    "be sent there nor to the new one.",
    demands="Kubeconfig is a credential with the server that it is for.",
)
async def endpoint_changed_by_a_restart(run: Run) -> None:
    stream = await run.resumed(await working(run, RUNS))
    issue_by_incarnation(run, server=MOVED)
    await stream.snapshot(engaged("a", incarnation="a-2", endpoint=MOVED))
    await run.nothing_else(stream)
    await expect_credential(run, ("for-a-2", MOVED, ""), "after its endpoint changed")
    await run.nothing_else(stream)


@fleet(
    "A kubeconfig that was delivered for a former endpoint is not used",
    why="The endpoint changed before the first request, and the former may be another project's by now.",
    demands="Kubeconfig is a credential with the server that it is for.",
)
async def delivered_for_a_former_endpoint(run: Run) -> None:
    await run.start(RUNS | WITH_STREAM)
    issue_by_incarnation(run, server=MOVED)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a", kubeconfig("a", "former")))
    await run.reported("BEGIN a")
    await stream.send(updated("a", endpoint=MOVED))
    await run.nothing_else(stream)
    await expect_credential(run, ("for-a-1", MOVED, ""), "after its endpoint changed")
    await run.nothing_else(stream)


@fleet(
    "A response for an endpoint that changed during the request is not used",
    why="The response is for the former endpoint, which may be another project's by now.",
    demands="Kubeconfig is a credential with the server that it is for.",
)
async def endpoint_changed_during_a_request(run: Run) -> None:
    await run.start(RUNS)
    changed = asyncio.Event()

    async def issue(_: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        if changed.is_set():
            return pb.IssueKubeconfigResponse(kubeconfig=kubeconfig("a", "new", server=MOVED))
        await changed.wait()
        await asyncio.sleep(0.5)  # long enough for the client to apply the update
        return pb.IssueKubeconfigResponse(kubeconfig=kubeconfig("a", "former"))

    run.daemon.answers["IssueKubeconfig"] = issue
    stream = await run.synced("a")
    await run.command("credential a")
    await run.daemon.wait_for_call("IssueKubeconfig")
    await stream.send(updated("a", endpoint=MOVED))
    changed.set()
    fields = (await run.reported("CREDENTIAL a", ignoring=ANSWER))[0].fields
    if (found := fields.get("token")) != "new":
        raise CaseFailed(f"a credential that was requested before the endpoint changed is {found!r}, not 'new'")
    await expect_credential(run, ("new", MOVED, ""), "after its endpoint changed")
    await run.nothing_else(stream)


@fleet(
    "A kubeconfig that is due for renewal when it arrives is not requested again for each use",
    why="Where the machine's clock is ahead of the daemon's, each kubeconfig arrives like this. An operator with "
    "thousands of API requests would send the daemon as many.",
    demands="When to request another.",
)
async def credential_due_on_arrival(run: Run) -> None:
    await run.start(RUNS)

    async def issue(_: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        return pb.IssueKubeconfigResponse(kubeconfig=kubeconfig("a", "one", refresh_in_s=-60))

    run.daemon.answers["IssueKubeconfig"] = issue
    stream = await run.synced("a")
    since = time.monotonic()
    for _ in range(40):
        await expect_token(run, "a", "one", "that is valid, and due for renewal,")
    await asyncio.sleep(0.2)  # long enough for requests in the background to arrive
    requests, limit = calls(run, "IssueKubeconfig"), 3 + (time.monotonic() - since) / 3
    if requests > limit:
        raise CaseFailed(f"40 uses of a credential sent {requests} requests; the limit is {limit:.0f}")
    await run.nothing_else(stream)


@fleet(
    "Requests that the daemon refuses do not open connections",
    why="The issuer of credentials is down, and thousands of handlers ask. A client that takes each answer for a lost "
    "connection opens as many, and breaks those that work.",
    demands="UNAVAILABLE with a RetryInfo until the daemon has seen a complete list of its source",
)
async def refusals_on_one_connection(run: Run) -> None:
    await run.start(RUNS)

    async def refuse(_: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        raise Abort(grpc.StatusCode.UNAVAILABLE, "no issuer", retry_after_s=1, reason="CREDENTIALS_UNAVAILABLE")

    run.daemon.answers["IssueKubeconfig"] = refuse
    names = [f"c{number}" for number in range(8)]
    stream = await run.synced(*names)
    for name in names:
        await expect_token(run, name, "refused", "while the daemon has no issuer")
    if (connected := run.daemon.relay.connected) > MAX_CONNECTIONS:
        raise CaseFailed(f"{connected} connections were opened for a stream and {len(names)} refused requests")
    await run.nothing_else(stream)


@fleet(
    "A redirect is an error, and is not followed",
    why="A tenant who controls the responses could redirect a request, with its credential or impersonated user, to "
    "another server.",
    demands="Kubeconfig is a credential with the server that it is for.",
    needs=Feature.REQUESTS,
)
async def redirect(run: Run) -> None:
    async with ScriptedControlPlane() as plane, ScriptedControlPlane() as elsewhere:
        await run.start(RUNS | WITH_STREAM)
        stream = await run.stream(resuming="")
        await stream.snapshot(engaged("a", plane.kubeconfig("a", "one"), endpoint=plane.url))
        await run.reported("BEGIN a")
        if (code := await request(run, "a")) or plane.tokens != ["Bearer one"]:
            raise CaseFailed(
                f"a request ended with the error {code!r}, and the cluster received {plane.tokens}; "
                "expected no error and ['Bearer one']"
            )
        for status in (301, 302, 303, 307, 308):
            plane.redirect = (status, elsewhere.url)
            code = await request(run, "a")
            if elsewhere.tokens:
                raise CaseFailed(f"a redirect ({status}) was followed, with {elsewhere.tokens[0] or 'no token'!r}")
            if not code:
                raise CaseFailed(f"a redirect ({status}) was not reported as an error")
        await run.nothing_else(stream)


@fleet(
    "A failed handler is restarted, and does not affect other handlers",
    why="Some API servers of a fleet return errors. The other clusters still need their handlers.",
    demands="The cluster is there and ready. Start working on it.",
)
async def handler_error(run: Run) -> None:
    await run.start(RUNS)
    stream = await run.synced("a", "b")
    await run.command("fail a")
    await run.reported_only(stream, "END a", "BEGIN a")
    await stream.send(disengaged("a"))
    await run.reported("SIGNALED a", "END a")
    await stream.send(engaged("a"))
    await run.reported_only(stream, "BEGIN a")


@fleet(
    "A draining cluster is released when its handler has ended",
    why="Until then, the handler can clean up with valid credentials. After an early release, another operator starts "
    "to work in the cluster.",
    demands="ReleaseCluster confirms that a subscriber has ended its work on a draining cluster.",
)
async def release_after_end(run: Run) -> None:
    stream = await working(run, LINGERS)
    await stream.send(updated("a", draining=draining("MOVED")))
    await run.reported_only(stream, "SIGNALED a")
    await expect_token(run, "a", "for-a-1", "while the cluster drains")
    await asyncio.sleep(0.5)  # long enough for a premature release to arrive
    if calls(run, "ReleaseCluster"):
        raise CaseFailed("the cluster was released before its handler had ended")
    await run.command("finish a")
    await run.reported("END a")
    await run.daemon.wait_for_call("ReleaseCluster")
    await run.nothing_else(stream)


@fleet(
    "A cluster that is engaged as draining is not released while the previous handler runs",
    why="After an early release, the next owner starts while the handler of the previous engagement still works.",
    demands="end the work on it, or do not begin any, and call ReleaseCluster",
)
async def drains_behind_a_handler(run: Run) -> None:
    await run.start(LINGERS)
    stream = await run.synced("a")
    await stream.send(disengaged("a", "NOT_READY"), engaged("a", incarnation="a-2", draining=draining("MOVED")))
    await run.reported_only(stream, "SIGNALED a")
    await asyncio.sleep(0.5)  # long enough for a premature release to arrive
    if calls(run, "ReleaseCluster"):
        raise CaseFailed("the cluster was released before the handler of its former engagement had ended")
    await stream.send(disengaged("a", "MOVED"), engaged("a", incarnation="a-3"))
    await run.nothing_else(stream)
    await run.command("finish a")
    await run.reported_only(stream, "END a", "BEGIN a")


@fleet(
    "A drain is released again on a stream that resumes",
    why="The first release may have been lost with the connection. The daemon sends the cluster again, and waits.",
    demands="The clusters that are draining are sent again on each stream that resumes.",
)
async def released_again_after_a_reconnect(run: Run) -> None:
    await run.start(RUNS)
    stream = await run.synced("a")
    drains = updated("a", draining=draining("MOVED"))
    await stream.send(drains)
    await run.reported("SIGNALED a", "END a")
    await run.daemon.wait_for_call("ReleaseCluster")
    stream = await run.resumed(stream)
    await stream.send(drains)
    await run.daemon.wait_for_call("ReleaseCluster", after=1)
    await run.nothing_else(stream)


@fleet(
    "A drain that is sent again while its release is in flight is not released a second time",
    why="A daemon that does not answer, and sends the cluster again and again, would cost a thread or a timer for each "
    "event, until the program has no more.",
    demands="To release again is a no-op",
)
async def one_release_in_flight(run: Run) -> None:
    await run.start(RUNS)
    stream = await run.synced("a")
    run.daemon.answers["ReleaseCluster"] = unanswered
    await stream.send(updated("a", draining=draining("MOVED")))
    await run.reported("SIGNALED a", "END a")
    await run.daemon.wait_for_call("ReleaseCluster")
    for number in range(100):
        await stream.send(updated("a", draining=draining("MOVED"), labels={"number": str(number)}))
    await run.nothing_else(stream)
    await asyncio.sleep(1.0)  # long enough for further releases to arrive
    if (made := calls(run, "ReleaseCluster")) > 1:
        raise CaseFailed(f"{made} releases of the cluster were in flight at once")


@fleet(
    "A drain that outlives the daemon is released under the incarnation that the next one gave",
    why="The restarted daemon refuses a release of the former incarnation, and waits until the deadline of the drain.",
    demands="OTHER_INCARNATION for any incarnation but the last",
)
async def released_after_a_restart(run: Run) -> None:
    await run.start(LINGERS)
    stream = await run.synced("a")
    end = draining("MOVED")
    await stream.send(updated("a", draining=end))
    await run.reported("SIGNALED a")
    stream = await run.resumed(stream)
    await stream.snapshot(engaged("a", incarnation="a-2", draining=end), engaged("b"))
    await run.reported("BEGIN b")
    await run.command("finish a")
    await run.reported("END a")
    await run.daemon.wait_for_call("ReleaseCluster", incarnation="a-2")
    stream = await run.resumed(stream)
    await stream.snapshot(engaged("a", incarnation="a-3", draining=end), engaged("b"))
    await run.daemon.wait_for_call("ReleaseCluster", incarnation="a-3")
    await run.nothing_else(stream)


@fleet(
    "When the ownership expires, handlers are told to end, and begin again once the daemon owns its clusters",
    why="Another daemon may engage the clusters then. Its operator must not meet a handler that still works, or a "
    "credential that it still gets.",
    demands="stop working in all clusters when the `valid_for` of the last response has passed",
)
async def ownership_lost(run: Run) -> None:
    await run.start(LINGERS)
    issue_by_incarnation(run)
    run.daemon.answers["RenewOwnership"] = once(response(OWNED_S), refused)
    stream = await run.stream(resuming="")
    stream.sharded = True
    await stream.snapshot(engaged("a"))
    await run.reported("BEGIN a")
    await expect_token(run, "a", "for-a-1", "while the daemon owns its clusters")
    owned_until = (await run.daemon.wait_for_call("RenewOwnership")).at + OWNED_S
    [signaled] = await run.reported("SIGNALED a")
    if (late_s := signaled.at - owned_until) > LATE_S:
        raise CaseFailed(f"the handler was told to end {late_s:.1f} s late; at most {LATE_S} s are allowed")
    await expect_token(run, "a", "refused", "after the ownership expired")
    run.daemon.answers["RenewOwnership"] = owned(60)
    again = await run.stream(resuming="")
    again.sharded = True
    await again.snapshot(engaged("a", incarnation="a-2"))
    await run.command("finish a")
    await run.reported("END a", "BEGIN a")
    await expect_token(run, "a", "for-a-2", "when the daemon owns its clusters again")
    await run.nothing_else(again)


@fleet(
    "A draining cluster is also released when its handler fails",
    why="Otherwise the next owner of the cluster waits until the deadline of the drain.",
    demands="end the work on it, or do not begin any, and call ReleaseCluster",
)
async def release_after_error(run: Run) -> None:
    await run.start(LINGERS)
    stream = await run.synced("a")
    await stream.send(updated("a", draining=draining("MOVED")))
    await run.reported("SIGNALED a")
    await run.command("fail a")
    await run.reported("END a")
    await run.daemon.wait_for_call("ReleaseCluster")
    await run.nothing_else(stream)


@fleet(
    "A program that stops does not wait long for a daemon that does not answer",
    why="A pod is killed after 30 s by default, and a rollout waits that long for each of its pods.",
    demands="EndSubscription says that a subscriber has ended all of its work and will not return",
)
async def stop_without_an_answer(run: Run) -> None:
    await run.start(RUNS)
    await run.synced("a")
    run.daemon.answers["EndSubscription"] = unanswered
    await run.command("stop")
    await run.reported("SIGNALED a", "END a")
    await run.daemon.wait_for_call("EndSubscription")
    await run.ended(STOPS_WITHIN_S)


@fleet(
    "A program that stops ends its handlers first, while their credentials are still valid",
    why="A handler needs its credential to clean up in the cluster before the daemon is notified that no work remains "
    "there.",
    demands="EndSubscription says that a subscriber has ended all of its work and will not return",
)
async def stop_waits_for_handlers(run: Run) -> None:
    stream = await working(run, LINGERS)
    await run.command("stop")
    await run.reported("SIGNALED a")
    await expect_token(run, "a", "for-a-1", "while the program stops")
    await asyncio.sleep(0.5)  # long enough for a premature call to arrive
    if calls(run, "EndSubscription"):
        raise CaseFailed("the subscription was ended before the handler had ended")
    await run.command("finish a")
    await run.reported("END a")
    await run.daemon.wait_for_call("EndSubscription")
    await run.ended()
    stream.finish()
