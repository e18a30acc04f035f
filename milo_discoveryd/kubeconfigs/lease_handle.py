"""One request's lease of an engaged cluster's credential, and the kubeconfigs that are issued from it."""

import random
import time
from collections.abc import Callable
from typing import Protocol

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import ServerStatingIssuer
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.instruments import CredentialMetrics
from milo_discoveryd.kubeconfigs import rendering
from milo_discoveryd.kubeconfigs.credential_lease import Draw, refresh_at
from milo_discoveryd.kubeconfigs.lease_table import LeaseEntry
from milo_discoveryd.kubeconfigs.minter import LeaseWait, Minter
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust, IssuedKubeconfig
from milo_discoveryd.model.cluster import Cluster, DeclaredTarget, Target
from milo_discoveryd.rights.rights import Recipient
from milo_kube.credential import CredentialError
from milo_kube.rfc3339 import rfc3339

FIRST_CREDENTIAL_TIMEOUT_S = 10.0
"""How long a caller waits if no credential is held."""
FRESH_CREDENTIAL_TIMEOUT_S = 2.0
"""How long a caller waits for a fresh credential if an old but valid one is held."""
CA_RETRY_AFTER_S = 5.0
"""The retry delay of callers if the file with the CA of a cluster cannot be read."""
NOT_OWNED = "this daemon owns no clusters of the shard group at present, so another daemon may own the cluster"


class IssuerAudit(Protocol):
    def issued(self, to: Recipient, what: str, **about: object) -> None: ...


class CredentialUnavailableError(CredentialError):
    """No valid credential is held, and none can be obtained at present."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Issuance:
    """What issuing kubeconfigs requires in addition to credentials: addresses, CAs, metrics, audit log and clocks."""

    def __init__(
        self,
        *,
        trust: Callable[[Target, IssuedCredential | None], ClusterTrust],
        metrics: CredentialMetrics,
        audit: IssuerAudit,
        address: Callable[[], str | None] = lambda: None,
        may_issue: Callable[[], bool] = lambda: True,
        draw: Draw = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`may_issue` returns whether the daemon may issue credentials now: in a shard group, only while its
        ownership is valid."""
        self.trust = trust
        self.metrics = metrics
        self.audit = audit
        self.address = address
        self.may_issue = may_issue
        self.draw = draw
        self.wall = wall


class LeaseHandle:
    """One request's handle on the lease of an engaged cluster.

    The lease is created at the first use, so an unused handle causes no request to the issuer.
    """

    def __init__(self, issuance: Issuance, minter: Minter, cluster: Cluster, ttl_s: float, caller: str = "") -> None:
        """`caller` is the one that waits for the credential; empty if the daemon itself does."""
        self._caller = caller
        self._issuance = issuance
        self._minter = minter
        self._cluster = cluster
        self.key = minter.key(cluster, ttl_s)

    @property
    def needs_credential_for_trust(self) -> bool:
        """Whether the cluster's CA or address is known only once the issuer has returned it with a credential."""
        target, issuer = self._cluster.target, self._minter.issuer
        if isinstance(issuer, ServerStatingIssuer) and issuer.states_server:
            return True
        return isinstance(target, DeclaredTarget) and target.authorities is None

    async def wait_for_credential(self) -> None:
        """Wait, for a limited time, until the lease has a useful credential or the attempt to get one has failed."""
        entry = self._minter.request(self.key, self._cluster, self._caller)
        is_held = entry.lease.valid(self._minter.now()) is not None
        await self._minter.settle(entry, FRESH_CREDENTIAL_TIMEOUT_S if is_held else FIRST_CREDENTIAL_TIMEOUT_S)

    async def wait_for_issuer(self) -> None:
        """Wait briefly for the first answer of the issuer."""
        await self._minter.first_attempt()

    def wait(self) -> LeaseWait:
        """Keep the lease, if it has no credential yet, until the wait ends."""
        return self._minter.wait(self._minter.request(self.key, self._cluster, self._caller))

    def credential(self) -> IssuedCredential | None:
        """Return the credential that `issue` would embed."""
        return self._minter.request(self.key, self._cluster, self._caller).lease.valid(self._minter.now())

    def issue(self, incarnation: str, to: Recipient) -> IssuedKubeconfig:
        """Issue a kubeconfig that embeds the credential. Raises CredentialError if there is none."""
        if not self._issuance.may_issue():
            raise CredentialUnavailableError(NOT_OWNED, retry_after_s=1.0)
        entry = self._minter.request(self.key, self._cluster, self._caller)
        now = self._minter.now()
        issued = entry.lease.valid(now)
        if issued is None:
            raise _unavailable(self._minter, entry)
        target = self._cluster.target
        trust, act_as = self._trust(issued), to.terms.act_as
        text = rendering.embedded(target.name, trust.server or target.endpoint, trust, issued.credential, act_as)
        entry.is_wanted = True
        self._issuance.metrics.kubeconfig_issued("ok")
        self._issuance.audit.issued(
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
            refresh_at=refresh_at(issued, now.wall, self._issuance.draw),
            credential=issued,
        )

    def issue_exec(self, incarnation: str, to: Recipient) -> IssuedKubeconfig:
        """Issue a kubeconfig without a secret, whose exec plugin requests the credential from the daemon at each use.

        Raises UnfitError if the daemon cannot return any credential, and CredentialUnavailableError if the CA of the
        cluster is not known yet.
        """
        if (unfit := self._minter.unfit_for_all()) is not None:
            raise unfit
        target, held = self._cluster.target, None
        if self.needs_credential_for_trust:
            entry = self._minter.request(self.key, self._cluster, self._caller)
            held = entry.lease.valid(self._minter.now())
            if held is None:
                raise _unavailable(self._minter, entry)
        trust, address = self._trust(held), self._issuance.address()
        text = rendering.exec_form(target.name, trust.server or target.endpoint, trust, address, to.terms.act_as)
        self._issuance.metrics.kubeconfig_issued("ok")
        self._issuance.audit.issued(
            to,
            "exec kubeconfig issued",
            cluster=target.name,
            uid=target.uid,
            incarnation=incarnation,
            **_acting(to),
        )
        return IssuedKubeconfig(cluster=target.name, text=text, issued_at=self._issuance.wall())

    def _trust(self, issued: IssuedCredential | None) -> ClusterTrust:
        """Return the trust settings of the cluster. Raises CredentialUnavailableError if its CA file cannot be read."""
        try:
            return self._issuance.trust(self._cluster.target, issued)
        except CredentialError as error:
            raise CredentialUnavailableError(str(error), CA_RETRY_AFTER_S) from error


def _acting(to: Recipient) -> dict[str, object]:
    """Return the fields of an audit event for the impersonated user."""
    act_as = to.terms.act_as
    return {} if act_as is None else {"act_as": act_as.user, "act_as_groups": [*act_as.groups]}


def _unavailable(minter: Minter, entry: LeaseEntry) -> CredentialError:
    failure = entry.lease.failure or minter.failure_of(entry.source)
    unfit = entry.lease.failure or minter.unfit_for_all()
    if isinstance(unfit, UnfitError):
        return unfit
    due_at = entry.lease.due_at
    wait_s = 1.0 if due_at is None else max(1.0, due_at - minter.now().steady)
    return CredentialUnavailableError(
        str(failure or f"the credential issuer {minter.issuer.name} has not responded yet"), wait_s
    )
