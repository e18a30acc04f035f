"""Replicas that elect a leader with a Lease in a project's control plane."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, Configuration, CoordinationV1Api

from milo_discovery import leader_election
from milo_discovery._ownership import suspended_s
from milo_discovery.leader_election import LeaderElection, LeadershipLost, LeaseTiming
from milo_sandbox import Sandbox
from tests.support.eventually import eventually

PATIENT = LeaseTiming(lease_duration=120.0, renew_deadline=60.0, retry_period=0.05)
"""Timing with which a slow machine does not lose leadership."""
QUICK = LeaseTiming(lease_duration=2.0, renew_deadline=1.0, retry_period=0.05)
DEADLINE_S = 60.0


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as running:
        running.projects.create("operators", ready=True)
        yield running


@pytest.fixture
async def api(sandbox: Sandbox) -> AsyncIterator[ApiClient]:
    configuration = Configuration(
        host=sandbox.control_plane_url("operators"),
        ca_cert_data=sandbox.ca_pem.decode(),
        api_key={"BearerToken": f"Bearer {sandbox.token()}"},
    )
    async with ApiClient(configuration) as client:
        yield client


def replica(api: ApiClient, identity: str = "a", timing: LeaseTiming = PATIENT) -> LeaderElection:
    return LeaderElection(api, "greeter", namespace="default", identity=identity, timing=timing)


class Work:
    """Work that runs until it is canceled, and records that."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = False

    async def __call__(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.ended = True


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def within(awaited: Awaitable[object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await awaited


async def renewed_at(api: ApiClient) -> datetime:
    lease = await CoordinationV1Api(api).read_namespaced_lease("greeter", "default")
    renewed: datetime = lease.spec.renew_time
    return renewed


async def test_leader_election_returns_the_result_and_releases_the_lease(api: ApiClient) -> None:
    async def work() -> str:
        lease = await CoordinationV1Api(api).read_namespaced_lease("greeter", "default")
        return str(lease.spec.holder_identity)

    election = replica(api)
    assert await election.run(work) == "a"
    assert not election.is_leader
    released = await CoordinationV1Api(api).read_namespaced_lease("greeter", "default")
    assert not released.spec.holder_identity


async def test_leader_election_raises_the_error_that_the_work_raised(api: ApiClient) -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await replica(api).run(work)


async def test_leader_election_releases_the_lease_if_the_work_does_not_begin(api: ApiClient) -> None:
    def work() -> Awaitable[None]:
        raise ZeroDivisionError

    election = replica(api)
    with pytest.raises(ZeroDivisionError):
        await election.run(work)
    assert not election.is_leader


async def test_second_replica_leads_after_the_first_has_ended(api: ApiClient) -> None:
    works, elections = [Work(), Work()], [replica(api, "a"), replica(api, "b")]
    first = asyncio.create_task(elections[0].run(works[0]))
    await within(works[0].began.wait())
    second = asyncio.create_task(elections[1].run(works[1]))
    await eventually(lambda: elections[1].leader == "a")
    assert not works[1].began.is_set()
    await stop(first)
    assert works[0].ended
    await within(works[1].began.wait())
    assert elections[1].is_leader
    await stop(second)


async def test_leader_stops_work_when_the_api_server_is_unreachable(api: ApiClient, sandbox: Sandbox) -> None:
    work = Work()
    running = asyncio.create_task(replica(api, timing=QUICK).run(work))
    await within(work.began.wait())
    await sandbox.stop()
    with pytest.raises(LeadershipLost):
        await within(running)
    assert work.ended


async def test_leadership_survives_a_short_outage(api: ApiClient, sandbox: Sandbox) -> None:
    work, election = Work(), replica(api)
    running = asyncio.create_task(election.run(work))
    await within(work.began.wait())
    await sandbox.restart()
    before = await renewed_at(api)
    async with asyncio.timeout(DEADLINE_S):
        while await renewed_at(api) == before:
            pass
    assert (election.is_leader, work.ended) == (True, False)
    await stop(running)


async def test_leader_stops_work_when_another_replica_holds_the_lease(api: ApiClient) -> None:
    work = Work()
    running = asyncio.create_task(replica(api).run(work))
    await within(work.began.wait())
    patch = {"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 60}}
    await CoordinationV1Api(api).patch_namespaced_lease("greeter", "default", patch)
    with pytest.raises(LeadershipLost, match="thief"):
        await within(running)
    assert work.ended


async def test_hung_request_does_not_extend_the_leadership(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    running = asyncio.create_task(replica(api, timing=QUICK).run(work))
    await within(work.began.wait())

    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(api, "call_api", hang)
    with pytest.raises(LeadershipLost):
        await within(running)
    assert work.ended


async def test_leadership_survives_one_renewal_without_a_response(
    api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, hung, renewed = api.call_api, asyncio.Event(), asyncio.Event()

    async def call(method: str, *request: object, **named: object) -> object:
        if method == "PUT" and not hung.is_set():
            hung.set()
            await asyncio.Event().wait()
        response = await original(method, *request, **named)
        if hung.is_set():
            renewed.set()
        return response

    work = Work()
    election = replica(api, timing=LeaseTiming(lease_duration=12.0, renew_deadline=6.0, retry_period=1.0))
    running = asyncio.create_task(election.run(work))
    await within(work.began.wait())
    monkeypatch.setattr(api, "call_api", call)
    await within(hung.wait())
    await asyncio.wait([running, asyncio.create_task(renewed.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert (renewed.is_set(), work.ended) == (True, False)
    await stop(running)


async def test_replica_does_not_lead_after_a_suspension_of_its_machine(
    api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, election = Work(), replica(api)
    running = asyncio.create_task(election.run(work))
    await within(work.began.wait())
    assert election.is_leader
    before = suspended_s()
    monkeypatch.setattr(leader_election, "suspended_s", lambda: before + 60)
    assert not election.is_leader
    with pytest.raises(LeadershipLost):
        await within(running)
    assert work.ended


@pytest.mark.parametrize("is_leading", [False, True])
@pytest.mark.parametrize("takes_effect", ["before the cancellation", "after it"])
async def test_lease_whose_write_was_under_way_at_a_cancellation_is_released(
    api: ApiClient, monkeypatch: pytest.MonkeyPatch, takes_effect: str, is_leading: bool
) -> None:
    """The write that takes the Lease, or a renewal of it."""
    original, writing, may_continue = api.call_api, asyncio.Event(), asyncio.Event()

    async def call(method: str, *request: object, **named: object) -> object:
        if method == "GET" or writing.is_set():
            return await original(method, *request, **named)
        response = None if takes_effect == "after it" else await original(method, *request, **named)
        writing.set()
        await may_continue.wait()
        return response or await original(method, *request, **named)

    work, election = Work(), replica(api, timing=LeaseTiming(120.0, 60.0, retry_period=1.0))
    if not is_leading:
        monkeypatch.setattr(api, "call_api", call)
    running = asyncio.create_task(election.run(work))
    if is_leading:
        await within(work.began.wait())
        monkeypatch.setattr(api, "call_api", call)
    await within(writing.wait())
    running.cancel()
    await eventually(lambda: not any(task.get_name() == "milo-discovery lease" for task in asyncio.all_tasks()))
    may_continue.set()
    await within(asyncio.wait([running]))
    assert running.cancelled()
    lease = await CoordinationV1Api(api).read_namespaced_lease("greeter", "default")
    assert not lease.spec.holder_identity
    assert work.ended is is_leading


async def test_pages_of_a_proxy_instead_of_leases_end_neither_the_candidate_nor_the_leader() -> None:
    """Found by a reader: a page with the status 200 raised KeyError, which ended the process of the operator."""
    stored: dict[str, Any] = {}
    answered: list[tuple[str, bool]] = []

    async def send(method: str, _path: str, body: Any) -> tuple[int, dict[str, Any]]:
        is_page = [method for method, _ in answered].count(method) < 2
        answered.append((method, is_page))
        version = {"uid": "u", "resourceVersion": str(len(answered))}
        if is_page and method == "GET":
            return 200, {}
        if method == "GET":
            return (200, stored) if stored else (404, {})
        if method == "PUT" and body["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
            return 409, {}
        stored.update(body, metadata={**body["metadata"], **version})
        return (200, {}) if is_page else (200, {**stored})

    work = Work()
    running = asyncio.create_task(
        LeaderElection(send, "greeter", namespace="default", identity="a", timing=PATIENT).run(work)
    )
    await within(work.began.wait())
    await eventually(lambda: answered.count(("PUT", False)) > 1)
    assert not work.ended
    await stop(running)
    assert not stored["spec"]["holderIdentity"]


class LeaseServer:
    """The API of one Lease. `responses` are sent, or raised, to the next requests instead."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.responses: list[tuple[int, dict[str, Any]] | Exception] = []
        self.requests: list[str] = []

    async def send(self, method: str, _path: str, body: Any) -> tuple[int, dict[str, Any]]:
        self.requests.append(method)
        if self.responses:
            response = self.responses.pop(0)
            if isinstance(response, Exception):
                raise response
            return response
        if method == "POST" and self.lease is not None:
            return 409, {"reason": "AlreadyExists"}
        if method != "POST" and self.lease is None:
            return 404, {"reason": "NotFound", "details": {"name": "greeter"}}
        if method == "GET":
            return 200, dict(self.lease or {})
        known, new = (lease and lease["metadata"].get("resourceVersion") for lease in (self.lease, body))
        if known != new:
            return 409, {"reason": "Conflict"}
        self.lease = {**body, "metadata": {"name": "greeter", "uid": "u", "resourceVersion": str(len(self.requests))}}
        return 200, dict(self.lease)

    def election(self, identity: str = "a") -> LeaderElection:
        return LeaderElection(self.send, "greeter", namespace="default", identity=identity, timing=PATIENT)


async def test_404s_that_do_not_mean_that_the_lease_is_missing_do_not_end_the_leadership() -> None:
    """Those of a proxy, or of an API server that starts."""
    server, work = LeaseServer(), Work()
    running = asyncio.create_task(server.election().run(work))
    await within(work.began.wait())
    server.responses += [(404, {}), (404, {}), (409, {}), (404, {}), (404, {})]
    answered = len(server.requests) + len(server.responses)
    await eventually(lambda: running.done() or "PUT" in server.requests[answered:])
    assert not work.ended
    await stop(running)


async def test_leader_creates_a_deleted_lease_again() -> None:
    server, work = LeaseServer(), Work()
    running = asyncio.create_task(server.election().run(work))
    await within(work.began.wait())
    server.lease = None
    await eventually(lambda: running.done() or server.lease is not None)
    assert (work.ended, server.lease and server.lease["spec"]["holderIdentity"]) == (False, "a")
    await stop(running)


async def test_leader_stops_work_when_another_replica_has_created_the_deleted_lease() -> None:
    server, work = LeaseServer(), Work()
    running = asyncio.create_task(server.election().run(work))
    await within(work.began.wait())
    taken = {"holderIdentity": "b", "leaseDurationSeconds": 120}
    server.lease = {"metadata": {"name": "greeter", "uid": "v", "resourceVersion": "other"}, "spec": taken}
    server.responses.append((404, {"reason": "NotFound", "details": {"name": "greeter"}}))
    with pytest.raises(LeadershipLost, match="last observed holder: b"):
        await within(running)
    assert (work.ended, server.lease["spec"]) == (True, taken)


async def test_leader_does_not_create_a_deleted_lease_when_its_work_ends() -> None:
    server = LeaseServer()

    async def work() -> None:
        server.lease = None

    await server.election().run(work)
    assert server.lease is None


async def test_unexpected_errors_of_requests_end_neither_the_candidate_nor_the_leader(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as those of a credential that is renewed while no thread can be started."""
    server, work = LeaseServer(), Work()
    server.responses.append(RuntimeError("can't start new thread"))
    election = server.election()
    running = asyncio.create_task(election.run(work))
    await within(work.began.wait())
    server.responses.append(RuntimeError("can't start new thread"))
    answered = len(server.requests) + 1
    await eventually(lambda: running.done() or "PUT" in server.requests[answered:])
    assert (election.is_leader, work.ended) == (True, False)
    server.responses += [RuntimeError("can't start new thread")] * 2
    await stop(running)
    assert running.cancelled()
    assert "lease default/greeter: request failed: can't start new thread" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("holder", ["a", "b"])
async def test_lease_that_was_touched_since_its_last_renewal_is_released_by_its_holder(holder: str) -> None:
    server = LeaseServer()

    async def work() -> None:
        assert server.lease is not None
        server.lease = {
            "metadata": {**server.lease["metadata"], "resourceVersion": "touched", "annotations": {"x": "y"}},
            "spec": {**server.lease["spec"], "holderIdentity": holder},
        }

    await server.election().run(work)
    assert server.lease is not None
    assert server.lease["spec"]["holderIdentity"] == ("" if holder == "a" else "b")
