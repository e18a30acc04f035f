"""Kubeconfigs with credentials from leases, whatever the state of the issuer's backend."""

import asyncio
import base64
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers import issuer
from milo_discoveryd.credentials.issuers.issuer import EachSourceIssuer, Issuer, MintRequest, Scope
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs import credential_budget, minter, revocations
from milo_discoveryd.kubeconfigs import kubeconfigs as kubeconfigs_module
from milo_discoveryd.kubeconfigs.cluster_ca import cluster_trust
from milo_discoveryd.kubeconfigs.credential_lease import CredentialLease
from milo_discoveryd.kubeconfigs.kubeconfigs import (
    MANY_LEASES,
    CredentialLimits,
    IssuerAssignment,
    Kubeconfigs,
    NoIssuerError,
)
from milo_discoveryd.kubeconfigs.lease_handle import CredentialUnavailableError, Issuance
from milo_discoveryd.kubeconfigs.lease_table import LeaseEntry, LeaseKey
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust, IssuedKubeconfig
from milo_discoveryd.model.cluster import Cluster, DeclaredTarget
from milo_discoveryd.rights.rights import UNLIMITED, Recipient, Terms
from milo_discoveryd.sources.project_control_plane import ProjectControlPlaneKind
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.metrics import MeasuredDaemon, Metrics
from milo_kube.credential import Credential, CredentialError
from milo_kube.credential_providers import StaticCredential
from milo_kube.label_selector import parse
from milo_kube.moment import Moment
from milo_kube.upstream import Upstream
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.support.eventually import LIMIT_S, eventually
from tests.support.logs import capture_logs
from tests.unit.fleet.fleets import readable_log
from tests.unit.kubeconfigs.backend import CANARY, Backend, RevokingBackend, a_cluster

ME = Recipient(Caller(peer="unix:", listener="unix:///d.sock", uid=1000), "operators")
ALPHA = a_cluster()


class Wall:
    """A wall clock that a test can set."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a test whose credentials expire independent of the machine's speed."""
    return lambda: run_on(VirtualLoop(Random(1)), test())


@asynccontextmanager
async def issuing(
    *issuers: Issuer | IssuerAssignment,
    wall: Callable[[], float] = lambda: time.time(),  # noqa: PLW0108 - time.time is replaced after the import
    metrics: Metrics | None = None,
    may_issue: Callable[[], bool] = lambda: True,
    **limits: int,
) -> AsyncIterator[Kubeconfigs]:
    kubeconfigs = Kubeconfigs(
        [made if isinstance(made, IssuerAssignment) else IssuerAssignment(made) for made in issuers],
        Issuance(
            trust=lambda *_: ClusterTrust(b"CA"),
            metrics=(metrics or Metrics()).credentials,
            audit=Audit(Metrics().audit),
            may_issue=may_issue,
            draw=Random(1).random,
            wall=wall,
        ),
        CredentialLimits(900, 600, **limits),
    )
    running = asyncio.create_task(kubeconfigs.run())
    try:
        yield kubeconfigs
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def token_in(made: IssuedKubeconfig) -> str:
    assert made.credential is not None
    assert made.credential.credential.token is not None
    return made.credential.credential.token.reveal()


def token(kubeconfigs: Kubeconfigs, cluster: Cluster = ALPHA, ttl_s: float | None = None) -> str:
    """Return the token that is issued now."""
    return token_in(kubeconfigs.require_lease(cluster, ttl_s, UNLIMITED).issue("epoch.1", ME))


async def got(kubeconfigs: Kubeconfigs, cluster: Cluster = ALPHA, ttl_s: float | None = None) -> str:
    lease = kubeconfigs.require_lease(cluster, ttl_s, UNLIMITED)
    await lease.wait_for_credential()
    return token_in(lease.issue("epoch.1", ME))


async def test_all_clusters_of_an_identity_share_one_credential() -> None:
    backend = Backend()
    async with issuing(backend) as kubeconfigs:
        given = {await got(kubeconfigs, a_cluster(f"p-{number}", number + 1)) for number in range(10_000)}
    assert (len(given), len(backend.asked)) == (1, 1)


async def test_per_cluster_credential_is_issued_for_each_cluster_and_incarnation() -> None:
    backend = Backend(Scope.CLUSTER)
    async with issuing(backend) as kubeconfigs:
        for name, incarnation in (("alpha", 1), ("beta", 2), ("alpha", 3)):
            assert f"{CANARY}-{name}-" in await got(kubeconfigs, a_cluster(name, incarnation))
    assert [request.cluster and request.cluster.incarnation for request in backend.asked] == [1, 2, 3]


async def test_cluster_with_changed_endpoint_gets_another_credential() -> None:
    backend = Backend(Scope.CLUSTER)
    moved = replace(ALPHA, target=replace(ALPHA.target, place=("https://elsewhere.test",)))
    async with issuing(backend) as kubeconfigs:
        before = await got(kubeconfigs)
        assert kubeconfigs.held(moved) is None
        assert await got(kubeconfigs, moved) != before
        assert [request.cluster and request.cluster.target.endpoint for request in backend.asked] == [
            "https://alpha.test",
            "https://elsewhere.test",
        ]
        kubeconfigs.disengaged(moved)
        assert kubeconfigs.health()[0].leases == 0


