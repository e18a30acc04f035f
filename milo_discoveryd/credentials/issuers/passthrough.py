"""Issues the token of a token file or an exec plugin. The daemon may also use this token itself.

Such tokens are short-lived and renewed. Client certificates, and tokens that are written in a kubeconfig, are not
renewed, and therefore not issued.
"""

import time
from collections.abc import Collection

from milo_discoveryd.credentials.issued_credential import IssuedCredential, validate
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import IssuerContext, IssuerSettings, RequiredFile, Words
from milo_discoveryd.daemon_errors import ConfigError, UnfitError
from milo_kube.credential import Credential
from milo_kube.credential_providers import CredentialOrigin, CredentialProvider, ExecOrigin, FileOrigin
from milo_kube.file_content import FileContent
from milo_kube.upstream import current_origin, share_identity

WITHIN_S = 25.0
"""How long a mint waits for the provider, which renews its credential in its own time."""


class PassthroughIssuer:
    """An issuer of one token for all clusters. A credential provider returns the token."""

    scope = Scope.IDENTITY
    takes_ttl = False

    def __init__(
        self,
        provider: CredentialProvider,
        *,
        name: str,
        type: str,  # noqa: A002 - the name in the settings and in the API
        origin: str,
        audiences: Collection[str] = (),
    ) -> None:
        self.name = name
        self.type = type
        self._provider = provider
        self._origin = origin
        self._audiences = frozenset(audiences)

    async def mint(self, request: MintRequest) -> IssuedCredential:
        credential = await self._provider.credential(within_s=WITHIN_S, refused=request.held)
        if (problem := _unfit(current_origin(self._provider))) is not None:
            raise UnfitError(f"{self._origin} has {problem}")
        if credential.token is not None:
            # Only the token is issued: a certificate beside it may be valid for years.
            credential = Credential(token=credential.token, expires_at=credential.expires_at)
        return validate(
            credential,
            time.time(),
            origin=self._origin,
            expires_at=credential.expires_at,
            audiences=self._audiences,
        )


def _unfit(origin: CredentialOrigin | None) -> str | None:
    """Return why a credential of this origin must not be issued, as a part of an error message, or None."""
    match origin:
        case ExecOrigin():
            return None
        case FileOrigin() if origin.token is not None:
            return None
        case FileOrigin() if origin.chain is not None:
            return "a client certificate, which is never issued"
        case _:
            return "no renewable credential: it contains a static token or certificate, which is never issued"


class TokenFileSettings(IssuerSettings, frozen=True, kw_only=True):
    path: RequiredFile
    """Path of the token file, reloaded when it changes."""
    audiences: Words = ()
    """Accepted audiences: the token must have one of them. Default: any."""

    def issuer(self, context: IssuerContext) -> PassthroughIssuer:
        provider = context.renewed(FileOrigin(token=FileContent(self.path)), str(self.path))
        return PassthroughIssuer(
            provider, name=self.name, type=self.type, origin=str(self.path), audiences=self.audiences
        )


class ProjectKubeconfigSettings(IssuerSettings, frozen=True, kw_only=True):
    share_discovery_identity: bool = False
    """`true` to issue credentials even if discovery uses the same user: operators then get the daemon's own
    permissions."""

    serves_several_sources = False

    def issuer(self, context: IssuerContext) -> PassthroughIssuer:
        """Build the issuer. Raises ConfigError if it would issue the daemon's own credential without permission."""
        project = context.served[0].project
        for watched in context.discovery if self.hand_out and not self.share_discovery_identity else ():
            if share_identity(project.credentials, watched.credentials):
                raise ConfigError(
                    [
                        f"kubeconfigs.issuers: {self.name} would issue the credential that discovery uses "
                        f"({watched.origin}): set project_kubeconfig to a kubeconfig of another user, or "
                        "share_discovery_identity: true"
                    ]
                )
        origin = f"the user of {project.origin}"
        return PassthroughIssuer(project.credentials, name=self.name, type=self.type, origin=origin)
