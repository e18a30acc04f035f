"""Handing on what a kubeconfig's own user authenticates with, where that is short-lived by nature.

That is so of an exec plugin, and of a token file that somebody renews. A token that stands in a kubeconfig, or a
certificate, is neither renewed nor ours to spread.
"""

import time
from collections.abc import Callable, Collection

from milo_discoveryd.credentials.authentication.credential_provider import CredentialProvider, FileCredential
from milo_discoveryd.credentials.authentication.exec_plugin import ExecPlugin
from milo_discoveryd.credentials.authentication.kubeconfig import FollowedCredential
from milo_discoveryd.credentials.credential import Credential
from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, judge
from milo_discoveryd.credentials.sources.source import MintRequest, Scope
from milo_discoveryd.daemon_errors import UnfitError


class PassthroughSource:
    """One credential for every cluster: as it is, from a source that renews it by itself."""

    scope = Scope.IDENTITY
    takes_ttl = False

    def __init__(
        self,
        source: CredentialProvider,
        *,
        name: str,
        type: str,  # noqa: A002 - the word that the settings and the API have for it
        origin: str,
        audiences: Collection[str] = (),
        longest_s: float = LONGEST_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.type = type
        self._source = source
        self._origin = origin
        self._audiences = frozenset(audiences)
        self._longest_s = longest_s
        self._clock = clock

    async def mint(self, request: MintRequest) -> IssuedCredential:
        credential = await self._source.credential(refused=request.held)
        if (problem := _unfit(self._source)) is not None:
            raise UnfitError(f"{self._origin} has {problem}")
        if credential.token is not None:
            # The token is all that is handed on: a certificate beside it may live for years.
            credential = Credential(token=credential.token, expires_at=credential.expires_at)
        return judge(
            credential,
            self._clock(),
            origin=self._origin,
            expires_at=credential.expires_at,
            audiences=self._audiences,
            longest_s=self._longest_s,
        )


def _unfit(source: CredentialProvider) -> str | None:
    """Why its credential is not to be handed on, as the end of a sentence."""
    match source:
        case FollowedCredential():
            return _unfit(source.current)
        case ExecPlugin():
            return None
        case FileCredential() if source.token is not None:
            return None
        case FileCredential():
            return "a client certificate of its own, which is not handed on"
        case _:
            return "a token or certificate that stands in it, which nobody renews, or none"