async def test_no_lease_of_a_former_endpoint_or_incarnation_is_kept() -> None:
    """Each has a credential that may be valid for years, and a tenant can change the endpoint all the time."""

    def entries() -> list[LeaseEntry]:
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, LeaseEntry)]

    def kept() -> int:
        return len(entries()) - len(of_other_tests)

    of_other_tests = entries()
    async with issuing(Backend(Scope.CLUSTER, life_s=3600)) as kubeconfigs:
        for number in range(5):
            moved = replace(ALPHA, target=replace(ALPHA.target, place=(f"https://{number}.test",)))
            await got(kubeconfigs, moved)
            assert kubeconfigs.health()[0].leases == 1
        assert kept() == 1
        kubeconfigs.disengaged(moved)
        for number in range(5):
            again = a_cluster("beta", number + 10)
            await got(kubeconfigs, again)
            kubeconfigs.disengaged(again)
        assert kept() == 0


async def test_shared_credential_serves_cluster_with_changed_endpoint() -> None:
    backend = Backend()
    moved = replace(ALPHA, target=replace(ALPHA.target, place=("https://elsewhere.test",)))
    async with issuing(backend) as kubeconfigs:
        assert await got(kubeconfigs) == await got(kubeconfigs, moved)


async def test_credential_lease_has_at_most_one_request_in_flight() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.gate.clear()
    async with issuing(backend) as kubeconfigs:
        asking = [asyncio.create_task(got(kubeconfigs)) for _ in range(100)]
        await eventually(lambda: backend.at_once == 1)
        backend.gate.set()
        assert len(set(await asyncio.gather(*asking))) == 1
    assert len(backend.asked) == 1


async def test_hanging_issuer_does_not_delay_valid_credentials() -> None:
    backend = Backend(life_s=4)
    async with issuing(backend) as kubeconfigs:
        first = await got(kubeconfigs)
        backend.gate.clear()
        await eventually(lambda: backend.at_once == 1)
        async with asyncio.timeout(2):
            for _ in range(100):
                assert await got(kubeconfigs) == first


@in_virtual_time
async def test_credential_is_renewed_before_expiry() -> None:
    backend = Backend(life_s=0.8)
    async with issuing(backend) as kubeconfigs:
        seen: list[str] = []
        while len(set(seen)) < 6:
            seen.append(await got(kubeconfigs))
            await asyncio.sleep(0.01)
    assert list(dict.fromkeys(seen)) == [key for key, _ in groupby(seen)], "the backend returned an older token"


@in_virtual_time
async def test_kubeconfigs_have_the_last_credential_until_its_expiry_while_the_issuer_is_down() -> None:
    backend = Backend(life_s=1.0)
    async with issuing(backend) as kubeconfigs:
        first = await got(kubeconfigs)
        backend.failure = BackendError("the backend is down")

        async def until_it_is_over() -> None:
            while await got(kubeconfigs) == first:  # noqa: ASYNC110 - virtual time passes
                await asyncio.sleep(0.01)

        with pytest.raises(CredentialUnavailableError, match="the backend is down") as raised:
            await until_it_is_over()
        assert raised.value.retry_after_s >= 1
        assert kubeconfigs.health()[0].problem == "the backend is down"
        assert kubeconfigs.problem(ALPHA, UNLIMITED) == "the backend is down"
        backend.failure = None
        await eventually(lambda: not kubeconfigs.health()[0].problem)
        assert await got(kubeconfigs) != first
        assert kubeconfigs.problem(ALPHA, UNLIMITED) is None


async def test_first_kubeconfig_request_waits_for_its_credential_and_fails_if_the_issuer_fails() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.gate.clear()
    async with issuing(backend) as kubeconfigs:
        asking = asyncio.create_task(got(kubeconfigs))
        await eventually(lambda: backend.at_once == 1)
        assert not asking.done()
        backend.failure = BackendError("down")
        backend.gate.set()
        with pytest.raises(CredentialUnavailableError, match="down"):
            await asking


async def test_hanging_credential_issuer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "MINT_TIMEOUT_S", 0.05)
    backend = Backend()
    backend.gate.clear()
    async with issuing(backend) as kubeconfigs:
        with pytest.raises(CredentialUnavailableError, match=r"backend did not answer within 0\.05 s"):
            await got(kubeconfigs)


class Timed(Backend):
    """An issuer with its own timeout."""

    timeout_s = LIMIT_S


async def test_credential_issuer_with_its_own_timeout_is_not_canceled_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "MINT_TIMEOUT_S", 0.0)
    backend = Timed()
    async with issuing(backend) as kubeconfigs:
        assert await got(kubeconfigs) in backend.given


async def test_credential_issuer_not_allowed_by_rule_is_not_used() -> None:
    one, other = Backend(), Backend()
    one.name, other.name = "one", "other"
    to = Recipient(ME.caller, "some", Terms(issuers=frozenset({"other"}), max_ttl_s=60.0))
    async with issuing(one, other) as kubeconfigs:
        lease = kubeconfigs.require_lease(ALPHA, 600, to.terms)
        await lease.wait_for_credential()
        assert token_in(lease.issue("epoch.1", to)) in other.given
        assert lease.key.issuer == "other"
        assert lease.key.ttl_s <= 60
        none = Terms(issuers=frozenset({"none"}))
        assert kubeconfigs.find(ALPHA, None, none) is None
        assert isinstance(await kubeconfigs.refusal(none), NoIssuerError)
        with pytest.raises(NoIssuerError, match="that the rule for this caller allows"):
            kubeconfigs.require_lease(ALPHA, None, none)


