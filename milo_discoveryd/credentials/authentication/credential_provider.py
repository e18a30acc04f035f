"""Where credentials come from: what a source is, and those whose credential does not change by itself."""

from dataclasses import dataclass, field
from typing import Protocol

from milo_discoveryd.credentials.credential import ClientCertificate, Credential, token_of
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.credentials.secret import Secret


class CredentialProvider(Protocol):
    async def credential(self, *, refused: Credential | None = None) -> Credential:
        """The credential to use now. `refused` is one that the server has just answered 401 to: a source that can get
        another one does; one that cannot gives the same again. Raises CredentialError when there is none."""


@dataclass(frozen=True)
class StaticCredential:
    """What stands in the kubeconfig itself."""

    value: Credential

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        return self.value


@dataclass(frozen=True, kw_only=True)
class FileCredential:
    """Files that somebody else renews: a kubelet's projected token, cert-manager's key pair.

    Each is re-read when it changes, and the last good content is kept while a file is missing or empty, which it may be
    for a moment while it is being replaced. Parts that are not in files come from `fixed`.
    """

    fixed: Credential = field(default_factory=Credential)
    token: FileContent | None = None
    chain: FileContent | None = None
    key: FileContent | None = None

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        anew = refused is not None
        token, certificate = self.fixed.token, self.fixed.certificate
        if self.token is not None:
            token = token_of(self.token.read(anew=anew).decode(errors="replace"), f"token file {self.token.path}")
        if self.chain is not None and self.key is not None:
            chain, key = self.chain.read(anew=anew), self.key.read(anew=anew)
            certificate = ClientCertificate(chain=chain, key=Secret(key.decode(errors="replace")))
        return Credential(token=token, certificate=certificate)
