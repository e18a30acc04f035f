"""Issues kubeconfigs for engaged clusters, each from the first issuer that covers the cluster.

There is no `await` between the caller's check of the registry and the answer, so nothing is issued after a
disengagement, even if a mint was in flight.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import Issuer, Scope, ServerStatingIssuer
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.instruments import CredentialMetrics
from milo_discoveryd.kubeconfigs import rendering
from milo_discoveryd.kubeconfigs.issued_kubeconfig import IssuedKubeconfig
from milo_discoveryd.kubeconfigs.issuer_health import IssuerHealth
from milo_discoveryd.kubeconfigs.lease import Draw, refresh_at
from milo_discoveryd.kubeconfigs.lease_table import LeaseEntry, LeaseKey
from milo_discoveryd.kubeconfigs.minter import LeaseListener, Minter
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.model.declared_target import DeclaredTarget
from milo_discoveryd.rights.rights import UNLIMITED, Recipient, Terms
from milo_kube.credential import Credential, CredentialError
from milo_kube.label_selector import Selector
from milo_kube.rfc3339 import rfc3339

FIRST_CREDENTIAL_TIMEOUT_S = 10.0
"""How long a caller waits if no credential is held."""
FRESH_CREDENTIAL_TIMEOUT_S = 2.0
"""How long a caller waits for a fresh credential if an old but valid one is held."""
FIRST_ATTEMPT_S = 1.0
"""How long a stream waits for an issuer that has never answered, so that its first events carry credentials."""
CA_RETRY_AFTER_S = 5.0
"""How long callers wait if the file with the CA of a cluster cannot be read."""
NOT_OWNED = "this daemon's Lease in the shard group was not renewed in time, so another daemon may own the cluster"
REJECTED = "rejected"
"""The reason of clusters whose API servers answer 401 to the issued credential."""
NO_ISSUER = "no credential issuer is configured, so this daemon issues no kubeconfigs"


class IssuerAudit(Protocol):
    def issued(self, to: Recipient, what: str, **about: object) -> None: ...


class IssuerAssignment(msgspec.Struct, frozen=True):
    """An issuer and the clusters that it covers."""

    issuer: Issuer
    selector: Selector = Selector()
    sources: frozenset[str] = frozenset()
    """The sources of the clusters; all if empty."""

    def covers(self, cluster: Cluster) -> bool:
        target = cluster.target
        return self.selector.matches(target.labels) and (not self.sources or target.source in self.sources)


class NoIssuerError(UnfitError):
    """No issuer covers this cluster."""


class CredentialUnavailableError(CredentialError):
    """No valid credential is held, and none can be obtained at present."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CredentialDescription(msgspec.Struct, frozen=True):
    """The credential held for one cluster, without the secret."""

    issuer: str
    type: str
    expires_at: float | None
    """Expiry of the held credential; None if none is held."""
    problem: str
    """Why no new credential can be obtained at present, or empty."""