async def test_unsuitable_credential_is_refused_permanently() -> None:
    backend = Backend()
    backend.failure = UnfitError("it lives for ever")
    async with issuing(backend) as kubeconfigs:
        with pytest.raises(UnfitError, match="it lives for ever"):
            await got(kubeconfigs)
        refusal = await kubeconfigs.refusal(UNLIMITED)
        assert str(refusal) == "it lives for ever"


async def test_kubeconfig_requests_without_a_credential_issuer_are_refused() -> None:
    async with issuing() as kubeconfigs:
        with pytest.raises(NoIssuerError, match="no credential issuer is configured"):
            await got(kubeconfigs)
        assert isinstance(await kubeconfigs.refusal(UNLIMITED), NoIssuerError)
        with pytest.raises(NoIssuerError):
            kubeconfigs.require_lease(ALPHA, None, UNLIMITED).issue_exec("epoch.1", ME)


async def test_first_credential_issuer_whose_selector_matches_serves_cluster() -> None:
    one, other = Backend(), Backend()
    one.name, other.name = "one", "other"
    async with issuing(
        IssuerAssignment(one, parse("env=prod")), IssuerAssignment(other, parse("env=dev"))
    ) as kubeconfigs:
        prod, dev, none = (a_cluster("a", 1, env="prod"), a_cluster("b", 2, env="dev"), a_cluster("c", 3))
        assert await got(kubeconfigs, prod) in one.given
        assert await got(kubeconfigs, dev) in other.given
        assert kubeconfigs.find(none, None, UNLIMITED) is None
        assert kubeconfigs.problem(none, UNLIMITED) is None
        with pytest.raises(NoIssuerError, match="its labels and source match no entry"):
            await got(kubeconfigs, none)
        assert await kubeconfigs.refusal(UNLIMITED) is None
        assert [health.name for health in kubeconfigs.health()] == ["one", "other"]


@pytest.mark.parametrize(
    ("asked_s", "minted_s"), [(None, 600), (60, 60), (89, 60), (899, 600), (900, 900), (86400, 900), (3, 2), (0.5, 1)]
)
async def test_ttl_is_capped_and_rounded_down(asked_s: float | None, minted_s: float) -> None:
    backend = Backend(Scope.CLUSTER, life_s=1e6, takes_ttl=True)
    async with issuing(backend) as kubeconfigs:
        await got(kubeconfigs, ALPHA, asked_s)
    assert [wanted.ttl_s for wanted in backend.asked] == [minted_s]


async def test_kubeconfig_has_the_expiry_of_its_credential_and_an_earlier_refresh_time() -> None:
    backend = Backend(life_s=100)
    async with issuing(backend) as kubeconfigs:
        lease = kubeconfigs.require_lease(ALPHA, 10, UNLIMITED)
        await lease.wait_for_credential()
        made = lease.issue("epoch.1", ME)
    assert made.credential is not None
    assert made.expires_at == made.credential.expires_at
    assert made.refresh_at is not None
    assert made.issued_at + 49 < made.refresh_at < made.issued_at + 61


async def test_unused_credential_lease_is_not_renewed_indefinitely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minter, "CHECK_EVERY_S", 0.02)
    backend = Backend(Scope.CLUSTER, life_s=0.8)
    async with issuing(backend) as kubeconfigs:
        await got(kubeconfigs)
        await eventually(lambda: kubeconfigs.health()[0].leases == 0)
    assert len(backend.asked) == 2


@in_virtual_time
async def test_caller_that_asks_for_a_short_lifetime_gets_a_credential_at_any_time() -> None:
    """Found by a reader: after the first ones, there was none for half of the time."""
    backend = Backend(Scope.CLUSTER, takes_ttl=True)
    async with issuing(backend) as kubeconfigs:
        for _ in range(600):
            await got(kubeconfigs, ttl_s=10)
            await asyncio.sleep(0.1)
    assert 10 <= len(backend.asked) <= 20


@in_virtual_time
async def test_credentials_of_a_cluster_that_are_valid_for_less_than_a_caller_asks_are_requested_at_intervals() -> None:
    backend = Backend(Scope.CLUSTER, life_s=0.4, takes_ttl=True)
    async with issuing(backend) as kubeconfigs:
        for _ in range(600):
            with suppress(CredentialUnavailableError):
                await got(kubeconfigs, ttl_s=600)
            await asyncio.sleep(0.1)
    assert 4 <= len(backend.asked) <= 5


@in_virtual_time
async def test_credentials_of_a_cluster_that_expire_at_once_are_requested_at_intervals() -> None:
    backend = Backend(Scope.CLUSTER, life_s=0.4)
    async with issuing(backend) as kubeconfigs:
        problems = set[str | None]()
        until = asyncio.get_running_loop().time() + 60
        while asyncio.get_running_loop().time() < until:
            with suppress(CredentialUnavailableError):
                await got(kubeconfigs)
            problems.add(kubeconfigs.problem(ALPHA, UNLIMITED))
            await asyncio.sleep(0.1)
    assert 4 <= len(backend.asked) <= 5
    assert any("expired 19.6 s before the next may be requested" in str(problem) for problem in problems)


