"""The credentials of a fleet over hours of virtual time: request rates and outages."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.kubeconfigs.credential_lease import BACKOFF_S
from milo_discoveryd.kubeconfigs.lease_table import UNAWAITED_S, LeaseEntry, LeaseKey
from milo_discoveryd.kubeconfigs.minter import TTL_STEPS_S, Minter
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.telemetry.metrics import Metrics
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.support.logs import capture_logs
from tests.unit.kubeconfigs.backend import Backend, a_cluster

LIFE_S = 600.0
ANSWERS_WITHIN_S = 0.1
PER_SECOND = 50.0
BURST = 10
LOOK_EVERY_S = 15.0


class Slow(Backend):
    """An issuer that responds with a delay, and records the times of requests."""

    def __init__(self, answers_within_s: float = ANSWERS_WITHIN_S) -> None:
        super().__init__(Scope.CLUSTER, life_s=LIFE_S)
        self._answers_within_s = answers_within_s
        self.times: list[float] = []

    async def mint(self, request: MintRequest) -> IssuedCredential:
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._answers_within_s)
        return await super().mint(request)

    def busiest(self, began: float, ended: float, window_s: float) -> tuple[float, float]:
        """Return the rate of mints, in the busiest window and on average."""
        counted = Counter(int((when - began) // window_s) for when in self.times if began <= when < ended)
        return max(counted.values()) / window_s, counted.total() / (ended - began)


class Fleet:
    """Clusters whose subscribers fetch each new credential at once."""

    def __init__(self, size: int, backend: Backend, *, per_second: float = PER_SECOND) -> None:
        self._clusters = {number: a_cluster(f"p-{number}", number) for number in range(1, size + 1)}
        self.minter = Minter(
            backend,
            metrics=Metrics().credentials,
            changed=self._taken,
            draw=Random(1).random,
            concurrency=BURST,
            per_second=per_second,
            wall=lambda: time.time(),  # noqa: PLW0108 - time.time is replaced after the import
        )

    def want(self) -> None:
        for cluster in self._clusters.values():
            self.request(cluster)

    def request(self, cluster: Cluster) -> LeaseEntry:
        self._clusters[cluster.incarnation] = cluster
        lease = self.minter.request(self.minter.key(cluster, LIFE_S), cluster)
        lease.is_wanted = True
        self.minter.wait(lease)
        return lease

    def without(self) -> int:
        """Return the number of clusters without a valid credential."""
        return len(self._clusters) - len([*self.minter.held()])

    def _taken(self, key: LeaseKey, _: str) -> None:
        self.request(self._clusters[key.incarnation])


def in_virtual_time(fleet: Callable[[], Fleet], play: Callable[[Fleet], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        made = fleet()
        minting = asyncio.create_task(made.minter.run())
        made.want()
        await play(made)
        minting.cancel()
        await asyncio.wait((minting,))

    run_on(VirtualLoop(Random(1)), main())


def test_credentials_for_simultaneous_requests_are_issued_at_no_more_than_twice_the_mean_rate() -> None:
    backend = Slow()

    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(1.2 * LIFE_S)
        assert fleet.without() == 0

    in_virtual_time(lambda: Fleet(2000, backend, per_second=PER_SECOND / 5), play)
    peak, mean = backend.busiest(0, 1.2 * LIFE_S, 10)
    assert peak <= 2 * mean


def test_renewals_of_simultaneous_credential_leases_spread_out() -> None:
    """The rate limit does not apply here: with jitter drawn only once, the leases would stay synchronized."""
    backend = Slow()

    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(6 * LIFE_S)

    in_virtual_time(lambda: Fleet(1000, backend, per_second=1000), play)
    peak, mean = backend.busiest(LIFE_S, 6 * LIFE_S, 10)
    assert peak <= 2 * mean


def test_issuer_outage_of_half_a_lifetime_leaves_no_cluster_without_a_credential() -> None:
    """All credentials are due during the outage, and are renewed in order of expiry after it."""
    backend = Slow()

    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(2 * LIFE_S)
        backend.failure = BackendError("down")
        for _ in range(int(LIFE_S / 2 / LOOK_EVERY_S)):
            await asyncio.sleep(LOOK_EVERY_S)
            assert fleet.without() == 0
        backend.failure = None
        for _ in range(int(LIFE_S / LOOK_EVERY_S)):
            await asyncio.sleep(LOOK_EVERY_S)
            assert fleet.without() == 0

    in_virtual_time(lambda: Fleet(1000, backend, per_second=PER_SECOND / 10), play)


@pytest.mark.parametrize("organization", ["", "one"])
def test_no_credential_expires_while_a_caller_waits_for_those_of_all_clusters_with_many_lifetimes(
    organization: str,
) -> None:
    backend = Slow()
    backend.takes_ttl = True

    async def play(fleet: Fleet) -> None:
        clusters = [of(organization, number) for number in range(1, 201)]
        for cluster in clusters:
            fleet.request(cluster)
        await asyncio.sleep(2 * LIFE_S)
        for cluster in clusters:
            for ttl_s in TTL_STEPS_S[6:]:
                fleet.minter.wait(fleet.minter.request(fleet.minter.key(cluster, ttl_s), cluster, "of many"))
        for _ in range(int(3 * LIFE_S / LOOK_EVERY_S)):
            await asyncio.sleep(LOOK_EVERY_S)
            assert all(fleet.minter.request(fleet.minter.key(each, LIFE_S), each).lease.held for each in clusters)

    in_virtual_time(lambda: Fleet(0, backend, per_second=PER_SECOND / 40), play)


def test_outage_in_which_each_cluster_fails_for_itself_leaves_none_without_a_credential() -> None:
    """Each renewal was a retry after a failure of its cluster: all together had a quarter of the slots."""
    backend = Slow(answers_within_s=3.0)

    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(2 * LIFE_S)
        backend.failure = BackendError("503", of_cluster=True, may_be_of_issuer=True)
        await asyncio.sleep(LIFE_S / 2)
        assert fleet.without() == 0
        backend.failure = None
        for _ in range(int(LIFE_S / LOOK_EVERY_S)):
            await asyncio.sleep(LOOK_EVERY_S)
            assert fleet.without() == 0

    in_virtual_time(lambda: Fleet(300, backend), play)


class PartlyHanging(Slow):
    """An issuer that does not answer for some clusters, so that each of them could show an outage."""

    def __init__(self, hanging: int) -> None:
        super().__init__()
        self._hanging = hanging
        self.hanging_at_once = 0

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        if request.cluster.incarnation > self._hanging:
            return await super().mint(request)
        self.hanging_at_once += 1
        try:
            await asyncio.sleep(15.0)
        finally:
            self.hanging_at_once -= 1
        raise BackendError("no answer", of_cluster=True, may_be_of_issuer=True)


def test_outage_is_one_problem_of_the_issuer_and_not_one_of_each_cluster() -> None:
    """Each of the clusters was in the log, and counted as one that fails for itself."""
    backend = Slow()

    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(LIFE_S)
        backend.failure = BackendError("503", of_cluster=True, may_be_of_issuer=True)
        with capture_logs() as lines:
            await asyncio.sleep(2 * LIFE_S)
        assert (fleet.without(), fleet.minter.failing()) == (100, {"failed": 1})
        assert [line["event"] for line in lines] == ["cluster credential not issued", "credential issuer failed"]

    in_virtual_time(lambda: Fleet(100, backend), play)


def test_clusters_that_fail_while_others_get_credentials_have_a_quarter_of_the_slots() -> None:
    backend = PartlyHanging(hanging=40)

    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(LIFE_S)
        assert fleet.without() == 40
        for _ in range(int(LIFE_S / LOOK_EVERY_S)):
            await asyncio.sleep(LOOK_EVERY_S)
            assert backend.hanging_at_once <= BURST // 4

    in_virtual_time(lambda: Fleet(240, backend), play)


class HangingTenants(Slow):
    """An issuer that does not answer for the clusters of some tenants, and answers late for those of others."""

    hanging = 0
    slow_s = 14.0

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        if request.cluster.target.organization.startswith("slow"):
            await asyncio.sleep(self.slow_s)
        elif request.cluster.target.organization != "calm":
            self.hanging += 1
            await asyncio.sleep(15.0)
            self.hanging -= 1
            raise BackendError("no answer", of_cluster=True, may_be_of_issuer=True)
        return await super().mint(request)


@pytest.mark.parametrize(("clusters", "tenants"), [(100, 20), (20, 20), (300, 300)])
def test_clusters_of_many_tenants_that_hang_delay_no_other_tenant_for_long(clusters: int, tenants: int) -> None:
    """One owner of objects may have any number of namespaces, each of which takes 15 s until it has failed."""
    backend = HangingTenants()

    async def play(fleet: Fleet) -> None:
        for number in range(clusters):
            fleet.request(of(f"hangs-{number % tenants}", number + 1))
        for number in range(3):
            assert await first_credential_s(fleet, of("calm", 1001 + number)) < 2 + 0.08 * clusters

    in_virtual_time(lambda: Fleet(0, backend), play)


@pytest.mark.parametrize(("slow", "slow_s"), [(1, 14.0), (10, 4.0), (30, 4.0), (100, 3.0), (100, 14.0)])
def test_tenants_that_answer_late_keep_no_slots_for_those_that_hang(slow: int, slow_s: float) -> None:
    """Ten that answered after 4 s delayed a first credential by 385 s: until a mint was slow, others that hang took as
    long as they could."""
    backend = HangingTenants()
    backend.slow_s = slow_s

    async def play(fleet: Fleet) -> None:
        fleet.request(of("slow", 1000))
        await asyncio.sleep(20)
        assert fleet.without() == 0
        for number in range(300):
            fleet.request(of(f"hangs-{number}", number + 1))
            if number % (300 // slow) == 0:
                fleet.request(of(f"slow-{number}", number + 501))
        assert await first_credential_s(fleet, of("calm", 1001)) < 30

    in_virtual_time(lambda: Fleet(0, backend), play)


class RandomTenants(Slow):
    """An issuer that answers each tenant in its own way."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = Random(seed)
        self._each_s = [self.random.choice((0.6, 1.0, 2.0, 3.0, 4.0, 7.0, 10.0, 14.0)) for _ in range(2)]

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        match request.cluster.target.organization.partition("-")[0]:
            case "slow":
                await asyncio.sleep(self.random.choice((*self._each_s, self.random.uniform(0.5, 14.5))))
            case "fails":
                await asyncio.sleep(self.random.choice((0.01, 3.0)))
                raise BackendError("no Secret", of_cluster=True)
            case "hangs":
                await asyncio.sleep(15.0)
                raise BackendError("no answer", of_cluster=True, may_be_of_issuer=True)
        return await super().mint(request)


