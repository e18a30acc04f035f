"""Gets access tokens for a Datum service account from its token endpoint, in exchange for a signed assertion.

One token is valid for every project of the account, so one mint serves the whole fleet.
"""

import time
from collections.abc import Callable, Collection

from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, validate
from milo_discoveryd.credentials.issuers import service_account_key
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import IssuerContext, RequiredFile
from milo_discoveryd.credentials.issuers.token_endpoint import TokenEndpoint, TokenEndpointSettings
from milo_kube.file_content import FileContent

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"

_ADVICE = {
    "invalid_grant": "the key has expired or was removed (put a new one into the key file), or the clock is wrong",
    "invalid_client": "the account is unknown; it may have been deleted",
    "invalid_request": "the endpoint does not accept this kind of request; check `token_uri` in the key file",
    "invalid_scope": "the endpoint does not grant the scope in the key file; change or remove `scope` there",
    "unauthorized_client": "the account may not use this grant type",
    "unsupported_grant_type": "the endpoint does not support signed assertions; check `token_uri` in the key file",
}
"""The advice for each error code of RFC 6749."""


class DatumServiceAccountIssuer:
    type = "datum-service-account"
    scope = Scope.IDENTITY
    takes_ttl = False

    def __init__(
        self,
        name: str,
        key: FileContent,
        endpoint: TokenEndpoint,
        *,
        audiences: Collection[str] = (),
        longest_s: float = LONGEST_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._key = key
        self._endpoint = endpoint
        self._audiences = audiences
        self._longest_s = longest_s
        self._clock = clock

    async def mint(self, request: MintRequest) -> IssuedCredential:
        key = service_account_key.parse(self._key.read(), str(self._key.path))
        now, about = self._clock(), f"key {key.key_id[:40]!r} of {key.account[:80]!r}"
        form = [
            ("grant_type", GRANT),
            ("assertion", key.assertion(now)),
            *([("scope", key.scope)] if key.scope else []),
        ]
        received = await self._endpoint.ask(key.token_uri, form, about=about, advice=_ADVICE)
        return validate(
            received.credential,
            now,
            origin=f"{key.token_uri} (for {key.account})",
            expires_at=None if received.life_s is None else now + received.life_s,
            audiences=self._audiences,
            longest_s=self._longest_s,
        )


class DatumServiceAccountSettings(TokenEndpointSettings, frozen=True, kw_only=True):
    key_file: RequiredFile
    """The JSON key file, reloaded when it changes."""

    def issuer(self, context: IssuerContext) -> DatumServiceAccountIssuer:
        key = FileContent(self.key_file)
        return DatumServiceAccountIssuer(self.name, key, self.endpoint(context), audiences=self.audiences)
