"""Revocations in sequence: retried when they fail, and complete when API servers' token caches have expired."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.sharding.assignment import REVOCATION_RETRY_S, CredentialRevocation, FencedIssuer
from milo_discoveryd.sharding.credential_fence import TOKEN_CACHE_S
from milo_discoveryd.sharding.ownership import Ownership
from milo_kube.retry_after import LONGEST_S
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.unit.sharding.test_credential_fence import SETTLED

JITTER_S = 1.0


class Source:
    name = "tokens"

    def __init__(self) -> None:
        self.failures = 0
        self.retry_after_s: float | None = None
        self.asked, self.may_delete = asyncio.Event(), asyncio.Event()
        self.may_delete.set()
        self.deleted: list[str] = []
        self.refused: set[str] = set()

    async def revoke_others(self, covers: Callable[[str], bool]) -> Mapping[str, BackendError]:
        self.asked.set()
        await self.may_delete.wait()
        self.deleted += filter(covers, ["key"])
        if self.failures:
            self.failures -= 1
            raise BackendError("no Secrets", retry_after_s=self.retry_after_s)
        return dict.fromkeys(self.refused, BackendError("denied"))


class Clock:
    """Sleeps until the test advances the clock."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._passed = asyncio.Semaphore(0)

    async def sleep(self, delay: float) -> None:
        self.slept.append(delay)
        await self._passed.acquire()

    def advance(self) -> None:
        self._passed.release()


class World:
    def __init__(self, *issuers: FencedIssuer) -> None:
        """`issuers`: by default `source`, which serves the clusters of all sources."""
        self.source, self.clock = Source(), Clock()
        self.revocation = CredentialRevocation(issuers or [FencedIssuer(self.source)], self.clock.sleep)
        self.cleared = 0
        self.ownership: Ownership | None = SETTLED
        self.running = asyncio.create_task(self.revocation.run(self._cleared, lambda: self.ownership))

    def _cleared(self) -> None:
        self.cleared += 1

    @property
    def is_due(self) -> bool:
        """Whether a revocation is due at any issuer."""
        return any(issuer.fence.due for issuer in self.revocation.issuers)


@asynccontextmanager
async def world_of(*issuers: FencedIssuer) -> AsyncIterator[World]:
    world = World(*issuers)
    try:
        yield world
    finally:
        world.running.cancel()
        await asyncio.wait([world.running])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with world_of() as world:
        yield world


async def test_credential_fence_permits_engagement_after_revocation_and_token_cache_expiry(world: World) -> None:
    world.revocation.follow(SETTLED)
    await eventually(lambda: world.clock.slept == [TOKEN_CACHE_S])
    assert (world.source.deleted, world.cleared, world.revocation.clears("key")) == (["key"], 0, False)
    world.clock.advance()
    await eventually(lambda: world.cleared == 1)
    assert world.revocation.clears("key")


async def test_failed_credential_revocation_is_retried(world: World) -> None:
    world.source.failures = 1
    world.revocation.follow(SETTLED)
    await eventually(lambda: world.clock.slept == [REVOCATION_RETRY_S])
    world.clock.advance()
    await eventually(lambda: world.clock.slept == [REVOCATION_RETRY_S, TOKEN_CACHE_S])
    world.clock.advance()
    await eventually(lambda: world.cleared == 1)


async def test_failed_credential_revocation_is_retried_after_the_time_that_the_server_states(world: World) -> None:
    world.source.failures, world.source.retry_after_s = 2, 7.0
    world.revocation.follow(SETTLED)
    await eventually(lambda: world.clock.slept == [7.0 + JITTER_S])
    world.source.retry_after_s = 86_400.0
    world.clock.advance()
    await eventually(lambda: world.clock.slept == [7.0 + JITTER_S, LONGEST_S + JITTER_S])


async def test_cluster_whose_credentials_cannot_be_revoked_delays_no_other(world: World) -> None:
    world.source.refused = {"denied"}
    with capture_logs() as logs:
        world.revocation.follow(SETTLED)
        await eventually(lambda: world.clock.slept == [TOKEN_CACHE_S])
    assert [(entry["clusters"], entry["problem"]) for entry in logs] == [(["denied"], "denied")]
    world.clock.advance()
    await eventually(lambda: world.cleared == 1)
    assert (world.revocation.clears("key"), world.revocation.clears("denied")) == (True, False)
    world.source.refused.clear()
    world.clock.advance()  # of the attempt that began before
    world.clock.advance()
    await eventually(lambda: world.revocation.clears("denied"))
    assert world.revocation.clears("key")
    assert not world.is_due


