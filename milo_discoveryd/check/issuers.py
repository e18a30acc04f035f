"""Checks each credential issuer: mints a credential, and uses it in an engaged cluster, if there is one.

Issuers that would create objects are not checked. If no cluster is engaged, issuers with one credential per cluster,
except `client-certificate`, are not checked either.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from milo_discoveryd.check.api_server import ApiServerCheck
from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import Settings
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential
from milo_discoveryd.credentials.issuers.client_certificate import ClientCertificateIssuer
from milo_discoveryd.credentials.issuers.issuer import Issuer, MintRequest, RevokingIssuer, Scope
from milo_discoveryd.credentials.issuers.token_request import TokenRequestIssuer
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.kubeconfigs.cluster_ca import TrustOf
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.rules import rights
from milo_kube.credential import CredentialError
from milo_kube.credential_providers import StaticCredential
from milo_kube.upstream import Upstream

_PROBE = Cluster(
    target=Target(name="check", uid="00000000-0000-0000-0000-000000000000", place=("https://check.invalid",)),
    source_version="",
    engaged_at=0.0,
    incarnation=1,
)


class IssuersCheck:
    def __init__(
        self,
        settings: Settings,
        issuers: Sequence[IssuerAssignment],
        clusters: Sequence[Cluster],
        sources: Mapping[str, tuple[Upstream, TrustOf]],
    ) -> None:
        """`clusters` are the clusters that the daemon engages; `sources` has the project server and the trust of each
        source."""
        self._settings = settings
        self._issuers = issuers
        self._clusters = clusters
        self._sources = sources

    async def findings(self) -> AsyncIterator[Finding]:
        if not self._issuers:
            yield ok("kubeconfigs", "none are issued: kubeconfigs.issuers is empty, or each issuer has hand_out: false")
        for assignment in self._issuers:
            async for finding in self._check(assignment.issuer, next(filter(assignment.covers, self._clusters), None)):
                yield finding

    async def _check(self, issuer: Issuer, cluster: Cluster | None) -> AsyncIterator[Finding]:
        subject = f"kubeconfigs {issuer.name}"
        is_of_cluster = issuer.scope is Scope.CLUSTER
        if is_of_cluster and isinstance(issuer, RevokingIssuer) and not isinstance(issuer, TokenRequestIssuer):
            yield ok(subject, f"not checked: {issuer.type} creates an object for each cluster when it is engaged")
            return
        if is_of_cluster and cluster is None and not isinstance(issuer, ClientCertificateIssuer):
            yield ok(
                subject,
                f"not checked: {issuer.type} issues credentials per cluster, and no cluster that it serves is ready",
            )
            return
        ttl_s = self._settings.kubeconfigs.default_ttl.total_seconds()
        request = MintRequest(ttl_s=ttl_s, cluster=(cluster or _PROBE) if is_of_cluster else None)
        named = f" for {cluster.target.name}" if is_of_cluster and cluster is not None else ""
        try:
            # Request an unbound token: a bound one needs a Secret, which the check would leave behind.
            minting = issuer.unbound(ttl_s) if isinstance(issuer, TokenRequestIssuer) else issuer.mint(request)
            minted = await minting
        except UnfitError as error:
            yield fail(
                subject, f"no credential{named}: {error}", "fix the issuer, or configure another in kubeconfigs.issuers"
            )
            return
        except CredentialError as error:
            yield fail(
                subject, f"no credential{named}: {error}", f"fix {issuer.name} in kubeconfigs.issuers, or its backend"
            )
            return
        yield _minted(subject, f"minted a credential of type {issuer.type}{named}", minted)
        if cluster is not None:
            async for finding in self._used(subject, issuer.name, cluster, minted):
                yield finding

    async def _used(
        self, subject: str, issuer: str, cluster: Cluster, minted: IssuedCredential
    ) -> AsyncIterator[Finding]:
        """Authenticate to the cluster with the issued credential, as operators do, and check impersonation."""
        target = cluster.target
        project, trust_of = self._sources[target.source]
        try:
            trust = trust_of(target, minted)
        except CredentialError as error:
            yield fail(subject, str(error), "correct the file that contains the clusters' CA")
            return
        upstream = replace(
            project,
            server=trust.server or target.endpoint,
            origin=f"the credential for {target.name}",
            credentials=StaticCredential(minted.credential),
            authorities=trust.authorities,
            tls_server_name=trust.tls_server_name,
        )
        timeout_s = self._settings.watch.connect_timeout.total_seconds()
        async with aclosing(Transport(upstream, connect_timeout_s=timeout_s)) as transport:
            server = ApiServerCheck(subject, upstream, transport)
            async for finding in server.watchable(()):
                # Operators may reach clusters that the daemon cannot reach, and one cluster may be down.
                is_unreachable = finding.level == "fail" and finding.subject.endswith("reach")
                yield replace(finding, level="warn") if is_unreachable else finding
                if finding.level == "fail":
                    return
            rules = rights(self._settings.rights).rules
            terms = (rule.grant.terms for rule in rules if rule.grant.terms is not None)
            acting = {granted.act_as for granted in terms if granted.act_as and issuer in (granted.issuers or {issuer})}
            async for finding in server.impersonating(sorted(acting, key=lambda identity: identity.user)):
                yield finding


def _minted(subject: str, message: str, minted: IssuedCredential) -> Finding:
    life_s = minted.expires_at - time.time()
    if not minted.is_endless and life_s <= LONGEST_S:
        return ok(subject, f"{message}, valid for {life_s:.0f} s")
    end = "without an expiry" if minted.is_endless else f"valid for {life_s / 86400:.0f} days"
    return warn(
        subject,
        f"{message}, {end}: a caller that received it keeps its access even if the daemon's rules change later",
        "give operators an identity that can be revoked at the platform, or use an issuer of short-lived credentials",
    )
