"""Assigns the clusters that this member owns to the fleet, which engages them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import msgspec

from milo_discoveryd.credentials.issuers.issuer import FencingIssuer
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.logger import log
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.sharding.credential_fence import TOKEN_CACHE_S, CredentialFence, Unrevoked
from milo_discoveryd.sharding.leases import View
from milo_discoveryd.sharding.ownership import Decision, KeyOwnership, Owners, Ownership
from milo_kube.credential import CredentialError

STARTING = "the members of the shard group are not known yet"
LOST = "the Lease of this member of the shard group was not renewed in time"
LEFT = "this member has left the shard group"
REVOCATION_RETRY_S = 2.0
_NAMED = 5
"""How many of the clusters are named whose credentials cannot be revoked."""


class Decisions:
    """The decisions that an ownership makes about clusters."""

    def __init__(self, ownership: Ownership, owners: Owners) -> None:
        self._ownership = ownership
        self.owners = owners

    def __getitem__(self, name: str) -> Decision:
        return self._ownership.decide(name, self.owners)

    def is_unowned(self, name: str) -> bool:
        """Return whether this member should own a cluster, as far as its owner was computed."""
        return name in self.owners and self[name].state is not KeyOwnership.FOREIGN

    def elsewhere(self, name: str) -> str | None:
        """Return why this member must not engage a cluster; None if it may."""
        decision, number = self[name], self._ownership.view.number
        if decision.state is KeyOwnership.OWNED:
            return None
        if decision.state is KeyOwnership.FOREIGN:
            return f"member {decision.member} of the shard group owns it (view {number})"
        if not self._ownership.may_engage:
            return f"this member owns it (view {number}), and waits until the Leases are known to be current"
        return f"this member will own it (view {number}) once member {decision.member} has released it"


class FencedIssuer(msgspec.Struct, frozen=True):
    """An issuer whose credentials are revoked, and the sources of the clusters that it serves; empty for all."""

    issuer: FencingIssuer
    sources: frozenset[str] = frozenset()


class CredentialRevocation:
    """Revokes the credentials that other members obtained for clusters, before this member engages these clusters."""

    def __init__(
        self,
        fence: CredentialFence,
        issuers: Sequence[FencedIssuer],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.fence = fence
        self._issuers = issuers
        self._sleep = sleep
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Check the fence again, because the ownership has changed."""
        self._changed.set()

    async def run(self, cleared: Callable[[], None], present: Callable[[], Ownership | None]) -> None:
        """Perform due revocations until canceled. `cleared` is called when more clusters may be engaged; `present`
        returns the ownership at the moment of each deletion."""
        while True:
            self._changed.clear()
            due = self.fence.due
            if due is None:
                await self._changed.wait()
                continue
            refused: dict[str, CredentialError] = {}
            failed: dict[FencedIssuer, float] = {}
            for fenced in self._issuers:
                try:
                    refused |= await fenced.issuer.revoke_others(partial(self.fence.covers, due, present))
                except Exception as error:  # noqa: BLE001  (what one issuer causes must not delay the others)
                    failed[fenced] = _noted(error, fenced)
            if failed and (len(failed) == len(self._issuers) or not all(fenced.sources for fenced in failed)):
                await self._sleep(max(REVOCATION_RETRY_S, *failed.values()))
                continue
            if refused:
                problem = str(next(iter(refused.values())))
                log.warning(
                    "credentials of former owners not revoked", clusters=sorted(refused)[:_NAMED], problem=problem
                )
            await self._sleep(TOKEN_CACHE_S)
            sources = (fenced.sources for fenced in failed)
            self.fence.revoked(due, Unrevoked(frozenset(refused), frozenset().union(*sources)))
            cleared()


def _noted(error: Exception, fenced: FencedIssuer) -> float:
    """Log that nothing could be revoked at an issuer. Return for how many seconds its server asks to wait."""
    sources = sorted(fenced.sources)
    if isinstance(error, CredentialError):
        log.warning("credentials of former owners not revoked", sources=sources, problem=str(error))
    else:
        log.exception("credentials of former owners not revoked", sources=sources)
    return (isinstance(error, BackendError) and error.retry_after_s) or 0.0


class FleetAssignment:
    def __init__(
        self,
        fleet: Fleet,
        release_timeout_s: float,
        revocation: CredentialRevocation | None = None,
    ) -> None:
        """`release_timeout_s`: after this time, a cluster that moves is disengaged even if it was not released."""
        self._fleet = fleet
        self._revocation = revocation
        self._release_timeout_s = release_timeout_s
        self._decisions: Decisions | None = None
        for source in fleet.sources:
            source.await_assignment(STARTING)

    def assign(self, ownership: Ownership, holds: Callable[[], bool]) -> Iterator[None]:
        self._decisions = decisions = Decisions(ownership, self._owners(ownership.view))
        self._follow(ownership)
        is_decided = (ownership.may_engage and self._is_cleared) or not ownership.is_in_view

        def elsewhere(name: str) -> str | None:
            return decisions.elsewhere(name) or self._uncleared(name) or (None if holds() else LOST)

        for source in self._fleet.sources:
            yield from source.assign(elsewhere, self._release_timeout_s, is_decided=is_decided)

    def _owners(self, view: View) -> Owners:
        if self._decisions is not None and self._decisions.owners.view == view:
            return self._decisions.owners
        return Owners(view, lambda name: self._fleet[name] is not None)

    def _follow(self, ownership: Ownership | None) -> None:
        if self._revocation is not None:
            self._revocation.fence.follow(ownership)
            self._revocation.wake()

    @property
    def _is_cleared(self) -> bool:
        return self._revocation is None or self._revocation.fence.is_cleared

    def _uncleared(self, name: str) -> str | None:
        """Return why a cluster that this member owns cannot be engaged yet; None if it can, or is engaged already."""
        if self._revocation is None or self._is_engaged(name) or self._revocation.fence.clears(name):
            return None
        return "this member owns it, and waits until the credentials of former owners are revoked"

    def lose_ownership(self, reason: str) -> None:
        self._follow(None)
        for source in self._fleet.sources:
            source.clusters.lose_ownership(reason)

    def lost(self) -> Iterator[str] | None:
        """Return the clusters that this daemon no longer owns, or may not, and that are still engaged; None if that is
        unknown.

        Until the first list of this run is verified, subscribers of an earlier run may keep clusters that are missing
        from the list.
        """
        waiting = self._fleet.waiting
        if any(
            waiting.had_any_for(source.name) and not source.first_list.is_verified for source in self._fleet.sources
        ):
            return None
        unassigned = (name for source in self._fleet.sources for name in source.clusters.unassigned)
        return chain(filter(self._is_lost, self._fleet.releases), filter(self._is_engaged, unassigned))

    def _is_engaged(self, name: str) -> bool:
        record = self._fleet[name]
        return record is not None and record.engaged

    def _is_lost(self, name: str) -> bool:
        source = self._fleet.source_of(name)
        return source is not None and source.engagements.assigned_elsewhere(name) is not None

    def unowned(self) -> int:
        decisions = self._decisions
        if decisions is None:
            return 0
        return sum(
            record.state is ObjectState.UNASSIGNED and decisions.is_unowned(name)
            for name, record in self._fleet.items()
        )
