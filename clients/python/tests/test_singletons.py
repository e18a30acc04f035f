"""Fleet and singleton work: it runs while the daemon grants it, and not twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery import DiscoveryClient, Fleet, Unimplemented
from milo_discovery import _singleton_grants as singleton_grants
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery.testing import FakeDiscovery

from .conftest import AT_ONCE
from .eventually import eventually
from .scripted_daemon import Refusal, ScriptedDaemon

GRANTED = pb.ClaimSingletonsResponse(granted=["cleanup"], valid_for=Duration(seconds=600))
BRIEFLY = pb.ClaimSingletonsResponse(granted=["cleanup"], valid_for=Duration(nanos=400_000_000))
NOTHING = pb.ClaimSingletonsResponse()


class Work:
    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.may_end = asyncio.Event()
        self.errors: list[Exception] = []
        self.may_return = False

    async def __call__(self) -> None:
        self.begun += 1
        if self.errors:
            raise self.errors.pop()
        if self.may_return:
            return
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.ended += 1


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singleton_grants, "CLAIM_INTERVAL_S", 0.05)


@pytest.fixture
async def fleet(client: DiscoveryClient, daemon: ScriptedDaemon, work: Work) -> AsyncIterator[Fleet]:
    fleet = Fleet(client, backoff=AT_ONCE)
    fleet.singleton("cleanup")(work)
    daemon.grants = GRANTED
    async with fleet:
        yield fleet
        work.may_end.set()


async def test_granted_singleton_work_runs_once(fleet, daemon, work):
    waiting, working = {"cleanup": "WAITING"}, {"cleanup": "WORKING"}
    await eventually(lambda: daemon.claims.count(working) > 2)
    granted = daemon.claims.index(working)  # on a busy machine the first claims can time out
    assert daemon.claims == granted * [waiting] + (len(daemon.claims) - granted) * [working]
    assert granted > 0
    assert (work.begun, work.ended) == (1, 0)


async def test_revoked_singleton_work_is_canceled_and_reported_until_it_has_ended(fleet, daemon, work):
    await eventually(lambda: work.begun)
    daemon.grants = NOTHING
    await eventually(lambda: daemon.claims[-1] == {"cleanup": "ENDING"})
    work.may_end.set()
    await eventually(lambda: daemon.claims[-1] == {"cleanup": "WAITING"})
    assert (work.begun, work.ended) == (1, 1)
    daemon.grants = GRANTED
    await eventually(lambda: work.begun == 2)


async def test_singleton_work_ends_at_grant_expiry_if_daemon_does_not_respond(fleet, daemon, work):
    await eventually(lambda: work.begun)
    work.may_end.set()
    daemon.grants = BRIEFLY
    seen = len(daemon.claims)
    await eventually(lambda: len(daemon.claims) > seen + 1)
    daemon.grants = None
    await eventually(lambda: work.ended)


async def test_returned_singleton_work_keeps_its_grant(fleet, daemon, work):
    await eventually(lambda: work.begun)
    daemon.grants = NOTHING
    work.may_end.set()
    work.may_return = True
    await eventually(lambda: work.ended)
    daemon.grants = GRANTED
    await eventually(lambda: work.begun == 2)
    seen = len(daemon.claims)
    await eventually(lambda: len(daemon.claims) > seen + 2)
    assert daemon.claims[-1] == {"cleanup": "WORKING"}
    assert work.begun == 2


async def test_failed_singleton_work_is_restarted(client, daemon, work, caplog):
    fleet = Fleet(client, backoff=AT_ONCE)
    fleet.singleton("cleanup")(work)
    work.errors = [ValueError("once")]
    daemon.grants = GRANTED
    async with fleet:
        await eventually(lambda: work.begun == 2)
        work.may_end.set()
    assert "singleton work cleanup failed; restarting it" in caplog.text


async def test_ended_fleet_ends_its_singleton_work_and_subscription(client, daemon, work):
    fleet = Fleet(client)
    fleet.singleton("cleanup")(work)
    daemon.grants = GRANTED
    async with fleet:
        await eventually(lambda: work.begun)
        work.may_end.set()
    assert work.ended == 1
    assert len(daemon.ended_subscriptions) == 1


async def test_daemon_without_singleton_support_ends_the_fleet(client, daemon, work):
    fleet = Fleet(client)
    fleet.singleton("cleanup")(work)
    daemon.grants = Refusal(grpc.StatusCode.UNIMPLEMENTED)
    with pytest.raises(Unimplemented):
        await fleet.run()
    assert work.begun == 0


async def test_singleton_name_has_one_function(client, work):
    fleet = Fleet(client)
    fleet.singleton("cleanup")(work)
    with pytest.raises(RuntimeError, match="one function"):
        fleet.singleton("cleanup")(work)


async def test_singleton_requires_confirmed_releases(client, work):
    fleet = Fleet(client, confirm_releases=False)
    fleet.singleton("cleanup")(work)
    with pytest.raises(ValueError, match="confirm_releases"):
        await fleet.run()


async def test_fake_discovery_grants_all_singleton_work(work):
    fleet = Fleet(FakeDiscovery())
    fleet.singleton("cleanup")(work)
    async with fleet:
        await eventually(lambda: work.begun)
        work.may_end.set()
