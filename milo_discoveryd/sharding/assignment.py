"""Assigns the clusters that this member owns to the fleet, which engages them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from itertools import chain

import msgspec

from milo_discoveryd.credentials.issuers.issuer import FencingIssuer
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.fleet.changes import steady_now
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import DisengageReason, source_of
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.sharding.credential_fence import TOKEN_CACHE_S, CredentialFence
from milo_discoveryd.sharding.leases import View
from milo_discoveryd.sharding.ownership import Decision, KeyOwnership, Owners, Ownership
from milo_kube.credential import CredentialError
from milo_kube.reflect.view_status import ViewState
from milo_kube.retry_after import delay_s

STARTING = "the members of the shard group are not known yet"
LOST = "the Lease of this member of the shard group was not renewed in time"
LEFT = "this member has left the shard group"
TAKEN = (
    "the Lease of this member of the shard group, or the view, was taken over or changed while the member was leaving"
)
REVOCATION_RETRY_S = 2.0
_NAMED = 5
"""How many of the clusters are named whose credentials cannot be revoked."""


class Decisions:
    """The decisions that an ownership makes about clusters."""

    def __init__(self, ownership: Ownership, owners: Owners) -> None:
        self.ownership = ownership
        self.owners = owners

    def __getitem__(self, name: str) -> Decision:
        return self.ownership.decide(name, self.owners)

    def is_unowned(self, name: str) -> bool:
        """Return whether this member should own a cluster, as far as its owner was computed."""
        return name in self.owners and self[name].state is not KeyOwnership.FOREIGN

    def elsewhere(self, name: str) -> str | None:
        """Return why this member must not engage a cluster; None if it may."""
        decision, number = self[name], self.ownership.view.number
        if decision.state is KeyOwnership.OWNED:
            return None
        if decision.state is KeyOwnership.FOREIGN:
            owner = "no member" if decision.member is None else f"member {decision.member}"
            return f"{owner} of the shard group owns it (view {number})"
        if not self.ownership.may_engage:
            return f"this member owns it (view {number}), and waits until the Leases are known to be current"
        return f"this member will own it (view {number}) once member {decision.member} has released it"


class FencedIssuer(msgspec.Struct, frozen=True):
    """An issuer whose credentials are revoked, and the sources of the clusters that it serves; empty for all."""

    issuer: FencingIssuer
    sources: frozenset[str] = frozenset()

    def serves(self, source: str) -> bool:
        return not self.sources or source in self.sources


class IssuerRevocation:
    """Revokes the credentials that other members obtained from one issuer. What fails or hangs there delays no cluster
    that other issuers serve."""

    def __init__(self, fenced: FencedIssuer, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.fenced = fenced
        self.fence = CredentialFence()
        self._sleep = sleep
        self._has_failed = False
        self._changed = asyncio.Event()

    def follow(self, ownership: Ownership | None) -> None:
        self.fence.follow(ownership)
        self._changed.set()

    @property
    def is_decided(self) -> bool:
        """Whether at least some clusters may be engaged, or only those of a part of the sources must wait."""
        return self.fence.is_cleared or (self._has_failed and bool(self.fenced.sources))

    async def run(self, decided: Callable[[], None], present: Callable[[], Ownership | None]) -> None:
        while True:
            self._changed.clear()
            due = self.fence.due
            if due is None:
                await self._changed.wait()
                continue
            try:
                refused = await self.fenced.issuer.revoke_others(partial(self.fence.covers, due, present))
            except Exception as error:  # noqa: BLE001  (it is tried again, whatever it is)
                wait_s, had_failed, self._has_failed = _noted(error, self.fenced), self._has_failed, True
                if not had_failed:
                    decided()
                await self._sleep(wait_s)
                continue
            self._has_failed = False
            if refused:
                problem = str(next(iter(refused.values())))
                log.warning(
                    "credentials of former owners not revoked", clusters=sorted(refused)[:_NAMED], problem=problem
                )
            await self._sleep(TOKEN_CACHE_S)
            self.fence.revoked(due, frozenset(refused))
            decided()


def _noted(error: Exception, fenced: FencedIssuer) -> float:
    """Log that nothing could be revoked at an issuer. Return how many seconds to wait before the next attempt."""
    sources = sorted(fenced.sources)
    if isinstance(error, CredentialError):
        log.warning("credentials of former owners not revoked", sources=sources, problem=str(error))
    else:
        log.exception("credentials of former owners not revoked", sources=sources)
    return delay_s(REVOCATION_RETRY_S, error.retry_after_s if isinstance(error, BackendError) else None)


class CredentialRevocation:
    """Revokes the credentials that other members obtained for clusters, before this member engages these clusters."""

    def __init__(
        self, issuers: Iterable[FencedIssuer], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.issuers = tuple(IssuerRevocation(fenced, sleep) for fenced in issuers)

    def follow(self, ownership: Ownership | None) -> None:
        """Set the ownership of the member; None if it must not own anything."""
        for issuer in self.issuers:
            issuer.follow(ownership)

    @property
    def is_cleared(self) -> bool:
        """Whether at least some clusters may be engaged, and for the others it was tried."""
        are_decided = all(issuer.is_decided for issuer in self.issuers)
        return are_decided and (not self.issuers or any(issuer.fence.is_cleared for issuer in self.issuers))

    def is_cleared_for(self, source: str) -> bool:
        """Return whether at least some clusters of a source may be engaged, whatever is tried for other sources."""
        return all(issuer.fence.is_cleared for issuer in self.issuers if issuer.fenced.serves(source))

    def clears(self, cluster: str) -> bool:
        source = source_of(cluster)
        return all(issuer.fence.clears(cluster) for issuer in self.issuers if issuer.fenced.serves(source))

    async def run(self, decided: Callable[[], None], present: Callable[[], Ownership | None]) -> None:
        """Perform due revocations until canceled. `decided` is called when more clusters may be engaged, or when it is
        known that some must wait; `present` returns the ownership at the moment of each deletion."""
        async with asyncio.TaskGroup() as tasks:
            for issuer in self.issuers:
                tasks.create_task(issuer.run(decided, present), name="revoke credentials of an issuer")


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
        fleet.releases.is_sharded, fleet.releases.began_at = True, steady_now()
        fleet.changes.add_listener(EventType.DISENGAGED, self._ended)
        for source in fleet.sources:
            source.await_assignment(STARTING)

    def assign(self, ownership: Ownership, holds: Callable[[], bool]) -> Iterator[None]:
        self._decisions = decisions = Decisions(ownership, self._owners(ownership.view))
        self._follow(ownership)

        def elsewhere(name: str) -> str | None:
            return decisions.elsewhere(name) or self._uncleared(name) or (None if holds() else LOST)

        for source in self._fleet.sources:
            is_decided = (ownership.may_engage and self._is_cleared(source.name)) or not ownership.is_in_view
            yield from source.assign(
                elsewhere, self._release_timeout_s, is_decided=is_decided, keeps_held=ownership.is_in_view
            )

    def decide_by(self, ownership: Ownership) -> None:
        assert self._decisions is not None, "no assignment is under way"
        self._decisions.ownership = ownership
        self._follow(ownership)

    def _owners(self, view: View) -> Owners:
        if self._decisions is not None and self._decisions.owners.view == view:
            return self._decisions.owners
        return Owners(view, lambda name: self._fleet[name] is not None)

    def _follow(self, ownership: Ownership | None) -> None:
        if self._revocation is not None:
            self._revocation.follow(ownership)

    def _is_cleared(self, source: str) -> bool:
        return self._revocation is None or self._revocation.is_cleared or self._revocation.is_cleared_for(source)

    def _uncleared(self, name: str) -> str | None:
        """Return why a cluster that this member owns cannot be engaged yet; None if it can, or is engaged already."""
        if self._revocation is None or self._is_engaged(name) or self._revocation.clears(name):
            return None
        return "this member owns it, and waits until the credentials of former owners are revoked"

    def lose_ownership(self, reason: str) -> Iterator[None]:
        self._follow(None)
        return chain(*[source.clusters.lose_ownership(reason) for source in self._fleet.sources])

    def lost(self) -> Iterator[str] | None:
        """Return the clusters that this daemon no longer owns, or may not, and that are still engaged, or in which a
        subscriber without a stream may work on; None if that is unknown.

        Subscribers of an earlier run may keep clusters that this run does not know: until a source has a list and, if
        that lacks clusters, until it is verified. A newcomer would take over clusters that it does not know, or, of a
        state file or before its source became stale, knows in a state from before the present owners.
        """
        is_newcomer = self._decisions is not None and self._decisions.ownership.is_newcomer
        if (is_newcomer and not self._is_followed()) or self._fleet.awaits_lists:
            return None
        if self._fleet.releases.may_keep_others(steady_now()):
            return None
        unassigned = (name for source in self._fleet.sources for name in source.clusters.unassigned)
        ending = chain(self._fleet.releases, self._fleet.releases.unreached(steady_now()))
        return chain(filter(self._is_lost, ending), filter(self._is_engaged, unassigned))

    def _ended(self, event: Event) -> None:
        # Of a move, its drain knows this; and with the ownership of this daemon ends that of its subscribers.
        is_known = event.reason is DisengageReason.MOVED and event.cluster.draining is not None
        if not is_known and not any(source.clusters.is_lost for source in self._fleet.sources):
            self._fleet.releases.note_unreached(event.cluster, steady_now())

    def _is_engaged(self, name: str) -> bool:
        record = self._fleet[name]
        return record is not None and record.engaged

    def _is_lost(self, name: str) -> bool:
        source = self._fleet.source_of(name)
        return source is not None and source.engagements.assigned_elsewhere(name) is not None

    def is_synced(self) -> bool:
        return self._fleet.synced

    def _is_followed(self) -> bool:
        sources = self._fleet.sources
        is_listed = self.is_synced() and all(source.progress.is_complete for source in sources)
        collections = chain(*[source.collections for source in sources])
        return is_listed and all(each.followed.state is ViewState.STREAMING for each in collections)

    def unowned(self) -> int:
        decisions = self._decisions
        if decisions is None:
            return 0
        unassigned = (name for name, record in self._fleet.items() if record.state is ObjectState.UNASSIGNED)
        return sum(decisions.is_unowned(name) and not self._stays_where_engaged(name) for name in unassigned)

    def _stays_where_engaged(self, name: str) -> bool:
        source = self._fleet.source_of(name)
        is_uncertain = source is not None and source.is_uncertain(name)
        return is_uncertain or self._fleet.changes.engagements.depends_on_order(name)