@pytest.mark.parametrize("seed", range(6))
def test_no_mix_of_tenants_delays_a_credential_of_another_one_for_long(seed: int) -> None:
    backend = RandomTenants(seed)
    draw = backend.random

    async def play(fleet: Fleet) -> None:
        renewed = of("calm", 1000)
        before = (await first_credential_s(fleet, renewed), fleet.minter.held_for(renewed))[1]
        others = [f"hangs-{number}" for number in range(draw.choice((100, 300)))]
        others += [f"slow-{number}" for number in range(draw.choice((1, 10, 30, 100)))]
        others += [f"fails-{number}" for number in range(draw.choice((0, 50)))]
        draw.shuffle(others)
        for number, organization in enumerate(others):
            fleet.request(of(organization, number + 1))
        await asyncio.sleep(draw.choice((0, 3, 20)))
        assert await first_credential_s(fleet, of("calm", 1001)) < 30
        await asyncio.sleep(0.45 * LIFE_S)
        assert fleet.minter.held_for(renewed) not in {None, before}

    in_virtual_time(lambda: Fleet(0, backend), play)


def test_success_that_others_overtook_does_not_make_the_issuer_slow() -> None:
    backend = HangingTenants()

    async def play(fleet: Fleet) -> None:
        fleet.request(of("slow", 1))
        await asyncio.sleep(5)
        fleet.request(of("calm", 2))
        await asyncio.sleep(10)
        assert fleet.without() == 0
        for number in range(3, 103):
            fleet.request(of(f"hangs-{number}", number))
        assert await first_credential_s(fleet, of("calm", 1000)) < 10

    in_virtual_time(lambda: Fleet(0, backend), play)


