"""Cases for kubeconfigs: delivered by the stream, issued on request, and renewed for API clients."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import grpc

from milo_conformance.daemon import Abort, disengaged, engaged, kubeconfig, renewed, updated
from milo_conformance.failure import CaseFailed
from milo_conformance.run import Feature, Profile, Run, case
from milo_discovery.v1 import discovery_pb2 as pb

kubeconfigs = partial(case, Profile.KUBECONFIGS)
WITH_STREAM = {"CONFORMANCE_KUBECONFIGS": "1"}
RUNS_A_PROGRAM = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c", "id"]}}


@kubeconfigs(
    "A kubeconfig arrives with the engagement, or after it",
    why="Work in a cluster needs a kubeconfig, and events do not wait for credentials.",
    demands="with ENGAGED if one is available (events do not wait for\n  // credentials), and with KUBECONFIG",
)
async def with_the_stream(run: Run) -> None:
    await run.start(WITH_STREAM)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a", kubeconfig("a", "one")), engaged("b"))
    await run.reported("ENGAGED a token=one", "ENGAGED b")
    await stream.send(renewed("b", kubeconfig("b", "late")))
    await run.reported_only(stream, "KUBECONFIG b token=late")


@kubeconfigs(
    "A renewed kubeconfig replaces the previous one",
    why="The old kubeconfig expires. The cluster is the same: caches and connections stay.",
    demands="A new kubeconfig replaces the one before, which is still valid for a while.",
)
async def renewed_with_the_stream(run: Run) -> None:
    await run.start(WITH_STREAM)
    stream = await run.stream(resuming="")
    await stream.send(engaged("a", kubeconfig("a", "one")), reset=True, synced=False)
    await stream.send(renewed("a", kubeconfig("a", "two")))
    await run.reported("ENGAGED a token=two")
    await stream.send(renewed("a", kubeconfig("a", "three")))
    await stream.send(updated("a", suspended=True))
    await run.reported_only(stream, "KUBECONFIG a token=three", "UPDATED a suspended")


@kubeconfigs(
    "A new kubeconfig from a restarted daemon is reported as a renewal",
    why="A restarted daemon issues a new kubeconfig. A client that does not report it leaves its operator with the old "
    "one, and work in the cluster fails when that expires.",
    demands="A new kubeconfig replaces the one before",
)
async def other_kubeconfig_after_restart(run: Run) -> None:
    await run.start(WITH_STREAM)
    stream = await run.stream(resuming="")
    same = kubeconfig("b", "same")
    await stream.snapshot(
        engaged("a", kubeconfig("a", "one")), engaged("b", same), engaged("c", kubeconfig("c", "old"))
    )
    await run.reported("ENGAGED a token=one", "ENGAGED b token=same", "ENGAGED c token=old")
    stream = await run.resumed(stream)
    await stream.snapshot(engaged("a", kubeconfig("a", "two")), engaged("b", same), engaged("c"))
    await run.reported_only(stream, "KUBECONFIG a token=two")


@kubeconfigs(
    "A replacement cluster does not inherit the kubeconfig of the replaced one",
    why="The old kubeconfig is for the previous project: its server and credential may be wrong for the new one.",
    demands="A project that was deleted and created again under\n  // its old name is another cluster",
)
async def replaced_without_kubeconfig(run: Run) -> None:
    await run.start(WITH_STREAM)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a", kubeconfig("a", "one")), engaged("b", kubeconfig("b", "one")))
    await run.reported("ENGAGED a token=one", "ENGAGED b token=one")
    await stream.send(disengaged("a", "REPLACED"), engaged("a", uid="other"))
    await run.reported("DISENGAGED a reason=REPLACED", "ENGAGED a uid=other")
    stream = await run.resumed(stream)
    await stream.snapshot(engaged("a", uid="other"), engaged("b", uid="other"))
    await run.reported_only(stream, "DISENGAGED b reason=REPLACED", "ENGAGED b uid=other")


@kubeconfigs(
    "KUBECONFIG of an unknown cluster closes the stream",
    why="The client's view is wrong, and only a snapshot can correct it.",
    demands="ENGAGED first, then any number of UPDATED and KUBECONFIG, then DISENGAGED.",
    name="contradiction-kubeconfig-unknown",
)
async def contradiction_kubeconfig_unknown(run: Run) -> None:
    await run.start(WITH_STREAM)
    stream = await run.synced("a")
    await stream.send(engaged("with-it"), renewed("unknown", kubeconfig("unknown", "one")))
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a"), engaged("b"))
    await run.reported_only(stream, "ENGAGED b")


@kubeconfigs(
    "A kubeconfig that runs a program, or refers to a file, is refused",
    why="A server that takes over the daemon's address could run code in the operator.",
    demands="Refuse one that runs a program, or names a file or a proxy",
)
async def refused_with_the_stream(run: Run) -> None:
    await run.start(WITH_STREAM)
    stream = await run.stream(resuming="")
    await stream.snapshot(
        engaged("runs", kubeconfig("runs", "", user=RUNS_A_PROGRAM)),
        engaged("reads", kubeconfig("reads", "", user={"tokenFile": "/etc/passwd"})),
        engaged("a", kubeconfig("a", "one")),
    )
    await run.reported("ENGAGED runs", "ENGAGED reads", "ENGAGED a token=one")
    await stream.send(renewed("a", kubeconfig("a", "", user=RUNS_A_PROGRAM)))
    await run.nothing_else(stream)
    await stream.send(renewed("a", kubeconfig("a", "two")))
    await run.reported_only(stream, "KUBECONFIG a token=two")


@kubeconfigs(
    "A kubeconfig is issued on request",
    why="A program that needs a kubeconfig only occasionally does not subscribe to all of them.",
    demands="IssueKubeconfig issues a short-lived kubeconfig for an engaged cluster.",
)
async def on_request(run: Run) -> None:
    stream = await run.synced("a")
    issued = iter(["one", "two"])

    async def issue(request: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        if request.cluster != "a":
            raise Abort(grpc.StatusCode.NOT_FOUND, f"cluster {request.cluster!r} is not engaged")
        return pb.IssueKubeconfigResponse(kubeconfig=kubeconfig("a", next(issued)))

    run.daemon.answers["IssueKubeconfig"] = issue
    await run.answer("kubeconfig a", "ISSUED a token=one")
    await run.answer("kubeconfig a", "ISSUED a token=two")
    await run.nothing_else(stream)


@kubeconfigs(
    "A request for a kubeconfig fails with the daemon's error code",
    why="The caller must distinguish a cluster that is not engaged from missing rights.",
    demands="NOT_FOUND for a cluster that\n  // is not engaged, PERMISSION_DENIED",
)
async def request_for_other_cluster(run: Run) -> None:
    stream = await run.synced("a")

    async def refuse(request: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        code = grpc.StatusCode.NOT_FOUND if request.cluster == "b" else grpc.StatusCode.PERMISSION_DENIED
        raise Abort(code, "scripted")

    run.daemon.answers["IssueKubeconfig"] = refuse
    await run.answer("kubeconfig b", "FAILED b code=NOT_FOUND")
    await run.answer("kubeconfig a", "FAILED a code=PERMISSION_DENIED")
    await run.nothing_else(stream)


async def credential(run: Run, name: str) -> str:
    """Return the token with which the client's API client for the cluster would send a request, or FAILED."""
    await run.command(f"credential {name}")
    line = (await run.reported(f"CREDENTIAL {name}", ignoring=("kubeconfig", "token", "code", "reason")))[0]
    return str(line.fields.get("token") or "FAILED")


