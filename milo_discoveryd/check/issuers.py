"""Checks each credential issuer by minting a credential, if that creates no objects in a cluster."""

import time
from collections.abc import Sequence

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.credentials.issuers.client_certificate import ClientCertificateIssuer
from milo_discoveryd.credentials.issuers.issuer import Issuer, MintRequest, Scope
from milo_discoveryd.daemon_errors import CredentialError, UnfitError
from milo_discoveryd.model.cluster import Cluster, Target

_PROBE = Cluster(
    target=Target(name="check", uid="00000000-0000-0000-0000-000000000000", place=("https://check.invalid",)),
    source_version="",
    engaged_at=0.0,
    incarnation=1,
)


async def check_issuers(issuers: Sequence[Issuer], ttl_s: float) -> list[Finding]:
    if not issuers:
        return [ok("kubeconfigs", "none are issued: kubeconfigs.issuers is empty, or each issuer has hand_out: false")]
    return [await _check(issuer, ttl_s) for issuer in issuers]


async def _check(issuer: Issuer, ttl_s: float) -> Finding:
    subject = f"kubeconfigs {issuer.name}"
    if issuer.scope is Scope.IDENTITY:
        wanted = MintRequest(ttl_s=ttl_s)
    elif isinstance(issuer, ClientCertificateIssuer):
        wanted = MintRequest(ttl_s=ttl_s, cluster=_PROBE)
    else:
        return ok(subject, f"not checked: {issuer.type} mints a credential for each cluster when it is engaged")
    try:
        minted = await issuer.mint(wanted)
    except UnfitError as error:
        return fail(subject, str(error), "fix the issuer, or configure another in kubeconfigs.issuers")
    except CredentialError as error:
        return fail(subject, str(error), f"fix {issuer.name} in kubeconfigs.issuers, or its backend")
    return ok(subject, f"minted a credential of type {issuer.type}, valid for {minted.expires_at - time.time():.0f} s")