async def test_credential_requests_in_flight_are_limited() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.gate.clear()
    async with issuing(backend, concurrency=5, per_second=10_000) as kubeconfigs:
        for number in range(100):
            kubeconfigs.require_lease(a_cluster(f"p-{number}", number + 1), None, UNLIMITED).credential()
        await eventually(lambda: backend.at_once == 4)
        backend.gate.set()
        await eventually(lambda: len(backend.given) == 100)
    assert backend.most_at_once == 4


async def test_credential_issuer_failure_is_logged_as_warning_once_a_credential_was_requested() -> None:
    backend = Backend()
    backend.failure = BackendError("down", retry_after_s=0.01)
    with capture_logs() as lines:
        async with issuing(backend) as kubeconfigs:
            await eventually(lambda: len(backend.asked) == 3)
            levels = [line["log_level"] for line in lines]
            kubeconfigs.require_lease(ALPHA, None, UNLIMITED).credential()
            tried = len(backend.asked)
            await eventually(lambda: len(backend.asked) > tried + 2)
    assert levels == ["info"]
    assert [line["log_level"] for line in lines] == ["info", "warning"]
    assert {line["event"] for line in lines} == {"credential issuer failed"}


async def test_failing_credential_issuer_is_retried_by_one_credential_lease_at_a_time() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.failure = BackendError("down")
    async with issuing(backend, concurrency=5, per_second=10_000) as kubeconfigs:
        for number in range(50):
            kubeconfigs.require_lease(a_cluster(f"p-{number}", number + 1), None, UNLIMITED).credential()
        await eventually(lambda: len(backend.asked) >= 50)
        backend.gate.clear()
        backend.most_at_once = 0
        await eventually(lambda: backend.at_once == 1)
        backend.failure = None
        backend.gate.set()
        await eventually(lambda: len(backend.given) == 50)
    assert backend.most_at_once <= 5


class Unreachable(Backend):
    """An issuer whose connections time out."""

    async def mint(self, request: MintRequest) -> IssuedCredential:
        self.asked.append(request)
        await asyncio.sleep(10.0)
        raise BackendError("no connection")


@in_virtual_time
async def test_source_whose_api_server_cannot_be_reached_delays_no_credential_of_another_source() -> None:
    down, healthy = Unreachable(Scope.CLUSTER), Backend(Scope.CLUSTER)

    def of(source: str, number: int) -> Cluster:
        cluster = a_cluster(f"{source}#p-{number}", number)
        target = replace(cluster.target, source=source, organization=f"{source}-{number}")
        return replace(cluster, target=target)

    async with issuing(EachSourceIssuer({"down": down, "healthy": healthy})) as kubeconfigs:
        for number in range(1, 100):
            kubeconfigs.require_lease(of("down", number), None, UNLIMITED).credential()
        await asyncio.sleep(15)
        before = len(down.asked)
        await asyncio.sleep(45)
        began, cluster = asyncio.get_running_loop().time(), of("healthy", 100)
        assert await got(kubeconfigs, cluster)
        assert asyncio.get_running_loop().time() < began + 1
        assert len(down.asked) <= before + 5, "it is asked by one cluster at a time"
        assert kubeconfigs.problem(of("down", 1), UNLIMITED) == "no connection"
        assert kubeconfigs.problem(cluster, UNLIMITED) is None
        assert kubeconfigs.health()[0].problem == "no connection"


async def test_expired_credential_is_not_issued_after_clock_is_set_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(minter, "CHECK_EVERY_S", 0.02)
    backend, wall = Backend(), Wall()
    async with issuing(backend, wall=wall) as kubeconfigs:
        first = await got(kubeconfigs)
        wall.ahead = 3600
        with pytest.raises(CredentialUnavailableError):
            token(kubeconfigs)
        await eventually(lambda: len(backend.asked) >= 2)
        assert first in backend.given


async def test_credential_issued_after_disengagement_is_dropped() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.gate.clear()
    metrics = Metrics()
    async with issuing(backend, metrics=metrics) as kubeconfigs:
        asking = asyncio.create_task(kubeconfigs.require_lease(ALPHA, None, UNLIMITED).wait_for_credential())
        await eventually(lambda: backend.at_once == 1)
        kubeconfigs.disengaged(ALPHA)
        await asking
        backend.gate.set()
        labels = {"credential_issuer": "backend", "result": "dropped"}
        await eventually(lambda: metrics.registry.get_sample_value("milo_discoveryd_credential_requests_total", labels))
        assert kubeconfigs.health()[0].leases == 0


async def test_credential_issued_by_an_earlier_run_is_revoked_when_cluster_is_disengaged() -> None:
    backend = RevokingBackend()
    async with issuing(backend) as kubeconfigs:
        kubeconfigs.disengaged(ALPHA)
        await eventually(lambda: backend.revoked == [("alpha", 1)])


