"""What it takes to be a source of credentials that are handed out."""

import enum
from typing import Protocol, runtime_checkable

import msgspec

from milo_discoveryd.credentials.credential import Credential
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.model.cluster import Target


class Scope(enum.Enum):
    IDENTITY = "identity"
    """One credential opens every cluster of the identity."""
    CLUSTER = "cluster"
    """Each cluster has its own."""


class MintRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a mint is for."""

    ttl_s: float
    target: Target | None = None
    """None where one credential is for all."""
    incarnation: int = 0
    held: Credential | None = None
    """What there is at present, and another is wanted than that."""


class MintingSource(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def scope(self) -> Scope: ...

    @property
    def takes_ttl(self) -> bool:
        """Whether it can be told how long a credential should live."""

    async def mint(self, request: MintRequest) -> IssuedCredential:
        """A judged credential. It may be the one held, where there is no other yet. Raises CredentialError."""


@runtime_checkable
class RevokingSource(Protocol):
    """A source that can end what it gave out, before its time."""

    async def revoke(self, target: Target, incarnation: int) -> None:
        """Ends all that was minted for the incarnation, and mints no more for it. Raises CredentialError if it
        can't be done now; then it is to be called again."""