def test_clusters_that_hang_delay_no_retry_of_one_that_failed_at_once() -> None:
    """The Secret of a new project may be written later than its object."""
    backend = HangingTenants()

    async def play(fleet: Fleet) -> None:
        for number in range(1, 301):
            fleet.request(of(f"hangs-{number}", number))
        for number in range(1000, 1020):
            await asyncio.sleep(5)
            fleet.request(of("calm", number))
        backend.failure = BackendError("no Secret", of_cluster=True)
        fleet.request(of("calm", 2000))
        await asyncio.sleep(3)
        backend.failure = None
        assert await first_credential_s(fleet, of("calm", 2000)) < 20

    in_virtual_time(lambda: Fleet(0, backend), play)


async def first_credential_s(fleet: Fleet, cluster: Cluster) -> float:
    """Return when the cluster has its first credential."""
    began = asyncio.get_running_loop().time()
    while fleet.minter.held_for(cluster) is None:
        await fleet.minter.settle(fleet.request(cluster), 60)
        await asyncio.sleep(0.1)
    return asyncio.get_running_loop().time() - began


def of(organization: str, number: int) -> Cluster:
    cluster = a_cluster(f"q-{number}", number)
    return replace(cluster, target=replace(cluster.target, organization=organization))


class OneAtATime(Slow):
    """An issuer that serves one request at a time, in the order of arrival."""

    def __init__(self, each_s: float) -> None:
        super().__init__(each_s)
        self._free = asyncio.Lock()
        self._waiting = 0
        self.most_waiting = 0

    async def mint(self, request: MintRequest) -> IssuedCredential:
        self._waiting += 1
        self.most_waiting = max(self.most_waiting, self._waiting)
        try:
            async with asyncio.timeout(15.0), self._free:
                return await super().mint(request)
        except TimeoutError:
            raise BackendError("no answer", of_cluster=True, may_be_of_issuer=True) from None
        finally:
            self._waiting -= 1


