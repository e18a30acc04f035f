"""Access tokens in exchange for a token that another process renews, such as a projected service-account token.

No long-lived key is needed. One access token is valid for every cluster of the identity, so one exchange serves the
whole fleet.
"""

import base64
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote

import msgspec

from milo_discoveryd.credentials import jwt, signed_assertion
from milo_discoveryd.credentials.issued_credential import SKEW_S, IssuedCredential, validate
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import (
    IssuerContext,
    OptionalFile,
    OptionalText,
    RequiredFile,
    RequiredText,
    Words,
)
from milo_discoveryd.credentials.issuers.token_endpoint import Form, TokenEndpoint, TokenEndpointSettings
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import one_of
from milo_kube.credential import CredentialError, token_of
from milo_kube.file_content import FileContent

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ASSERTION = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLIENT_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

_ADVICE = {
    "invalid_grant": "the endpoint does not accept the subject token, which may have expired, be for a different "
    "audience, or be from a different issuer; check the token, the endpoint's trusted issuers and this machine's clock",
    "invalid_request": "the endpoint does not accept this subject token; check `subject_token_type`, the token's "
    "audience, and whether the endpoint trusts its issuer",
    "invalid_target": "the endpoint issues no tokens for this audience or resource; change the settings `audience` "
    "and `resource`",
    "invalid_client": "client authentication failed, or the audience is unknown; change the settings `client_id` and "
    "`audience`, or renew the client's secret or key",
    "invalid_scope": "this identity may not request this scope; change the setting `scope`",
    "unauthorized_client": "the client may not use this grant, or its secret is wrong; allow the grant, "
    "or renew the secret",
    "unsupported_grant_type": "the endpoint does not support this grant; check `token_url`, or change `grant`",
    "access_denied": "the endpoint's policy denies this exchange; change the policy",
}
"""The advice for each error code of RFC 6749 and RFC 8693."""


class RenewedToken(msgspec.Struct, frozen=True):
    """A token in a file that another process renews."""

    file: FileContent
    type: str

    def read(self, now: float) -> str:
        """Return the token. Raises CredentialError if it is malformed, expired or not valid yet."""
        origin = str(self.file.path)
        token = token_of(self.file.read().decode("utf-8", "replace"), origin).reveal()
        try:
            claims = jwt.claims(token)
        except ValueError as error:
            raise CredentialError(f"{origin} is not a valid JWT: {error}") from None
        if claims is not None and claims.exp is not None and claims.exp <= now:
            expired_at = datetime.fromtimestamp(claims.exp, UTC).isoformat()
            raise CredentialError(
                f"the token in {origin} expired at {expired_at}: the process that writes the file must renew it"
            )
        if claims is not None and claims.nbf is not None and claims.nbf > now + SKEW_S:
            raise CredentialError(f"the token in {origin} is not valid yet: check this machine's clock")
        return token


class ClientSecret(msgspec.Struct, frozen=True):
    """Client authentication by HTTP Basic."""

    client_id: str
    secret: FileContent


class ClientKey(msgspec.Struct, frozen=True):
    """Client authentication by a signed assertion (`private_key_jwt`)."""

    client_id: str
    key: FileContent
    key_id: str


class PublicClient(msgspec.Struct, frozen=True):
    """A public client (RFC 6749): it sends its client ID, if it has one, and does not authenticate."""

    client_id: str = ""


ClientAuthentication = ClientSecret | ClientKey | PublicClient
ANYBODY = PublicClient()


class ExchangeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a request to the token endpoint, without the tokens."""

    url: str
    grant: str = EXCHANGE
    audiences: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    scope: str = ""
    requested_token_type: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    """Additional parameters that some endpoints need, such as `connector_id` for Dex."""

    def form(self, subject: str, subject_type: str, actor: str | None, actor_type: str) -> Form:
        if self.grant == ASSERTION:
            sent = [("assertion", subject)]
        else:
            sent = [("subject_token", subject), ("subject_token_type", subject_type)]
            sent += [] if actor is None else [("actor_token", actor), ("actor_token_type", actor_type)]
        sent += [("audience", audience) for audience in self.audiences]
        sent += [("resource", resource) for resource in self.resources]
        optional = (("scope", self.scope), ("requested_token_type", self.requested_token_type))
        return [
            ("grant_type", self.grant),
            *sent,
            *(parameter for parameter in optional if parameter[1]),
            *self.parameters,
        ]


class TokenExchangeIssuer:
    type = "token-exchange"
    scope = Scope.IDENTITY
    takes_ttl = False

    def __init__(
        self,
        name: str,
        endpoint: TokenEndpoint,
        request: ExchangeRequest,
        *,
        subject: RenewedToken,
        actor: RenewedToken | None = None,
        client: ClientAuthentication = ANYBODY,
        accepted_audiences: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._request = request
        self._subject = subject
        self._actor = actor
        self._client = client
        self._accepted_audiences = accepted_audiences
        self._clock = clock

    async def mint(self, request: MintRequest) -> IssuedCredential:
        now, url = self._clock(), self._request.url
        about = f"the token in {self._subject.file.path}"
        actor, actor_type = (None, "") if self._actor is None else (self._actor.read(now), self._actor.type)
        form = self._request.form(self._subject.read(now), self._subject.type, actor, actor_type)
        authorization, proof = self._authentication(now)
        received = await self._endpoint.ask(
            url, [*form, *proof], about=about, advice=_ADVICE, authorization=authorization
        )
        return validate(
            received.credential,
            now,
            origin=f"{url} (for {about})",
            expires_at=None if received.life_s is None else now + received.life_s,
            audiences=self._accepted_audiences,
        )

    def _authentication(self, now: float) -> tuple[str, Form]:
        """Return the Authorization header and the parameters that authenticate the client."""
        match self._client:
            case ClientSecret(client_id, file):
                secret = file.read().decode("utf-8", "replace").strip()
                # Percent-encoded first, as RFC 6749 (section 2.3.1) requires.
                pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
                return f"Basic {base64.b64encode(pair.encode()).decode()}", ()
            case ClientKey(client_id, file, key_id):
                key = signed_assertion.load_key(file.read(), str(file.path))
                signed = signed_assertion.assertion(key, key_id, subject=client_id, audience=self._request.url, now=now)
                return "", (("client_assertion_type", CLIENT_ASSERTION), ("client_assertion", signed))
            case PublicClient(client_id):
                return "", (("client_id", client_id),) if client_id else ()


class TokenExchangeSettings(TokenEndpointSettings, frozen=True, kw_only=True):
    token_url: Annotated[str, values.https_url]
    """URL of the token endpoint."""
    subject_token_file: RequiredFile
    """File with the token that is exchanged, reloaded when it changes: a projected service-account token, a JWT-SVID,
    or any token that another process renews."""
    subject_token_type: RequiredText = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105 - the name of a type
    """Type URI of the subject token."""
    actor_token_file: OptionalFile = None
    """File with the actor token: a token of the party that acts for the subject. Default: none."""
    actor_token_type: RequiredText = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105 - as above
    """Type URI of the actor token."""
    grant: Annotated[str, one_of("token-exchange", "jwt-bearer")] = "token-exchange"
    """`token-exchange` (RFC 8693), or `jwt-bearer` to send the subject token as an assertion (RFC 7523)."""
    audience: Words = ()
    """Names of the services that the requested token is for."""
    resource: Words = ()
    """URIs of the services that the requested token is for."""
    scope: OptionalText = ""
    """Space-separated scopes of the requested token. Default: the endpoint's."""
    requested_token_type: OptionalText = ""
    """Type of the requested token. Default: an access token."""
    parameters: Annotated[dict[str, str], values.pairs] = msgspec.field(default_factory=dict)
    """Additional parameters of the request, such as `connector_id` for Dex."""
    client_id: OptionalText = ""
    """OAuth client ID of the daemon. Default: none is sent."""
    client_secret_file: OptionalFile = None
    """File with the client's secret, for client authentication by HTTP Basic."""
    client_key_file: OptionalFile = None
    """File with the client's private key (RSA or P-256, PEM), for client authentication by a signed assertion
    (`private_key_jwt`)."""
    client_key_id: OptionalText = ""
    """ID of the client's key, sent as `kid` of the assertion."""

    def __post_init__(self) -> None:
        if self.client_secret_file is not None and self.client_key_file is not None:
            raise ValueError("has both `client_secret_file` and `client_key_file`: remove one of these settings")
        if (self.client_secret_file or self.client_key_file) is not None and not self.client_id:
            raise ValueError("has client authentication without `client_id`: set `client_id`")
        if self.grant == "jwt-bearer" and self.actor_token_file is not None:
            raise ValueError('has `actor_token_file`, which "grant: jwt-bearer" does not send: remove this setting')

    def issuer(self, context: IssuerContext) -> TokenExchangeIssuer:
        client: ClientAuthentication = PublicClient(self.client_id)
        if self.client_secret_file is not None:
            client = ClientSecret(self.client_id, FileContent(self.client_secret_file))
        elif self.client_key_file is not None:
            client = ClientKey(self.client_id, FileContent(self.client_key_file), self.client_key_id)
        actor = None
        if self.actor_token_file is not None:
            actor = RenewedToken(FileContent(self.actor_token_file), self.actor_token_type)
        return TokenExchangeIssuer(
            self.name,
            self.endpoint(context),
            ExchangeRequest(
                url=self.token_url,
                grant=EXCHANGE if self.grant == "token-exchange" else ASSERTION,
                audiences=self.audience,
                resources=self.resource,
                scope=self.scope,
                requested_token_type=self.requested_token_type,
                parameters=tuple(self.parameters.items()),
            ),
            subject=RenewedToken(FileContent(self.subject_token_file), self.subject_token_type),
            actor=actor,
            client=client,
            accepted_audiences=self.audiences,
        )
