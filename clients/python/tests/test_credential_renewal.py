"""Tests of credential renewals: which callers wait for a renewal, and which get the cached credential."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from milo_discovery import Cluster, ClusterNotFound, ClusterReport, Kubeconfig, Unavailable, UnusableKubeconfig
from milo_discovery._credential_cache import CredentialCache, CredentialState
from milo_discovery.api_clients import ApiClients
from milo_discovery.credentials import AsyncRenewer, LoopBridge, PushedKubeconfigs
from milo_discovery.engaged_cluster import EngagedCluster

from .conftest import AT_ONCE
from .eventually import eventually
from .kubeconfigs import text, value

LIFE = timedelta(minutes=10)
FRESH, DUE, EXPIRED = timedelta(), 0.6 * LIFE, LIFE
CLUSTER = Cluster(name="a", incarnation="a-1")
AWAY = Unavailable("connect failed", code="UNAVAILABLE")


def kubeconfig(token: str, age: timedelta = FRESH) -> Kubeconfig:
    return value(text(token=token), now=datetime.now(UTC), age=age, life=LIFE)


async def never() -> Kubeconfig:
    """Wait for a kubeconfig that does not come."""
    return await asyncio.get_running_loop().create_future()


class Daemon:
    """A fake daemon that issues a kubeconfig when the test sets the answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[Kubeconfig] = asyncio.get_running_loop().create_future()

    async def issue(self) -> Kubeconfig:
        self.asked += 1
        return await asyncio.shield(self.answer)

    async def issue_kubeconfig(self, *_: object, **__: object) -> Kubeconfig:
        return await self.issue()

    async def get(self, name: str) -> ClusterReport:
        raise AssertionError(name)


@pytest.fixture
async def daemon():
    return Daemon()


@pytest.fixture
async def renewal(daemon):
    renewal = AsyncRenewer("a", daemon.issue)
    yield renewal
    await renewal.close()