class Kubeconfigs:
    def __init__(
        self,
        issuers: Sequence[IssuerAssignment],
        *,
        trust: Callable[[Target, IssuedCredential | None], ClusterTrust],
        metrics: CredentialMetrics,
        audit: IssuerAudit,
        max_ttl_s: float,
        default_ttl_s: float,
        address: Callable[[], str | None] = lambda: None,
        concurrency: int = 10,
        per_second: float = 50.0,
        may_issue: Callable[[], bool] = lambda: True,
        draw: Draw = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`may_issue`: evaluated in the step that issues a kubeconfig."""
        self.max_ttl_s = max_ttl_s
        self.may_issue = may_issue
        self.metrics = metrics
        self.audit = audit
        self.trust = trust
        self.address = address
        self.draw = draw
        self.wall = wall
        self._default_ttl_s = default_ttl_s
        self._listeners: set[LeaseListener] = set()
        self._rejected: dict[str, str] = {}
        """The clusters whose API servers reject the issued credential, with the names of their issuers."""
        self._assigned = [
            (
                each,
                Minter(
                    each.issuer,
                    metrics=metrics,
                    changed=self._lease_changed,
                    draw=draw,
                    concurrency=concurrency,
                    per_second=per_second,
                    wall=wall,
                ),
            )
            for each in issuers
        ]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _, minter in self._assigned:
                minter.keep_ready(self._ttl_s(None, UNLIMITED))
                tasks.create_task(minter.run(), name=f"credentials of {minter.issuer.name}")

    async def refusal(self, terms: Terms) -> UnfitError | None:
        """Return why no cluster can ever have a kubeconfig on these terms, or None if some can."""
        found: UnfitError = NoIssuerError(NO_ISSUER)
        for _, minter in self._assigned:
            if not terms.allow(minter.issuer.name):
                continue
            await minter.first_attempt(FIRST_ATTEMPT_S)
            if (unfit := _unfit_for_all(minter)) is None:
                return None
            found = unfit
        return found

    def find(self, cluster: Cluster, ttl_s: float | None, terms: Terms) -> "LeaseHandle | None":
        """Return a handle on the cluster's lease, or None if no issuer that these terms allow covers the cluster."""
        minter = self._minter(cluster, terms)
        return None if minter is None else LeaseHandle(self, minter, cluster, self._ttl_s(ttl_s, terms))

    def lease(self, cluster: Cluster, ttl_s: float | None, terms: Terms) -> "LeaseHandle":
        """Like `find`, but raises NoIssuerError."""
        handle = self.find(cluster, ttl_s, terms)
        if handle is not None:
            return handle
        if not self._assigned:
            raise NoIssuerError(NO_ISSUER)
        raise NoIssuerError(
            f"no credential issuer covers {cluster.target.name}: its labels match none of kubeconfigs.issuers"
            f"{'' if terms.issuers is None else ' that the rule for this caller allows'}"
        )

    def held(self, cluster: Cluster) -> Credential | None:
        """Return the credential that the cluster's operators have at present, without requesting one."""
        issued = self._held(cluster)
        return None if issued is None else issued.credential

    def probed(self, cluster: Cluster, *, is_rejected: bool) -> None:
        """Record whether the cluster's API server rejects the issued credential, as a probe with it found."""
        minter = self._minter(cluster, UNLIMITED)
        if is_rejected and minter is not None:
            self._rejected[cluster.target.name] = minter.issuer.name
        else:
            self._rejected.pop(cluster.target.name, None)

    async def trust_of(self, cluster: Cluster) -> ClusterTrust:
        """Return how operators reach and verify the cluster.

        Requests a credential if that comes with it and there is none yet.
        """
        handle = self.find(cluster, None, UNLIMITED)
        if handle is not None and handle.needs_credential_for_trust and self._held(cluster) is None:
            await handle.wait()
        return self.trust(cluster.target, self._held(cluster))

    def describe(self, cluster: Cluster) -> CredentialDescription | None:
        """Describe the credential that the cluster's operators have at present, without requesting one; None if no
        issuer covers the cluster."""
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
        self.metrics.kubeconfig_issued(result)

    def disengaged(self, cluster: Cluster) -> None:
        """Drop the cluster's leases. To be called in the same step as its disengagement."""
        for _, minter in self._assigned:
            minter.drop(cluster)
        self._rejected.pop(cluster.target.name, None)

    def subscribe(self, listener: LeaseListener) -> Callable[[], None]:
        """Call `listener` for each lease with a new credential, until the returned function is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def health(self) -> list[IssuerHealth]:
        return [
            IssuerHealth(
                name=minter.issuer.name,
                type=minter.issuer.type,
                problem="" if minter.failure is None else str(minter.failure),
                expires_at=min((issued.expires_at for issued in minter.held()), default=None),
                leases=len(minter),
                failing=minter.failing() + self._rejected_of(minter.issuer.name),
            )
            for _, minter in self._assigned
        ]

    def _rejected_of(self, issuer: str) -> Counter[str]:
        count = sum(each == issuer for each in self._rejected.values())
        return Counter({REJECTED: count} if count else ())

    def problem(self, cluster: Cluster, terms: Terms) -> str | None:
        """Return why no kubeconfig can be issued for the cluster at present, or None."""
        minter = self._minter(cluster, terms)
        problem = None if minter is None else minter.problem(cluster)
        return None if problem is None else str(problem)

    def _held(self, cluster: Cluster) -> IssuedCredential | None:
        minter = self._minter(cluster, UNLIMITED)
        return None if minter is None else minter.held_for(cluster)

    def _lease_changed(self, key: LeaseKey, replaced: str) -> None:
        for listener in [*self._listeners]:
            listener(key, replaced)

    def _ttl_s(self, requested: float | None, terms: Terms) -> float:
        return terms.ttl_s(min(self.max_ttl_s, self._default_ttl_s if requested is None else requested))

    def _minter(self, cluster: Cluster, terms: Terms) -> Minter | None:
        return next(
            (minter for each, minter in self._assigned if each.covers(cluster) and terms.allow(minter.issuer.name)),
            None,
        )


class LeaseHandle:
    """One request's handle on the lease of an engaged cluster.

    The lease itself begins with the first use, so a handle alone costs the issuer nothing.
    """

    def __init__(self, kubeconfigs: Kubeconfigs, minter: Minter, cluster: Cluster, ttl_s: float) -> None:
        self._kubeconfigs = kubeconfigs
        self._minter = minter
        self._cluster = cluster
        self.key = minter.key(cluster, ttl_s)

    @property
    def needs_credential_for_trust(self) -> bool:
        """Whether the CA of the cluster comes with its credential."""
        target, issuer = self._cluster.target, self._minter.issuer
        if isinstance(issuer, ServerStatingIssuer) and issuer.states_server:
            return True
        return isinstance(target, DeclaredTarget) and target.authorities is None

    async def wait(self) -> None:
        """Wait for a credential, or until it is clear that there will be none soon."""
        entry = self._minter.request(self.key, self._cluster)
        is_held = entry.lease.valid(self._minter.now()) is not None
        await self._minter.settle(entry, FRESH_CREDENTIAL_TIMEOUT_S if is_held else FIRST_CREDENTIAL_TIMEOUT_S)

    async def wait_for_issuer(self) -> None:
        """Wait briefly for the first answer of the issuer."""
        await self._minter.first_attempt(FIRST_ATTEMPT_S)

    def credential(self) -> IssuedCredential | None:
        """Return the credential that `issue` would embed."""
        return self._minter.request(self.key, self._cluster).lease.valid(self._minter.now())

    def issue(self, incarnation: str, to: Recipient) -> IssuedKubeconfig:
        """Issue a kubeconfig that embeds the credential. Raises CredentialError if there is none."""
        if not self._kubeconfigs.may_issue():
            raise CredentialUnavailableError(NOT_OWNED, retry_after_s=1.0)
        entry = self._minter.request(self.key, self._cluster)
        now = self._minter.now()
        issued = entry.lease.valid(now)
        if issued is None:
            raise _unavailable(self._minter, entry)
        target = self._cluster.target
        trust, act_as = self._trust(issued), to.terms.act_as
        text = rendering.embedded(target.name, trust.server or target.endpoint, trust, issued.credential, act_as)
        entry.is_wanted = True
        self._kubeconfigs.metrics.kubeconfig_issued("ok")
        self._kubeconfigs.audit.issued(
            to,
            "kubeconfig issued",
            cluster=target.name,
            uid=target.uid,
            incarnation=incarnation,
            issuer=self._minter.issuer.name,
            expires_at=rfc3339(issued.expires_at),
            fingerprint=issued.fingerprint,
            **_acting(to),
        )
        return IssuedKubeconfig(
            cluster=target.name,
            text=text,
            issued_at=now.wall,
            expires_at=issued.expires_at,
            refresh_at=refresh_at(issued, now.wall, self._kubeconfigs.draw),
            credential=issued,
        )

    def issue_exec(self, incarnation: str, to: Recipient) -> IssuedKubeconfig:
        """Issue a kubeconfig without a secret, whose exec plugin asks the daemon for a credential each time.

        Raises UnfitError if the daemon could never return one.
        """
        if (unfit := _unfit_for_all(self._minter)) is not None:
            raise unfit
        target, held = self._cluster.target, None
        if self.needs_credential_for_trust:
            entry = self._minter.request(self.key, self._cluster)
            held = entry.lease.valid(self._minter.now())
            if held is None:
                raise _unavailable(self._minter, entry)
        trust, address = self._trust(held), self._kubeconfigs.address()
        text = rendering.exec_form(target.name, trust.server or target.endpoint, trust, address, to.terms.act_as)
        self._kubeconfigs.metrics.kubeconfig_issued("ok")
        self._kubeconfigs.audit.issued(
            to,
            "exec kubeconfig issued",
            cluster=target.name,
            uid=target.uid,
            incarnation=incarnation,
            **_acting(to),
        )
        return IssuedKubeconfig(cluster=target.name, text=text, issued_at=self._kubeconfigs.wall())

    def _trust(self, issued: IssuedCredential | None) -> ClusterTrust:
        """Return the trust settings of the cluster. Raises CredentialUnavailableError if its CA file cannot be read."""
        try:
            return self._kubeconfigs.trust(self._cluster.target, issued)
        except CredentialError as error:
            raise CredentialUnavailableError(str(error), CA_RETRY_AFTER_S) from error


def _acting(to: Recipient) -> dict[str, object]:
    """Return the fields of an audit event for the impersonated user."""
    act_as = to.terms.act_as
    return {} if act_as is None else {"act_as": act_as.user, "act_as_groups": [*act_as.groups]}


def _unavailable(minter: Minter, entry: LeaseEntry) -> CredentialError:
    failure = entry.lease.failure or minter.failure
    unfit = entry.lease.failure or _unfit_for_all(minter)
    if isinstance(unfit, UnfitError):
        return unfit
    due_at = entry.lease.due_at
    wait_s = 1.0 if due_at is None else max(1.0, due_at - minter.now().steady)
    return CredentialUnavailableError(str(failure or f"{minter.issuer.name} has not answered yet"), wait_s)


def _unfit_for_all(minter: Minter) -> UnfitError | None:
    """Return why an issuer whose one credential serves all clusters can serve none."""
    is_shared = minter.issuer.scope is Scope.IDENTITY
    return minter.failure if is_shared and isinstance(minter.failure, UnfitError) else None
