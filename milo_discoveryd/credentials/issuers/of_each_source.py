"""Issues each cluster's credential by an issuer of the cluster's own source.

The API server of another source may have an object of the same name, which belongs to another cluster.
"""

from collections.abc import Mapping

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import Issuer, MintRequest, Scope, ServerStatingIssuer


class EachSourceIssuer:
    scope = Scope.CLUSTER

    def __init__(self, issuers: Mapping[str, Issuer]) -> None:
        """`issuers` has one for each source, all with the same settings."""
        first = next(iter(issuers.values()))
        self.name, self.type, self.takes_ttl = first.name, first.type, first.takes_ttl
        self.states_server = any(
            isinstance(issuer, ServerStatingIssuer) and issuer.states_server for issuer in issuers.values()
        )
        self._issuers = issuers

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        return await self._issuers[request.cluster.target.source].mint(request)