class TestAsyncRenewer:
    async def test_fresh_credential_is_used_without_a_call(self, renewal, daemon):
        renewal.cache.offer(kubeconfig("held"), datetime.now(UTC))
        assert (await renewal.access()).token == "held"
        assert daemon.asked == 0

    async def test_valid_credential_is_used_during_a_renewal(self, renewal, daemon):
        renewal.cache.offer(kubeconfig("held", DUE), datetime.now(UTC))
        assert {(await renewal.access()).token for _ in range(100)} == {"held"}
        await eventually(lambda: daemon.asked)
        daemon.answer.set_result(kubeconfig("next"))
        await renewal.start_renewal()
        assert (await renewal.access()).token == "next"
        assert daemon.asked == 1

    async def test_callers_without_a_credential_share_one_renewal(self, renewal, daemon):
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(renewal.access()) for _ in range(100)]
            await eventually(lambda: daemon.asked)
            daemon.answer.set_result(kubeconfig("next"))
        assert {task.result().token for task in waiting} == {"next"}
        assert daemon.asked == 1

    async def test_cancelled_caller_does_not_cancel_the_renewal(self, renewal, daemon):
        impatient, patient = asyncio.create_task(renewal.access()), asyncio.create_task(renewal.access())
        await eventually(lambda: daemon.asked)
        impatient.cancel()
        await asyncio.wait([impatient])
        daemon.answer.set_result(kubeconfig("next"))
        assert (await patient).token == "next"

    async def test_failed_renewal_is_logged_and_a_valid_credential_kept(self, renewal, daemon, caplog):
        renewal.cache.offer(kubeconfig("held", DUE), datetime.now(UTC))
        daemon.answer.set_exception(AWAY)
        with caplog.at_level(logging.WARNING):
            assert (await renewal.access()).token == "held"
            await eventually(lambda: caplog.messages)
        assert caplog.messages == ["credential of cluster a not renewed; retrying: connect failed"]
        assert (await renewal.access()).token == "held"

    async def test_consecutive_failures_are_logged_once_and_the_recovery_too(
        self, renewal, daemon, caplog, monkeypatch
    ):
        monkeypatch.setattr("milo_discovery._credential_cache._RETRY", AT_ONCE)
        renewal.cache = CredentialCache()
        renewal.cache.offer(kubeconfig("held", DUE), datetime.now(UTC))
        daemon.answer.set_exception(AWAY)
        with caplog.at_level(logging.INFO):
            for attempt in range(1, 4):
                await eventually(lambda: renewal.state() is CredentialState.REFRESH_DUE)
                assert (await renewal.access()).token == "held"
                await eventually(lambda attempt=attempt: daemon.asked == attempt)
            daemon.answer = asyncio.get_running_loop().create_future()
            daemon.answer.set_result(kubeconfig("next"))
            await eventually(lambda: renewal.state() is CredentialState.REFRESH_DUE)
            await renewal.start_renewal()
        assert caplog.messages == [
            "credential of cluster a not renewed; retrying: connect failed",
            "credential of cluster a renewed",
        ]

    async def test_callers_without_a_valid_credential_get_the_last_error_until_the_next_attempt(self, renewal, daemon):
        daemon.answer.set_exception(AWAY)
        for _ in range(100):
            with pytest.raises(Unavailable):
                await renewal.access()
        assert daemon.asked == 1

    @pytest.mark.parametrize("age", [DUE, EXPIRED], ids=["due", "expired"])
    async def test_credential_past_its_refresh_on_arrival_is_not_requested_at_each_use(self, renewal, daemon, age):
        """As if the clock of this machine were ahead."""
        daemon.answer.set_result(kubeconfig("late", age))
        for _ in range(100):
            assert (await renewal.access()).token == "late"
            assert (await renewal.access_after_401("late")).token == "late"
        assert daemon.asked == 2

    async def test_failed_renewal_raises_without_a_valid_credential(self, renewal, daemon):
        renewal.cache.offer(kubeconfig("held", EXPIRED), datetime.now(UTC))
        daemon.answer.set_exception(AWAY)
        with pytest.raises(Unavailable):
            await renewal.access()

    async def test_pushed_credentials_are_used_without_a_call(self, daemon):
        sent = [kubeconfig("first")]
        renewal = AsyncRenewer("a", daemon.issue, PushedKubeconfigs(lambda: sent[-1], asyncio.Future, lambda: ""))
        assert (await renewal.access()).token == "first"
        sent.append(kubeconfig("second", -timedelta(seconds=1)))
        assert (await renewal.access()).token == "second"
        assert daemon.asked == 0

    async def test_pushed_kubeconfig_that_is_unusable_does_not_replace_the_credential(self, daemon, caplog):
        """Found by a reader: each request failed, although the credential before was valid."""
        unusable = replace(kubeconfig("second"), kubeconfig=text(server="https://alpha.test", username="u"))
        sent = [kubeconfig("first")]
        renewal = AsyncRenewer("a", daemon.issue, PushedKubeconfigs(lambda: sent[-1], asyncio.Future, lambda: ""))
        assert (await renewal.access()).token == "first"
        sent.append(unusable)
        assert [(await renewal.access()).token for _ in range(2)] == ["first"] * 2
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "credential of cluster a not renewed: the kubeconfig" in caplog.text
        sent.append(kubeconfig("third", -timedelta(seconds=1)))
        assert (await renewal.access()).token == "third"
        assert daemon.asked == 0

    async def test_credential_is_requested_if_only_an_unusable_one_was_pushed(self, daemon):
        unusable = replace(kubeconfig("first"), kubeconfig=b"{}")
        renewal = AsyncRenewer("a", daemon.issue, PushedKubeconfigs(lambda: unusable, never, lambda: ""))
        daemon.answer.set_result(kubeconfig("requested"))
        assert (await renewal.access()).token == "requested"
        await renewal.close()

    @pytest.mark.parametrize("after_401", [False, True])
    async def test_pushed_credential_interrupts_the_wait_for_a_renewal(self, daemon, after_401):
        cluster = EngagedCluster(CLUSTER, kubeconfig("refused") if after_401 else None, ApiClients(daemon))
        renewal = cluster.credentials()
        waiting = asyncio.create_task(renewal.access_after_401("refused") if after_401 else renewal.access())
        await eventually(lambda: daemon.asked)
        cluster.refresh(CLUSTER)  # an update without a kubeconfig does not end the wait
        await asyncio.sleep(0)
        assert not waiting.done()
        cluster.refresh(CLUSTER, kubeconfig("pushed", -timedelta(seconds=1)))
        assert (await waiting).token == "pushed"
        await renewal.close()

    @pytest.mark.parametrize("is_pushed", [False, True])
    async def test_credential_of_a_former_endpoint_is_not_used(self, daemon, is_pushed):
        former, moved = (replace(CLUSTER, endpoint=f"https://{name}.test") for name in ("former", "moved"))
        cluster = EngagedCluster(former, kubeconfig("former") if is_pushed else None, ApiClients(daemon))
        if not is_pushed:
            daemon.answer.set_result(kubeconfig("former"))
        renewal = cluster.credentials()
        assert (await renewal.access()).token == "former"
        daemon.answer = asyncio.get_running_loop().create_future()
        cluster.refresh(moved)
        assert cluster.kubeconfig is None
        waiting, asked = asyncio.create_task(renewal.access()), daemon.asked
        await eventually(lambda: daemon.asked > asked)
        daemon.answer.set_result(kubeconfig("moved"))
        assert (await waiting).token == "moved"
        await renewal.close()

    async def test_response_for_a_former_endpoint_is_requested_again(self, daemon):
        former, moved = (replace(CLUSTER, endpoint=f"https://{name}.test") for name in ("former", "moved"))
        cluster = EngagedCluster(former, None, ApiClients(daemon))
        renewal = cluster.credentials()
        waiting = asyncio.create_task(renewal.access())
        await eventually(lambda: daemon.asked)
        answer, daemon.answer = daemon.answer, asyncio.get_running_loop().create_future()
        cluster.refresh(moved)
        answer.set_result(kubeconfig("former"))
        daemon.answer.set_result(kubeconfig("moved"))
        assert (await waiting).token == "moved"
        assert daemon.asked == 2
        await renewal.close()

    @pytest.mark.parametrize("after_401", [False, True])
    async def test_disengagement_interrupts_the_wait_for_a_renewal(self, daemon, after_401):
        cluster = EngagedCluster(CLUSTER, kubeconfig("refused") if after_401 else None, ApiClients(daemon))
        renewal = cluster.credentials()
        waiting = asyncio.create_task(renewal.access_after_401("refused") if after_401 else renewal.access())
        await eventually(lambda: daemon.asked)
        cluster.disengage()
        with pytest.raises(ClusterNotFound):
            await waiting
        await renewal.close()

    async def test_refused_token_is_replaced_by_a_newer_one(self, renewal, daemon):
        renewal.cache.offer(kubeconfig("revoked"), datetime.now(UTC))
        daemon.answer.set_result(kubeconfig("next"))
        assert (await renewal.access_after_401("revoked")).token == "next"
        assert (await renewal.access_after_401("revoked")).token == "next"
        assert daemon.asked == 1

    @pytest.mark.parametrize("failure", [AWAY, RuntimeError("can't start new thread")])
    async def test_refused_token_is_kept_if_the_renewal_fails(self, renewal, daemon, failure):
        renewal.cache.offer(kubeconfig("revoked"), datetime.now(UTC))
        daemon.answer.set_exception(failure)
        assert (await renewal.access_after_401("revoked")).token == "revoked"