async def test_unsuitable_credential_of_one_cluster_does_not_affect_other_clusters() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.failure = UnfitError("it lives for ever")
    async with issuing(backend) as kubeconfigs:
        with pytest.raises(UnfitError, match="it lives for ever"):
            await got(kubeconfigs)
        assert await kubeconfigs.refusal(UNLIMITED) is None
        with pytest.raises(CredentialUnavailableError):
            token(kubeconfigs, a_cluster("beta", 2))
        backend.failure = None
        assert await got(kubeconfigs, a_cluster("beta", 2)) == f"{CANARY}-beta-{len(backend.asked)}"


async def test_failure_that_may_be_of_the_issuer_is_one_once_clusters_of_two_tenants_have_it() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.failure = BackendError("it did not answer", of_cluster=True, may_be_of_issuer=True)

    def of(name: str, incarnation: int, organization: str) -> Cluster:
        cluster = a_cluster(name, incarnation)
        return replace(cluster, target=replace(cluster.target, organization=organization))

    async with issuing(backend) as kubeconfigs:
        problems = []
        for cluster in (of("alpha", 1, "acme"), of("beta", 2, "acme"), of("gamma", 3, "other")):
            with pytest.raises(CredentialError):
                await got(kubeconfigs, cluster)
            problems.append(kubeconfigs.health()[0].problem)
        assert problems == ["", "", "it did not answer"]
        backend.failure = None
        assert await got(kubeconfigs, of("delta", 4, "acme"))
        assert kubeconfigs.health()[0].problem == ""


async def test_revocation_of_a_later_incarnation_does_not_wait_for_the_retry_of_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(revocations, "BACKOFF_S", (3600.0, 3600.0))
    backend = RevokingBackend()
    backend.revocation_failures = 1
    async with issuing(backend) as kubeconfigs:
        with capture_logs() as lines:
            kubeconfigs.disengaged(a_cluster("alpha", 1))
            await eventually(lambda: any(line["event"] == "credential revocation failed" for line in lines))
        kubeconfigs.disengaged(a_cluster("alpha", 2))
        await eventually(lambda: backend.revoked == [("alpha", 2)])


async def test_credential_of_disengaged_cluster_is_revoked_with_retries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(revocations, "BACKOFF_S", (0.001, 0.002))
    backend = RevokingBackend()
    backend.revocation_failures = 3
    async with issuing(backend) as kubeconfigs:
        for name, incarnation in (("alpha", 1), ("beta", 2)):
            await got(kubeconfigs, a_cluster(name, incarnation))
        kubeconfigs.disengaged(a_cluster("alpha", 1))
        kubeconfigs.disengaged(a_cluster("beta", 2))
        await eventually(lambda: len(backend.revoked) == 2)
    assert sorted(backend.revoked) == [("alpha", 1), ("beta", 2)]


@pytest.mark.parametrize("hangs", [False, True])
async def test_revocation_that_fails_or_hangs_delays_no_others(monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    monkeypatch.setattr(revocations, "BACKOFF_S", (3600.0, 3600.0))
    backend = RevokingBackend()
    revoke, of_alpha = backend.revoke, asyncio.Event()

    async def revoked(cluster: Cluster) -> None:
        if cluster == ALPHA:
            of_alpha.set()
            if hangs:
                await asyncio.Event().wait()
            raise BackendError("not now")
        await revoke(cluster)

    backend.revoke = revoked  # type: ignore[method-assign]
    async with issuing(backend) as kubeconfigs:
        kubeconfigs.disengaged(ALPHA)
        await of_alpha.wait()
        kubeconfigs.disengaged(a_cluster("beta", 2))
        await eventually(lambda: backend.revoked == [("beta", 2)])


async def test_revocations_of_one_cluster_that_ends_repeatedly_are_one_and_hold_no_labels() -> None:
    backend = RevokingBackend()
    begun, gate, seen = asyncio.Event(), asyncio.Event(), list[Cluster]()

    async def revoked(cluster: Cluster) -> None:
        seen.append(cluster)
        begun.set()
        await gate.wait()

    backend.revoke = revoked  # type: ignore[method-assign]
    async with issuing(backend) as kubeconfigs:
        kubeconfigs.disengaged(a_cluster("alpha", 1, region="eu"))
        await begun.wait()
        for incarnation in range(2, 1000):
            kubeconfigs.disengaged(a_cluster("alpha", incarnation, region="eu"))
        gate.set()
        await eventually(lambda: len(seen) == 2)
        kubeconfigs.disengaged(a_cluster("beta", 1000))
        await eventually(lambda: seen[-1].target.name == "beta")
    assert [(cluster.target.name, cluster.incarnation) for cluster in seen] == [
        ("alpha", 1),
        ("alpha", 999),
        ("beta", 1000),
    ]
    assert {cluster.target.labels for cluster in seen} == {()}


async def test_credentials_that_are_left_to_expire_are_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "MAX_PENDING", 1)
    backend = RevokingBackend()
    async with issuing(backend) as kubeconfigs:
        with capture_logs() as lines:
            for name in ("alpha", "beta", "gamma"):
                kubeconfigs.disengaged(a_cluster(name))
            await eventually(lambda: backend.revoked == [("alpha", 1)])
    warnings = [line["problem"] for line in lines if line["event"] == "credentials not revoked"]
    assert warnings == ["1 revocations are pending: credentials of further clusters are left to expire"]


