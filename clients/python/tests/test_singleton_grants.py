"""The expiry of singleton grants: on a clock that also advances while the machine is suspended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from datetime import timedelta

from milo_discovery import BackoffPolicy, SyncSingleton
from milo_discovery import _singleton_grants as singleton_grants
from milo_discovery import _singletons as singletons
from milo_discovery import _sync_singleton as sync_singleton
from milo_discovery._singleton_grants import HeldGrants
from milo_discovery._singletons import Singletons
from milo_discovery.model import SingletonGrants, SingletonState

GRANTS = SingletonGrants(granted=frozenset(["cleanup"]), valid_for=timedelta(seconds=10))


class SuspendedClient:
    """A daemon that grants work for ten seconds, and a machine that is suspended for longer after the first answer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.claims: list[SingletonState] = []
        self.claimed_again = asyncio.Event()

    async def claim_singletons(self, subscriber: str, claims: Mapping[str, SingletonState]) -> SingletonGrants:
        self.claims += claims.values()
        if len(self.claims) > 1:
            self.claimed_again.set()
            await asyncio.Event().wait()
        asyncio.get_running_loop().call_later(0.01, setattr, self, "now", 11.0)
        return GRANTS


async def test_singleton_work_ends_at_grant_expiry_before_the_next_claim(monkeypatch):
    client, began, ended = SuspendedClient(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(singletons, "boottime", lambda: client.now)
    monkeypatch.setattr(singleton_grants, "CLAIM_INTERVAL_S", 0.05)
    running = asyncio.create_task(Singletons(client, {"cleanup": work}, BackoffPolicy()).run("me"))
    await began.wait()
    await client.claimed_again.wait()
    assert client.claims[1] is not SingletonState.WORKING
    await ended.wait()
    running.cancel()


def test_sync_singleton_work_ends_at_grant_expiry_before_the_next_claim(monkeypatch):
    claims: list[SingletonState] = []
    now = 0.0

    class Suspended(threading.Event):
        """The wait for the next claim, during which the machine is suspended."""

        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            now = 11.0
            return super().wait(0)

    def claim(subscriber: str, claimed: Mapping[str, SingletonState], limit_s: float) -> SingletonGrants:
        claims.extend(claimed.values())
        if len(claims) > 1:
            may_end.set()
            singleton._closed.set()
        return GRANTS

    def work(ended: threading.Event) -> None:
        ended.wait()
        may_end.wait()

    may_end = threading.Event()
    monkeypatch.setattr(sync_singleton, "boottime", lambda: now)
    singleton = SyncSingleton("cleanup", work, claim, lambda *_: None, backoff=BackoffPolicy(), on_close=lambda _: None)
    singleton._closed = Suspended()
    singleton.run()
    assert claims == [SingletonState.WAITING, SingletonState.ENDING]


class TestHeldGrants:
    def test_singleton_grants_expire_counted_from_their_request(self):
        held = HeldGrants()
        assert (held.held(0.0), held.pause_s(0.0)) == (frozenset(), 3.0)
        held.answered(GRANTS, asked_at=100.0)
        assert held.held(109.9) == {"cleanup"}
        assert (held.pause_s(104.0), held.pause_s(109.0)) == (3.0, 1.0)
        assert held.held(110.0) == frozenset()
        assert held.pause_s(110.0) == 3.0

    def test_expired_singleton_grants_stay_expired_until_the_next_response(self):
        held = HeldGrants()
        held.answered(GRANTS, asked_at=100.0)
        assert held.held(110.0) == frozenset()
        assert held.held(109.0) == frozenset()
        held.answered(GRANTS, asked_at=110.0)
        assert held.held(111.0) == {"cleanup"}
