"""Checks each credential source by minting a credential, if that creates no objects in a cluster."""

import time
from collections.abc import Sequence

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.credentials.sources.client_certificate import ClientCertificateSource
from milo_discoveryd.credentials.sources.source import MintingSource, MintRequest, Scope
from milo_discoveryd.daemon_errors import CredentialError, UnfitError
from milo_discoveryd.model.cluster import Cluster, Target

_PROBE = Cluster(
    target=Target(name="check", uid="00000000-0000-0000-0000-000000000000", place=("https://check.invalid",)),
    source_version="",
    engaged_at=0.0,
    incarnation=1,
)


async def check_sources(sources: Sequence[MintingSource], ttl_s: float) -> list[Finding]:
    if not sources:
        return [ok("kubeconfigs", "none are issued: kubeconfigs.sources is empty, or each source has hand_out: false")]
    return [await _check(source, ttl_s) for source in sources]


async def _check(source: MintingSource, ttl_s: float) -> Finding:
    subject = f"kubeconfigs {source.name}"
    if source.scope is Scope.IDENTITY:
        wanted = MintRequest(ttl_s=ttl_s)
    elif isinstance(source, ClientCertificateSource):
        wanted = MintRequest(ttl_s=ttl_s, cluster=_PROBE)
    else:
        return ok(subject, f"not checked: {source.type} mints a credential for each cluster when it is engaged")
    try:
        minted = await source.mint(wanted)
    except UnfitError as error:
        return fail(subject, str(error), "fix the source, or configure another in kubeconfigs.sources")
    except CredentialError as error:
        return fail(subject, str(error), f"fix {source.name} in kubeconfigs.sources, or its backend")
    return ok(subject, f"minted a credential of type {source.type}, valid for {minted.expires_at - time.time():.0f} s")
