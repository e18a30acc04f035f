"""Whether there will be kubeconfigs to hand out: each source is asked for a credential, where that leaves no trace."""

import time
from collections.abc import Sequence

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.credentials.sources.client_certificate import ClientCertificateSource
from milo_discoveryd.credentials.sources.source import MintingSource, MintRequest, Scope
from milo_discoveryd.daemon_errors import CredentialError, UnfitError
from milo_discoveryd.model.cluster import Target

_NOBODY = Target(name="check", uid="00000000-0000-0000-0000-000000000000", place=("https://check.invalid",))


async def check_sources(sources: Sequence[MintingSource], ttl_s: float, *, is_configured: bool) -> list[Finding]:
    if not sources:
        return [warn("kubeconfigs", "none are handed out: every source says hand_out: false")]
    return [await _tried(source, ttl_s, is_configured=is_configured) for source in sources]


async def _tried(source: MintingSource, ttl_s: float, *, is_configured: bool) -> Finding:
    what = f"kubeconfigs {source.name}"
    if source.scope is Scope.IDENTITY:
        wanted = MintRequest(ttl_s=ttl_s)
    elif isinstance(source, ClientCertificateSource):
        wanted = MintRequest(ttl_s=ttl_s, target=_NOBODY, incarnation=1)
    else:
        return ok(what, f"{source.type} has a credential for each cluster, and is asked when one is engaged")
    try:
        minted = await source.mint(wanted)
    except UnfitError as error:
        if is_configured:
            return fail(what, str(error), "mend the source, or configure another in kubeconfigs.sources")
        return warn(what, f"none are handed out: {error}", "configure one of kubeconfigs.sources, if you want some")
    except CredentialError as error:
        return fail(what, str(error), f"mend {source.name} in kubeconfigs.sources, or what it asks")
    return ok(what, f"{source.type} gives credentials; this one has {minted.expires_at - time.time():.0f} s left")
