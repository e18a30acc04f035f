"""Providers of the daemon's own credentials: the protocol, and those of fixed values and of files."""

from typing import Protocol

import msgspec

from milo_discoveryd.credentials.credential import ClientCertificate, Credential, token_of
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.credentials.secret import Secret


class CredentialProvider(Protocol):
    async def credential(self, *, refused: Credential | None = None) -> Credential:
        """Return the credential to use now. Raises CredentialError if there is none.

        `refused` was rejected with 401: a provider that can obtain another credential does so, others return it again.
        """


class StaticCredential(msgspec.Struct, frozen=True):
    """A credential written in the kubeconfig itself."""

    value: Credential

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        return self.value


class FileCredential(msgspec.Struct, frozen=True, kw_only=True):
    """A credential in files that another process renews: a kubelet's projected token, cert-manager's key pair.

    Each file is read again when it changes. While a file is missing or empty, for example during its replacement, the
    last good content is used. Parts that are not in files come from `fixed`.
    """

    fixed: Credential = msgspec.field(default_factory=Credential)
    token: FileContent | None = None
    chain: FileContent | None = None
    key: FileContent | None = None

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        reread = refused is not None
        token, certificate = self.fixed.token, self.fixed.certificate
        if self.token is not None:
            token = token_of(self.token.read(reread=reread).decode(errors="replace"), f"token file {self.token.path}")
        if self.chain is not None and self.key is not None:
            chain, key = self.chain.read(reread=reread), self.key.read(reread=reread)
            certificate = ClientCertificate(chain=chain, key=Secret(key.decode(errors="replace")))
        return Credential(token=token, certificate=certificate)