@kubeconfigs(
    "A credential is reused, and refreshed before it expires",
    why="A client that requests a credential for each API request overloads the daemon. If it refreshes the credential "
    "only after it expired, API requests fail.",
    demands="When to request another.",
    needs=Feature.CREDENTIALS,
)
async def credential_is_refreshed(run: Run) -> None:
    stream = await run.synced("a")
    issued: list[str] = []

    async def issue(request: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        issued.append(f"token-{len(issued) + 1}")
        later = 60.0 if len(issued) > 1 else 1.5
        return pb.IssueKubeconfigResponse(kubeconfig=kubeconfig("a", issued[-1], expires_in_s=120, refresh_in_s=later))

    run.daemon.answers["IssueKubeconfig"] = issue
    for _ in range(3):
        found = await credential(run, "a")
        if found != "token-1":
            raise CaseFailed(f"the credential is {found!r}, not 'token-1', which is not due to be refreshed")
    call = await run.daemon.wait_for_call("IssueKubeconfig")
    if call.request.incarnation not in {"", "a-1"}:
        raise CaseFailed(
            f"IssueKubeconfig was called with the incarnation {call.request.incarnation!r}, not 'a-1' or none"
        )
    await asyncio.sleep(1.6)
    until = time.monotonic() + 10
    while (found := await credential(run, "a")) == "token-1":
        if time.monotonic() > until:
            raise CaseFailed("ten seconds after `refresh_after`, the credential is still 'token-1'")
        await asyncio.sleep(0.1)
    if found != "token-2":
        raise CaseFailed(f"the refreshed credential is {found!r}, not 'token-2'")
    await run.nothing_else(stream)


@kubeconfigs(
    "While the daemon is unavailable, a credential is used until it expires",
    why="A restart of the daemon must not stop the work. An expired credential causes a 401 for each request.",
    demands="When its credential expires.",
    needs=Feature.CREDENTIALS,
)
async def daemon_away_across_expiry(run: Run) -> None:
    stream = await run.synced("a")

    async def issue(request: pb.IssueKubeconfigRequest) -> pb.IssueKubeconfigResponse:
        number = sum(call.method == "IssueKubeconfig" for call in run.daemon.calls)
        old = kubeconfig("a", "old", expires_in_s=6, refresh_in_s=1)
        return pb.IssueKubeconfigResponse(kubeconfig=old if number == 1 else kubeconfig("a", "new"))

    run.daemon.answers["IssueKubeconfig"] = issue
    if (found := await credential(run, "a")) != "old":
        raise CaseFailed(f"the first credential is {found!r}, not 'old'")
    since = time.monotonic()
    await run.daemon.relay.stop_listening()
    run.daemon.relay.cut()
    while time.monotonic() - since < 4:
        if (found := await credential(run, "a")) != "old":
            raise CaseFailed(f"while the daemon was down, the credential is {found!r}, not 'old', which is valid")
        await asyncio.sleep(0.3)
    await asyncio.sleep(max(0.0, since + 6.2 - time.monotonic()))
    if (found := await credential(run, "a")) != "FAILED":
        raise CaseFailed(f"an expired credential was used: {found!r}")
    await run.daemon.relay.listen()
    until = time.monotonic() + 15
    while (found := await credential(run, "a")) == "FAILED":
        if time.monotonic() > until:
            raise CaseFailed("no credential was obtained within 15 s after the daemon was available again")
        await asyncio.sleep(0.2)
    if found != "new":
        raise CaseFailed(f"after the daemon was available again, the credential is {found!r}, not 'new'")
    stream.finish()


@kubeconfigs(
    "API clients use the credentials of the kubeconfigs that the stream delivers",
    why="The daemon sends each kubeconfig before the previous one expires. Further requests double the daemon's work.",
    demands="Send a kubeconfig with each ENGAGED, and another in a KUBECONFIG event before it expires.",
    needs=Feature.CREDENTIALS,
)
async def credential_of_the_stream(run: Run) -> None:
    await run.start(WITH_STREAM)
    stream = await run.stream(resuming="")
    await stream.snapshot(engaged("a", kubeconfig("a", "one")))
    await run.reported("ENGAGED a token=one")
    if (found := await credential(run, "a")) != "one":
        raise CaseFailed(f"the credential is {found!r}, but the stream delivered 'one'")
    await stream.send(renewed("a", kubeconfig("a", "two")))
    await run.reported("KUBECONFIG a token=two")
    if (found := await credential(run, "a")) != "two":
        raise CaseFailed(f"the credential is {found!r}, but the stream delivered 'two'")
    if run.daemon.calls:
        raise CaseFailed(f"{run.daemon.calls[0].method} was called, although the stream delivers the kubeconfigs")
    await run.nothing_else(stream)