class TestLoopBridge:
    async def test_thread_waits_for_the_renewal_on_the_event_loop(self, renewal, daemon):
        daemon.answer.set_result(kubeconfig("next"))
        assert (await asyncio.to_thread(LoopBridge(renewal).access)).token == "next"

    async def test_thread_with_a_valid_credential_does_not_wait_for_its_renewal(self, renewal, daemon):
        renewal.cache.offer(kubeconfig("held", DUE), datetime.now(UTC))
        assert (await asyncio.to_thread(LoopBridge(renewal).access)).token == "held"
        await eventually(lambda: daemon.asked == 1)

    async def test_waiting_for_a_renewal_on_the_thread_of_the_event_loop_is_refused(self, renewal):
        with pytest.raises(RuntimeError, match=r"api_client\(\)"):
            LoopBridge(renewal).access()

    async def test_valid_credential_is_returned_on_the_thread_of_the_event_loop(self, renewal):
        renewal.cache.offer(kubeconfig("held"), datetime.now(UTC))
        assert LoopBridge(renewal).access().token == "held"


async def test_unexpected_error_of_a_renewal_means_no_credential_for_its_callers_and_the_next_one_succeeds(
    renewal, daemon
):
    daemon.answer.set_exception(RuntimeError("can't start new thread"))
    with pytest.raises(UnusableKubeconfig, match="no kubeconfig was issued: RuntimeError: can't start new thread"):
        await renewal.access()
    with pytest.raises(UnusableKubeconfig):  # without another request
        await renewal.access()
    daemon.answer = asyncio.get_running_loop().create_future()
    daemon.answer.set_result(kubeconfig("next"))
    await renewal.start_renewal()
    assert (await renewal.access()).token == "next"