async def test_issuer_that_fails_delays_clusters_of_its_sources_alone() -> None:
    failing, other = Source(), Source()
    failing.failures = 2
    first, second = FencedIssuer(failing, frozenset({"one"})), FencedIssuer(other, frozenset({"two"}))
    async with world_of(first, second) as world:
        with capture_logs() as logs:
            world.revocation.follow(SETTLED)
            await eventually(lambda: world.clock.slept == [REVOCATION_RETRY_S, TOKEN_CACHE_S])
        assert [(entry["sources"], entry["problem"]) for entry in logs] == [(["one"], "no Secrets")]
        assert (world.cleared, world.revocation.is_cleared) == (1, False)
        world.clock.advance()
        world.clock.advance()
        await eventually(lambda: world.cleared == 2)
        assert world.revocation.is_cleared
        assert (world.revocation.clears("one#key"), world.revocation.clears("two#key")) == (False, True)
        await eventually(lambda: len(world.clock.slept) == 3)
        world.clock.advance()
        await eventually(lambda: len(world.clock.slept) == 4)
        world.clock.advance()
        await eventually(lambda: world.revocation.clears("one#key"))
        assert world.revocation.clears("two#key")
        assert not world.is_due


async def test_issuer_that_hangs_delays_clusters_of_its_sources_alone() -> None:
    hanging, other = Source(), Source()
    hanging.may_delete.clear()
    first, second = FencedIssuer(hanging, frozenset({"one"})), FencedIssuer(other, frozenset({"two"}))
    async with world_of(first, second) as world:
        world.revocation.follow(SETTLED)
        await eventually(lambda: world.clock.slept == [TOKEN_CACHE_S])
        world.clock.advance()
        await eventually(lambda: world.cleared == 1)
        assert (world.revocation.clears("one#key"), world.revocation.clears("two#key")) == (False, True)
        assert not world.revocation.is_cleared, "clusters of the first source would be missing from the first snapshot"


async def test_issuer_of_all_sources_that_fails_delays_all_clusters() -> None:
    failing, other = Source(), Source()
    failing.failures = 1
    async with world_of(FencedIssuer(failing), FencedIssuer(other, frozenset({"two"}))) as world:
        world.revocation.follow(SETTLED)
        await eventually(lambda: world.clock.slept == [REVOCATION_RETRY_S, TOKEN_CACHE_S])
        world.clock.advance()
        world.clock.advance()
        await eventually(lambda: len(world.clock.slept) == 3)
        assert not world.revocation.is_cleared
        assert not world.revocation.clears("two#key")


async def test_nothing_waits_for_revocations_without_issuers() -> None:
    revocation = CredentialRevocation([])
    revocation.follow(SETTLED)
    assert revocation.is_cleared
    assert revocation.clears("key")


async def test_late_revocation_of_a_member_that_was_paused_deletes_nothing_of_the_rightful_owner(world: World) -> None:
    world.source.may_delete.clear()
    world.revocation.follow(SETTLED)
    await world.source.asked.wait()
    world.ownership = None  # the process was paused past its fence
    world.source.may_delete.set()
    await eventually(lambda: world.clock.slept == [TOKEN_CACHE_S])
    assert world.source.deleted == []
    world.clock.advance()
    await eventually(lambda: world.cleared == 1)
    assert not world.revocation.is_cleared


async def test_credential_fence_does_not_permit_engagement_if_ownership_was_interrupted(world: World) -> None:
    world.revocation.follow(SETTLED)
    await eventually(lambda: world.clock.slept)
    world.revocation.follow(None)
    world.clock.advance()
    await eventually(lambda: world.cleared == 1)
    assert not world.revocation.is_cleared


async def test_revocation_is_retried_after_an_unexpected_error(world: World) -> None:
    revoke, failures = world.source.revoke_others, [1]

    async def revoked(covers: Callable[[str], bool]) -> Mapping[str, BackendError]:
        if failures:
            failures.clear()
            raise ZeroDivisionError
        return await revoke(covers)

    world.source.revoke_others = revoked  # type: ignore[method-assign]
    with capture_logs() as logs:
        world.revocation.follow(SETTLED)
        await eventually(lambda: world.clock.slept == [REVOCATION_RETRY_S])
        world.clock.advance()
        await eventually(lambda: world.clock.slept == [REVOCATION_RETRY_S, TOKEN_CACHE_S])
    assert [entry["log_level"] for entry in logs] == ["error"]