@pytest.mark.parametrize(
    ("issuer", "as_before_s"), [(lambda: Slow(3.0), 39.5), (lambda: Slow(8.0), 104.5), (lambda: OneAtATime(0.67), 67.5)]
)
def test_issuer_that_is_slow_for_all_clusters_is_not_overloaded(issuer: Callable[[], Slow], as_before_s: float) -> None:
    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(as_before_s)
        assert fleet.without() == 0

    in_virtual_time(lambda: Fleet(100, issuer()), play)


@pytest.mark.parametrize("organization", ["", "o{}"])
@pytest.mark.parametrize("each_s", [0.67, 1.0])
def test_issuer_of_one_request_at_a_time_never_has_more_of_them_than_slots(organization: str, each_s: float) -> None:
    issuer = OneAtATime(each_s)

    async def play(fleet: Fleet) -> None:
        for number in range(1, 101):
            fleet.request(of(organization.format(number), number))
        await asyncio.sleep(120.0)
        assert fleet.without() == 0
        assert issuer.most_waiting <= BURST

    in_virtual_time(lambda: Fleet(0, issuer), play)


class HangingCommand(HangingTenants):
    timeout_s = 60.0


def test_hanging_commands_are_no_more_at_once_than_is_set() -> None:
    """Each takes the memory of a process."""
    backend = HangingCommand()

    async def play(fleet: Fleet) -> None:
        for number in range(1, 100):
            fleet.request(of(f"hangs-{number}", number))
        await asyncio.sleep(14.0)
        assert backend.hanging == BURST - BURST // 4

    in_virtual_time(lambda: Fleet(0, backend), play)


def test_credential_leases_recover_within_seconds_after_a_long_outage_without_a_burst() -> None:
    backend = Slow()
    size = 500

    async def play(fleet: Fleet) -> None:
        await asyncio.sleep(LIFE_S)
        backend.failure = BackendError("down")
        before = len(backend.asked)
        await asyncio.sleep(2 * LIFE_S)
        assert fleet.without() == size
        assert len(backend.asked) - before <= 2 * LIFE_S / ANSWERS_WITHIN_S
        backend.failure = None
        since = asyncio.get_running_loop().time()
        await asyncio.sleep(BACKOFF_S[1] + size / PER_SECOND)
        assert fleet.without() == 0
        peak, _ = backend.busiest(since, since + 30, 1)
        assert peak <= PER_SECOND + BURST

    in_virtual_time(lambda: Fleet(size, backend), play)


class Hanging(Backend):
    """An issuer that never responds."""

    async def mint(self, request: MintRequest) -> IssuedCredential:
        await asyncio.Event().wait()
        return await super().mint(request)


def test_leases_that_none_waits_for_any_more_end_however_many_lifetimes_callers_have_asked_for() -> None:
    async def play(fleet: Fleet) -> None:
        minter, clusters = fleet.minter, [a_cluster(f"q-{number}", number) for number in range(100, 200)]
        for cluster in clusters:
            for ttl_s in (*(1 + number / 1000 for number in range(100)), 60.0, 3600.0):
                minter.request(minter.key(cluster, ttl_s), cluster)
        asked = len(minter) - 20
        assert asked == 3 * len(clusters)
        waits = [minter.wait(minter.request(minter.key(cluster, 60.0), cluster)) for cluster in clusters]
        await asyncio.sleep(3 * UNAWAITED_S)
        assert len(minter) - 20 <= len(clusters) + 16 * BURST  # and those whose mints are in flight
        for wait in waits:
            wait.end()
        await asyncio.sleep(UNAWAITED_S / 2)
        kept = minter.request(minter.key(clusters[0], 60.0), clusters[0])
        await asyncio.sleep(UNAWAITED_S / 2 + 10)
        assert minter.request(minter.key(clusters[0], 60.0), clusters[0]) is kept
        assert len(minter) - 20 <= 1 + 16 * BURST

    in_virtual_time(lambda: Fleet(20, Hanging(Scope.CLUSTER, takes_ttl=True)), play)
