"""The memory budget of the credentials that one issuer's leases hold. Pure.

Tenants write the Secrets of some issuers: without a budget, many kubeconfigs with many CA certificates would exhaust
the daemon's memory.
"""

from collections import Counter
from typing import TypeAlias

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import BackendError

BUDGET = 32 << 20
"""Bytes of credentials of all issuers beyond which no large one is held for another cluster. Each issuer has an equal
part. Renewals may take as much again, and those of tenants within their share of it once more, so that no cluster loses
its credential to another one."""
SMALL = 4 << 10
"""The size up to which a credential is held whatever the others take. Tokens, and certificates with their key and CA,
are usually smaller."""


Tenant: TypeAlias = tuple[str, str]
"""The source, and the tenant in it."""


class _CaBundle(msgspec.Struct):
    """Equal CA certificates of several credentials, which are kept once."""

    pem: bytes
    uses: int = 0


class CredentialBudget:
    def __init__(self, issuers: int = 1) -> None:
        self._limit = BUDGET // issuers
        self.used = 0
        self._of_tenants: Counter[Tenant] = Counter()
        """What each tenant has, with all its CA certificates."""
        self._ca_bundles: dict[bytes, _CaBundle] = {}

    def admit(
        self, issued: IssuedCredential, held: IssuedCredential | None, tenant: Tenant = ("", "")
    ) -> IssuedCredential:
        """Return the credential with the CA bundle that others have. `held` is the one that it will replace.

        Raises BackendError if it is large and the budget is exhausted.
        """
        bundle = self._ca_bundles.get(issued.authorities or b"")
        size = _size(issued)
        more = size + (len(issued.authorities or b"") if bundle is None else 0)
        if more > SMALL and self.used + more > self._parts(issued, size, held, tenant) * self._limit:
            raise BackendError(
                f"the credential and its CA certificates have {more} bytes, and at most {SMALL} are accepted while the "
                f"credentials of this issuer have more than {self._limit >> 10} KiB; remove unneeded CA certificates "
                "from the kubeconfig",
                of_cluster=True,
                reason="too_large",
            )
        return issued if bundle is None else msgspec.structs.replace(issued, authorities=bundle.pem)

    def _parts(self, issued: IssuedCredential, size: int, held: IssuedCredential | None, tenant: Tenant) -> int:
        """Return how many times the budget may be used for this credential: see `BUDGET`."""
        tenants = len(self._of_tenants) + (tenant not in self._of_tenants)
        kept = self._of_tenants[tenant] - (0 if held is None else _size(held) + len(held.authorities or b""))
        is_within_share = (kept + size + len(issued.authorities or b"")) * tenants <= self._limit
        return 3 if is_within_share else 1 if held is None else 2

    def count(self, held: IssuedCredential | None, before: IssuedCredential | None, tenant: Tenant = ("", "")) -> None:
        """Count what a lease of a tenant holds now instead of what it held before."""
        if held is before:
            return
        of_tenant = self._of_tenants[tenant]
        if held is not None:
            size = _size(held)
            self.used += size
            of_tenant += size + len(held.authorities or b"")
            if held.authorities:
                bundle = self._ca_bundles.setdefault(held.authorities, _CaBundle(held.authorities))
                self.used += 0 if bundle.uses else len(bundle.pem)
                bundle.uses += 1
        if before is not None:
            size = _size(before)
            self.used -= size
            of_tenant -= size + len(before.authorities or b"")
            if before.authorities:
                bundle = self._ca_bundles[before.authorities]
                bundle.uses -= 1
                if not bundle.uses:
                    self.used -= len(bundle.pem)
                    del self._ca_bundles[before.authorities]
        if of_tenant:
            self._of_tenants[tenant] = of_tenant
        else:
            self._of_tenants.pop(tenant, None)


def _size(issued: IssuedCredential) -> int:
    """Return the bytes of the credential without its CA certificates."""
    token, certificate = issued.credential.token, issued.credential.certificate
    texts = [issued.server, issued.tls_server_name]
    texts += [] if token is None else [token.reveal()]
    texts += [] if certificate is None else [certificate.key.reveal()]
    chain = 0 if certificate is None else len(certificate.chain)
    # A single character can make a string take four bytes for each.
    return chain + sum(len(text) * (1 if text.isascii() else 4) for text in texts)