async def test_issued_kubeconfigs_are_audited_without_secrets() -> None:
    async with issuing(Backend()) as kubeconfigs:
        with capture_logs() as lines:
            await got(kubeconfigs)
            kubeconfigs.require_lease(ALPHA, None, UNLIMITED).issue_exec("epoch.1", ME)
    (line,) = [line for line in lines if line["event"] == "kubeconfig issued"]
    assert set(line) == {
        "event", "log_level", "logger", "cluster", "uid", "incarnation", "issuer", "expires_at", "fingerprint", "rule",
        "caller",
    }  # fmt: skip
    assert (line["cluster"], line["uid"], line["incarnation"]) == ("alpha", "uid-alpha", "epoch.1")
    assert line["caller"] == {"peer": "unix:", "listener": "unix:///d.sock", "uid": 1000}
    assert (line["logger"], line["rule"]) == ("audit", "operators")
    assert len(line["fingerprint"]) == 8
    assert CANARY not in str(lines)


async def test_metrics_show_issued_kubeconfigs_credential_requests_and_credential_expiry() -> None:
    metrics, backend = Metrics(), Backend()
    async with issuing(backend, metrics=metrics) as kubeconfigs:
        measured = MeasuredDaemon(fleet=Fleet(readable_log()), cluster_cap=0, issuer_health=kubeconfigs.health)
        metrics.follow(measured)
        await got(kubeconfigs)
        kubeconfigs.refused("credentials_unavailable")

        def sample(name: str, **labels: str) -> float | None:
            return metrics.registry.get_sample_value(f"milo_discoveryd_{name}", labels)

        assert sample("kubeconfigs_issued_total", result="ok") == 1
        assert sample("kubeconfigs_issued_total", result="credentials_unavailable") == 1
        assert sample("credential_requests_total", credential_issuer="backend", result="ok") == 1
        assert sample("credential_issuer_up", credential_issuer="backend") == 1
        ends = sample("credential_expiry_timestamp_seconds", credential_issuer="backend")
        assert ends is not None
        assert 590 < ends - time.time() <= 600


@pytest.mark.parametrize("scope", [Scope.IDENTITY, Scope.CLUSTER])
async def test_cached_credential_is_returned_without_a_request_to_the_issuer(scope: Scope) -> None:
    backend = Backend(scope)
    beta = a_cluster("beta", 2)
    async with issuing(backend) as kubeconfigs:
        given = await got(kubeconfigs)
        asked = len(backend.asked)
        found, other = kubeconfigs.held(ALPHA), kubeconfigs.held(beta)
        assert found is not None
        assert found.token is not None
        assert found.token.reveal() == given
        assert other == (found if scope is Scope.IDENTITY else None)
        kubeconfigs.disengaged(ALPHA)
        if scope is Scope.CLUSTER:
            assert kubeconfigs.held(ALPHA) is None
        assert len(backend.asked) == asked


async def test_no_credential_is_cached_without_a_credential_issuer() -> None:
    async with issuing() as kubeconfigs:
        assert kubeconfigs.held(ALPHA) is None


class Hanging(Backend):
    """An issuer that does not respond for some clusters."""

    def __init__(self, *names: str) -> None:
        super().__init__(Scope.CLUSTER)
        self.hanging = set(names)

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        if request.cluster.target.name in self.hanging:
            await asyncio.Event().wait()
        return await super().mint(request)


def of_shop(number: int) -> Cluster:
    cluster = a_cluster(f"shop-{number}", 100 + number)
    return replace(cluster, target=replace(cluster.target, organization="shop"))


async def test_hanging_credential_requests_do_not_delay_credentials_of_other_clusters() -> None:
    backend = Hanging(*(f"shop-{number}" for number in range(30)))
    backend.life_s = 0.8
    async with issuing(backend, per_second=10_000) as kubeconfigs:
        for number in range(30):
            kubeconfigs.require_lease(of_shop(number), None, UNLIMITED).credential()
        async with asyncio.timeout(issuer.MINT_TIMEOUT_S / 2):
            first = await got(kubeconfigs)
            await eventually(lambda: token(kubeconfigs) != first)


async def test_caller_that_requests_the_credentials_of_all_clusters_does_not_delay_those_of_another_caller() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.gate.clear()
    async with issuing(backend, concurrency=1, per_second=10_000) as kubeconfigs:
        for number in range(30):
            kubeconfigs.require_lease(of_shop(number), None, UNLIMITED, "mallory").credential()
        await eventually(lambda: backend.asked)
        for number in (29, 28):
            kubeconfigs.require_lease(of_shop(number), None, UNLIMITED, "alice").credential()
        backend.gate.set()
        await eventually(lambda: len(backend.given) == 30)
    asked = [request.cluster.target.name for request in backend.asked if request.cluster is not None]
    assert {*asked[1:3], *asked[3:5]} == {"shop-29", "shop-28", "shop-1", "shop-2"}


async def test_clusters_that_reject_the_issued_credential_are_counted() -> None:
    async with issuing(Backend()) as kubeconfigs:
        kubeconfigs.probed(ALPHA, is_rejected=True)
        assert kubeconfigs.health()[0].failing == {"rejected": 1}
        kubeconfigs.probed(ALPHA, is_rejected=False)
        assert kubeconfigs.health()[0].failing == {}
        kubeconfigs.probed(ALPHA, is_rejected=True)
        kubeconfigs.disengaged(ALPHA)
        assert kubeconfigs.health()[0].failing == {}


