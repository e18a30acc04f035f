"""Singleton work of the blocking client: it runs in a thread while the daemon grants it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery import SyncDiscoveryClient, SyncSingleton, Unavailable, Unimplemented
from milo_discovery import _singleton_grants as singleton_grants
from milo_discovery import _sync_singleton as sync_singleton
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery.model import SingletonGrants, SingletonState

from .conftest import AT_ONCE
from .eventually import eventually
from .scripted_daemon import Refusal

GRANTED = SingletonGrants(granted=frozenset(["cleanup"]), valid_for=timedelta(seconds=600))
NOTHING = SingletonGrants()


class Work:
    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.may_end = threading.Event()
        self.may_return = False
        self.errors: list[Exception] = []

    def __call__(self, ended: threading.Event) -> None:
        self.begun += 1
        if self.errors:
            raise self.errors.pop()
        if self.may_return:
            return
        ended.wait()
        self.may_end.wait()
        self.ended += 1


class Daemon:
    """Answers claims, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.claims: list[SingletonState] = []
        self.ended: list[str] = []
        self.answer: SingletonGrants | Exception = GRANTED
        self.claimed: Callable[[], None] = lambda: None

    def claim(self, subscriber: str, claims: Mapping[str, SingletonState], limit_s: float) -> SingletonGrants:
        self.claims += claims.values()
        self.claimed()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def end(self, subscriber: str, limit_s: float) -> None:
        self.ended.append(subscriber)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    scripted = Daemon()
    monkeypatch.setattr(sync_singleton, "boottime", lambda: scripted.now)
    monkeypatch.setattr(singleton_grants, "CLAIM_INTERVAL_S", 0.02)
    return scripted


@pytest.fixture
def singleton(scripted: Daemon, work: Work) -> SyncSingleton:
    return SyncSingleton("cleanup", work, scripted.claim, scripted.end, backoff=AT_ONCE, on_close=lambda _: None)


@pytest.fixture
def running(singleton: SyncSingleton, work: Work) -> Iterator[Future[None]]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool.submit(singleton.run)
        work.may_end.set()
        singleton.close()


async def test_granted_sync_singleton_work_runs_once_until_closed(running, singleton, scripted, work):
    await eventually(lambda: len(scripted.claims) > 3)
    assert scripted.claims[:3] == [SingletonState.WAITING, SingletonState.WORKING, SingletonState.WORKING]
    assert (work.begun, work.ended) == (1, 0)
    work.may_end.set()
    singleton.close()
    assert (work.begun, work.ended, len(scripted.ended)) == (1, 1, 1)
    running.result()


async def test_revoked_sync_singleton_work_is_reported_until_it_has_ended(running, scripted, work):
    await eventually(lambda: work.begun)
    scripted.answer = NOTHING
    await eventually(lambda: scripted.claims[-1] is SingletonState.ENDING)
    scripted.answer = GRANTED
    seen = len(scripted.claims)
    await eventually(lambda: len(scripted.claims) > seen + 2)
    assert work.begun == 1, "it is begun again only when it has returned"
    work.may_end.set()
    await eventually(lambda: work.begun == 2)


async def test_sync_singleton_work_ends_at_grant_expiry_if_daemon_does_not_respond(running, scripted, work):
    await eventually(lambda: work.begun)
    scripted.answer = Unavailable("killed", code=grpc.StatusCode.UNAVAILABLE)
    work.may_end.set()
    seen = len(scripted.claims)
    await eventually(lambda: len(scripted.claims) > seen + 2)
    assert work.ended == 0
    scripted.now = 601.0
    await eventually(lambda: work.ended)
    await eventually(lambda: scripted.claims[-1] is SingletonState.WAITING)


async def test_returned_sync_singleton_work_keeps_its_grant(running, scripted, work):
    work.may_return = True
    await eventually(lambda: work.begun)
    seen = len(scripted.claims)
    await eventually(lambda: len(scripted.claims) > seen + 2)
    assert scripted.claims[-1] is SingletonState.WORKING
    assert work.begun == 1


async def test_failed_sync_singleton_work_is_restarted(scripted, singleton, work, caplog):
    work.errors = [ValueError("once")]
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(singleton.run)
        await eventually(lambda: work.begun == 2)
        work.may_end.set()
        singleton.close()
    assert "singleton work cleanup failed; restarting it" in caplog.text


async def test_sync_singleton_work_may_close_its_singleton(scripted, singleton, work):
    singleton = SyncSingleton(
        "cleanup", lambda _: singleton.close(), scripted.claim, scripted.end, backoff=AT_ONCE, on_close=lambda _: None
    )
    singleton.run()
    assert len(scripted.ended) == 1


async def test_sync_singleton_may_be_closed_in_the_thread_that_runs_it(singleton, scripted, work):
    scripted.claimed = singleton.close  # as a signal handler does
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(singleton.run)
        await eventually(running.done)
    assert (work.begun, len(scripted.ended)) == (0, 1)


class TestClient:
    async def test_client_runs_granted_work_until_it_is_closed(self, daemon, work, monkeypatch):
        monkeypatch.setattr(singleton_grants, "CLAIM_INTERVAL_S", 0.02)
        daemon.grants = pb.ClaimSingletonsResponse(granted=["cleanup"], valid_for=Duration(seconds=600))
        sync_client = SyncDiscoveryClient(daemon.address, backoff=AT_ONCE)
        with ThreadPoolExecutor(max_workers=2) as pool:
            running = pool.submit(sync_client.singleton("cleanup", work).run)
            await eventually(lambda: daemon.claims[-1:] == [{"cleanup": "WORKING"}])
            work.may_end.set()
            closing = pool.submit(sync_client.close)
            await eventually(lambda: closing.done() and running.done())
            running.result()
            closing.result()
        assert len(daemon.ended_subscriptions) == 1
        assert work.ended == 1

    async def test_unresponsive_daemon_does_not_delay_the_end_of_singleton_grant(self, daemon, work, monkeypatch):
        monkeypatch.setattr(singleton_grants, "CLAIM_INTERVAL_S", 0.1)
        daemon.grants = pb.ClaimSingletonsResponse(granted=["cleanup"], valid_for=Duration(nanos=300_000_000))
        sync_client = SyncDiscoveryClient(daemon.address, backoff=AT_ONCE)
        with ThreadPoolExecutor(max_workers=2) as pool:
            pool.submit(sync_client.singleton("cleanup", work).run)
            await eventually(lambda: work.begun)
            work.may_end.set()
            daemon.grants = None
            await eventually(lambda: work.ended)
            closing = pool.submit(sync_client.close)
            await eventually(closing.done)

    async def test_daemon_without_singleton_support_ends_the_run(self, daemon, work):
        daemon.grants = Refusal(grpc.StatusCode.UNIMPLEMENTED)
        sync_client = SyncDiscoveryClient(daemon.address, backoff=AT_ONCE)
        with ThreadPoolExecutor(max_workers=1) as pool:
            running = pool.submit(sync_client.singleton("cleanup", work).run)
            await eventually(running.done)
            with pytest.raises(Unimplemented):
                running.result()
            pool.submit(sync_client.close)
        assert work.begun == 0
