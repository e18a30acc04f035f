"""Issues kubeconfigs for engaged clusters, each from the first issuer that covers the cluster.

There is no `await` between the caller's check of the fleet and the answer, so nothing is issued after a
disengagement, even if a mint was in flight.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import Issuer
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.kubeconfigs.credential_budget import CredentialBudget
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.kubeconfigs.lease_handle import Issuance, LeaseHandle
from milo_discoveryd.kubeconfigs.lease_table import LeaseKey
from milo_discoveryd.kubeconfigs.minter import LeaseListener, Minter
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.rights.rights import UNLIMITED, Terms
from milo_kube.credential import Credential
from milo_kube.label_selector import Selector

REJECTED = "rejected"
"""The reason in `IssuerHealth.failing` for clusters whose API servers answer 401 to the issued credential."""
MANY_LEASES = 1000
HEALTH_KEPT_S = 20e-6
"""For how long the health of issuers with many leases is kept, for each of the leases: it takes up to 2 µs for each,
and callers can ask for it at any rate."""
NO_ISSUER = "no credential issuer is configured to issue kubeconfigs"


class IssuerAssignment(msgspec.Struct, frozen=True):
    """An issuer and the clusters that it covers."""

    issuer: Issuer
    selector: Selector = Selector()
    sources: frozenset[str] = frozenset()
    """The sources of the clusters; empty for all sources."""

    def covers(self, cluster: Cluster) -> bool:
        target = cluster.target
        return self.selector.matches(target.labels) and (not self.sources or target.source in self.sources)


class NoIssuerError(UnfitError):
    """No issuer covers this cluster."""


class CredentialDescription(msgspec.Struct, frozen=True):
    """The credential held for one cluster, without the secret."""

    issuer: str
    type: str
    expires_at: float | None
    """Expiry of the held credential; None if none is held."""
    problem: str
    """Why no new credential can be obtained at present, or empty."""


class CredentialLimits(msgspec.Struct, frozen=True):
    """How long credentials are valid, and how fast each issuer mints them."""

    max_ttl_s: float
    default_ttl_s: float
    concurrency: int = 10
    per_second: float = 50.0


class Kubeconfigs:
    def __init__(self, issuers: Sequence[IssuerAssignment], issuance: Issuance, limits: CredentialLimits) -> None:
        self.max_ttl_s = limits.max_ttl_s
        self.issuance = issuance
        self._default_ttl_s = limits.default_ttl_s
        self._listeners: set[LeaseListener] = set()
        self._rejected: dict[str, str] = {}
        """The clusters whose API servers reject the issued credential, with the names of their issuers."""
        self._health: tuple[list[IssuerHealth], float] = [], 0.0
        """The health of the issuers, and until when it is kept."""
        self._assigned = [
            (
                assignment,
                Minter(
                    assignment.issuer,
                    metrics=issuance.metrics,
                    changed=self._lease_changed,
                    draw=issuance.draw,
                    concurrency=limits.concurrency,
                    per_second=limits.per_second,
                    wall=issuance.wall,
                    budget=CredentialBudget(len(issuers)),
                ),
            )
            for assignment in issuers
        ]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _, minter in self._assigned:
                minter.keep_ready(self._ttl_s(None, UNLIMITED))
                tasks.create_task(minter.run(), name=f"credentials of {minter.issuer.name}")

    async def refusal(self, terms: Terms) -> UnfitError | None:
        """Return why these terms allow no kubeconfig for any cluster at present; None if they allow one for some."""
        found: UnfitError = NoIssuerError(NO_ISSUER)
        for _, minter in self._assigned:
            if not terms.allow(minter.issuer.name):
                continue
            await minter.first_attempt()
            if (unfit := minter.unfit_for_all()) is None:
                return None
            found = unfit
        return found

    def find(self, cluster: Cluster, ttl_s: float | None, terms: Terms, caller: str = "") -> LeaseHandle | None:
        """Return a caller's handle on the cluster's lease, or None if none of the issuers that the terms allow covers
        the cluster."""
        minter = self._minter(cluster, terms)
        if minter is None:
            return None
        return LeaseHandle(self.issuance, minter, cluster, self._ttl_s(ttl_s, terms), caller)

    def require_lease(self, cluster: Cluster, ttl_s: float | None, terms: Terms, caller: str = "") -> LeaseHandle:
        """Like `find`, but raises NoIssuerError instead of returning None."""
        handle = self.find(cluster, ttl_s, terms, caller)
        if handle is not None:
            return handle
        if not self._assigned:
            raise NoIssuerError(NO_ISSUER)
        raise NoIssuerError(
            f"no credential issuer covers {cluster.target.name}: its labels and source match no entry of "
            f"kubeconfigs.issuers{'' if terms.issuers is None else ' that the rule for this caller allows'}"
        )

    def held(self, cluster: Cluster) -> Credential | None:
        """Return the credential that is held for the cluster, without requesting one."""
        issued = self._held(cluster)
        return None if issued is None else issued.credential

    def probed(self, cluster: Cluster, *, is_rejected: bool) -> None:
        """Record whether a probe found that the cluster's API server rejects the issued credential."""
        minter = self._minter(cluster, UNLIMITED)
        if is_rejected and minter is not None:
            self._rejected[cluster.target.name] = minter.issuer.name
        else:
            self._rejected.pop(cluster.target.name, None)

    async def trust_of(self, cluster: Cluster) -> ClusterTrust:
        """Return how operators reach and verify the cluster. If the issuer returns the CA together with the credential,
        request a credential first."""
        handle = self.find(cluster, None, UNLIMITED)
        if handle is not None and handle.needs_credential_for_trust and self._held(cluster) is None:
            await handle.wait_for_credential()
        return self.issuance.trust(cluster.target, self._held(cluster))

    def describe(self, cluster: Cluster) -> CredentialDescription | None:
        """Describe the credential that is held for the cluster, without requesting one; None if no issuer covers the
        cluster."""
        minter = self._minter(cluster, UNLIMITED)
        if minter is None:
            return None
        issued, problem = minter.held_for(cluster), minter.problem(cluster)
        return CredentialDescription(
            issuer=minter.issuer.name,
            type=minter.issuer.type,
            expires_at=None if issued is None else issued.expires_at,
            problem="" if problem is None else str(problem),
        )

    def refused(self, result: str) -> None:
        """Count a request that got no kubeconfig."""
        self.issuance.metrics.kubeconfig_issued(result)

    def disengaged(self, cluster: Cluster) -> None:
        """Drop the cluster's leases. Must be called in the same step of the event loop as the disengagement."""
        for _, minter in self._assigned:
            minter.drop(cluster)
        self._rejected.pop(cluster.target.name, None)

    def subscribe(self, listener: LeaseListener) -> Callable[[], None]:
        """Call `listener` for each lease with a new credential, until the returned function is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def health(self) -> list[IssuerHealth]:
        found, until = self._health
        if (now := time.monotonic()) >= until:
            found = self._present_health()
            count = len(self._rejected) + sum(len(minter) for _, minter in self._assigned)
            self._health = found, now + HEALTH_KEPT_S * count if count >= MANY_LEASES else now
        return found

    def _present_health(self) -> list[IssuerHealth]:
        return [
            IssuerHealth(
                name=minter.issuer.name,
                type=minter.issuer.type,
                problem="" if minter.failure is None else str(minter.failure),
                expires_at=min((issued.expires_at for issued in minter.held()), default=None),
                leases=len(minter),
                failing=minter.failing() + self._rejected_of(minter.issuer.name),
                sources=assignment.sources,
            )
            for assignment, minter in self._assigned
        ]

    def _rejected_of(self, issuer: str) -> Counter[str]:
        count = sum(rejecting == issuer for rejecting in self._rejected.values())
        return Counter({REJECTED: count} if count else ())

    def problem(self, cluster: Cluster, terms: Terms) -> str | None:
        """Return why the cluster gets no new credential from its issuer; None if it gets one, or has no issuer."""
        minter = self._minter(cluster, terms)
        problem = None if minter is None else minter.problem(cluster)
        return None if problem is None else str(problem)

    def _held(self, cluster: Cluster) -> IssuedCredential | None:
        minter = self._minter(cluster, UNLIMITED)
        return None if minter is None else minter.held_for(cluster)

    def _lease_changed(self, key: LeaseKey, replaced: str) -> None:
        for listener in [*self._listeners]:
            with log.contained("credential not announced to a stream", issuer=key.issuer):
                listener(key, replaced)

    def _ttl_s(self, requested: float | None, terms: Terms) -> float:
        return terms.ttl_s(min(self.max_ttl_s, self._default_ttl_s if requested is None else requested))

    def _minter(self, cluster: Cluster, terms: Terms) -> Minter | None:
        return next(
            (
                minter
                for assignment, minter in self._assigned
                if assignment.covers(cluster) and terms.allow(minter.issuer.name)
            ),
            None,
        )