async def test_health_of_very_many_leases_is_computed_once_for_all_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a tenth of a second with 100,000 leases, and any caller can ask a thousand times a second."""
    monkeypatch.setattr(kubeconfigs_module, "HEALTH_KEPT_S", 3600.0)
    async with issuing(Backend(Scope.CLUSTER)) as kubeconfigs:
        for number in range(MANY_LEASES - 1):
            kubeconfigs.probed(of_shop(number), is_rejected=True)
        assert kubeconfigs.health() is not kubeconfigs.health()
        kubeconfigs.probed(ALPHA, is_rejected=True)
        assert kubeconfigs.health()[0].failing == {"rejected": MANY_LEASES}
        kubeconfigs.probed(ALPHA, is_rejected=False)
        assert kubeconfigs.health()[0].failing == {"rejected": MANY_LEASES}


async def test_failed_credential_request_of_one_cluster_does_not_make_the_issuer_unhealthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(issuer, "MINT_TIMEOUT_S", 0.05)
    backend = Hanging("alpha")
    async with issuing(backend) as kubeconfigs:
        with pytest.raises(CredentialUnavailableError, match="did not answer"):
            await got(kubeconfigs)
        beta = a_cluster("beta", 2)
        assert kubeconfigs.health()[0].problem == ""
        assert kubeconfigs.health()[0].failing == {"timeout": 1}
        assert kubeconfigs.problem(ALPHA, UNLIMITED) == "the credential issuer backend did not answer within 0.05 s"
        assert kubeconfigs.problem(beta, UNLIMITED) is None
        assert await got(kubeconfigs, beta) in backend.given
        backend.hanging.clear()
        await eventually(lambda: kubeconfigs.problem(ALPHA, UNLIMITED) is None)
        assert kubeconfigs.health()[0].failing == {}


async def test_failed_credential_request_of_one_cluster_is_retried_without_an_issuer_problem() -> None:
    backend = Backend(Scope.CLUSTER)
    backend.failure = BackendError("its Secret is missing", of_cluster=True)
    async with issuing(backend) as kubeconfigs:
        with pytest.raises(CredentialUnavailableError, match="its Secret is missing"):
            await got(kubeconfigs)
        await eventually(lambda: len(backend.asked) >= 2)
        assert kubeconfigs.health()[0].problem == ""


async def test_ca_of_a_declared_cluster_is_requested_together_with_its_credential() -> None:
    """A kubeconfig without a secret contains the CA too, so a credential is requested to receive the CA."""

    class WithAuthorities(Backend):
        async def mint(self, request: MintRequest) -> IssuedCredential:
            return replace(await super().mint(request), authorities=b"ITS CA")

    target = DeclaredTarget(name="alpha", uid="u", place=("https://a",), object_namespace="n", object_name="a")
    cluster = replace(ALPHA, target=target)
    async with issuing(WithAuthorities(Scope.CLUSTER)) as kubeconfigs:
        kubeconfigs.issuance.trust = lambda _, issued: ClusterTrust(None if issued is None else issued.authorities)
        lease = kubeconfigs.require_lease(cluster, None, UNLIMITED)
        assert lease.needs_credential_for_trust
        with pytest.raises(CredentialUnavailableError):
            lease.issue_exec("epoch.1", ME)
        assert (await kubeconfigs.trust_of(cluster)).authorities == b"ITS CA", "a credential is requested for the CA"
        for made in (lease.issue("epoch.1", ME), lease.issue_exec("epoch.1", ME)):
            [entry] = json.loads(made.text)["clusters"]
            assert base64.b64decode(entry["cluster"]["certificate-authority-data"]) == b"ITS CA"
        assert (await kubeconfigs.trust_of(a_cluster("beta", 2))).authorities is None
        known = replace(cluster, target=replace(target, authorities=b"KNOWN"))
        assert not kubeconfigs.require_lease(known, None, UNLIMITED).needs_credential_for_trust


class WithManyCas(Backend):
    """An issuer whose credentials have CA certificates of 63 KB, except those of the cluster `small`."""

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        name = request.cluster.target.name
        return replace(await super().mint(request), authorities=name.encode() * (200 if name == "small" else 9000))


@in_virtual_time
async def test_large_credentials_are_held_within_a_budget() -> None:
    """Tenants write them: a cluster whose large credential comes too late gets none, and no other is concerned."""
    one, two, three = (a_cluster(f"large-{number}", number) for number in range(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credential_budget, "BUDGET", 150_000)
        async with issuing(WithManyCas(Scope.CLUSTER)) as kubeconfigs:
            first = await got(kubeconfigs, one)
            await got(kubeconfigs, two)
            with pytest.raises(CredentialUnavailableError, match="remove unneeded CA certificates"):
                await got(kubeconfigs, three)
            assert kubeconfigs.health()[0].failing == {"too_large": 1}
            assert kubeconfigs.health()[0].problem == ""
            assert await got(kubeconfigs, a_cluster("small", 9))
            await asyncio.sleep(300)
            assert await got(kubeconfigs, one) != first, "renewals have room"
            kubeconfigs.disengaged(two)
            await asyncio.sleep(minter.CLUSTER_BACKOFF_S + 1)
            assert await got(kubeconfigs, three)
            await asyncio.sleep(1800)
            assert kubeconfigs.health()[0].leases == 0, "unused ones have expired"
            assert await got(kubeconfigs, one)
            assert await got(kubeconfigs, two)


async def test_kubeconfig_names_the_server_that_came_with_the_credential() -> None:
    class WithServer(Backend):
        states_server = True

        async def mint(self, request: MintRequest) -> IssuedCredential:
            issued = await super().mint(request)
            return replace(issued, server="https://its.own:6443", authorities=b"ITS CA", tls_server_name="its.name")

    async with issuing(EachSourceIssuer({"": WithServer(Scope.CLUSTER)})) as kubeconfigs:
        infrastructure = Upstream(server="https://i", origin="test", credentials=StaticCredential(Credential()))
        kubeconfigs.issuance.trust = cluster_trust(ProjectControlPlaneKind(), infrastructure)
        lease = kubeconfigs.require_lease(ALPHA, None, UNLIMITED)
        await lease.wait_for_credential()
        for made in (lease.issue("epoch.1", ME), lease.issue_exec("epoch.1", ME)):
            [entry] = json.loads(made.text)["clusters"]
            assert entry["cluster"] == {
                "server": "https://its.own:6443",
                "certificate-authority-data": base64.b64encode(b"ITS CA").decode(),
                "tls-server-name": "its.name",
            }


async def test_fenced_member_does_not_issue_cached_credentials() -> None:
    may_issue = True
    async with issuing(Backend(), may_issue=lambda: may_issue) as kubeconfigs:
        await got(kubeconfigs)
        may_issue = False
        with pytest.raises(CredentialUnavailableError, match="owns no clusters of the shard group"):
            token(kubeconfigs)
        may_issue = True
        assert token(kubeconfigs)


async def test_unexpected_error_of_a_mint_is_a_failure_of_its_cluster() -> None:
    backend = Backend(Scope.CLUSTER)
    mint = backend.mint
    failures = ["alpha"]

    async def minted(request: MintRequest) -> IssuedCredential:
        if request.cluster is not None and request.cluster.target.name in failures:
            failures.clear()
            raise ZeroDivisionError
        return await mint(request)

    backend.mint = minted  # type: ignore[method-assign]
    with capture_logs() as logs:
        async with issuing(backend) as kubeconfigs:
            with pytest.raises(CredentialUnavailableError, match=r"internal error \(ZeroDivisionError\)"):
                await got(kubeconfigs)
            assert f"{CANARY}-beta-" in await got(kubeconfigs, a_cluster("beta", 2))
            await eventually(lambda: kubeconfigs.held(ALPHA) is not None)
    failed = [entry for entry in logs if entry["event"] == "mint failed"]
    assert [(entry["cluster"], entry["log_level"]) for entry in failed] == [("alpha", "error")]


async def test_unexpected_error_of_a_stream_that_is_told_of_a_credential_does_not_stop_mints() -> None:
    told: list[str] = []

    def failing(key: LeaseKey, replaced: str) -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        async with issuing(Backend(Scope.CLUSTER)) as kubeconfigs:
            kubeconfigs.subscribe(failing)
            kubeconfigs.subscribe(lambda *_: told.append("told"))
            await got(kubeconfigs)
            await got(kubeconfigs, a_cluster("beta", 2))
            await eventually(lambda: told == ["told", "told"])
    failed = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert failed == ["credential not announced to a stream"] * 2


async def test_unexpected_error_of_one_lease_does_not_stop_the_renewal_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = Backend(Scope.CLUSTER, life_s=0.4)
    async with issuing(backend) as kubeconfigs:
        await got(kubeconfigs)
        await got(kubeconfigs, a_cluster("beta", 2))
        broken = kubeconfigs.require_lease(ALPHA, None, UNLIMITED)
        lease = broken._minter.request(broken.key, ALPHA).lease
        check = CredentialLease.check

        def checked(of: CredentialLease, now: Moment) -> bool:
            if of is lease:
                raise ZeroDivisionError
            return check(of, now)

        monkeypatch.setattr(CredentialLease, "check", checked)
        with capture_logs() as logs:
            await eventually(lambda: "credential not renewed" in [entry["event"] for entry in logs])
            await eventually(lambda: any("beta" in token for token in backend.given[2:]))


async def test_unexpected_error_of_a_revocation_is_retried_and_does_not_stop_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(revocations, "BACKOFF_S", (0.001, 0.001))
    backend = RevokingBackend()
    revoke, failures = backend.revoke, ["alpha"]

    async def revoked(cluster: Cluster) -> None:
        if cluster.target.name in failures:
            failures.clear()
            raise ZeroDivisionError
        await revoke(cluster)

    backend.revoke = revoked  # type: ignore[method-assign]
    with capture_logs() as logs:
        async with issuing(backend) as kubeconfigs:
            kubeconfigs.disengaged(ALPHA)
            kubeconfigs.disengaged(a_cluster("beta", 2))
            await eventually(lambda: sorted(backend.revoked) == [("alpha", 1), ("beta", 2)])
    failed = [entry for entry in logs if entry["event"] == "credential revocation failed"]
    assert [(entry["cluster"], entry["log_level"]) for entry in failed] == [("alpha", "error")]
