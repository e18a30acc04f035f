"""The protocol of issuers, which mint credentials; discovery may use an issuer for its own credential."""

import asyncio
import enum
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.model.cluster import Cluster, Target
from milo_kube.credential import Credential, CredentialError

RETRY_AFTER_S = 5.0
"""The shortest time between two requests for the daemon's own credential."""
MINT_TIMEOUT_S = 30.0
TIMEOUT_MARGIN_S = 5.0
"""Added to the issuer's own timeout, if it has one, so that the issuer's timeout error is reported."""


class Scope(enum.Enum):
    IDENTITY = "identity"
    """One credential is valid for every cluster of the identity."""
    CLUSTER = "cluster"
    """Each cluster has its own credential."""


class MintRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for one credential."""

    ttl_s: float
    cluster: Cluster | None = None
    """None if one credential serves all clusters."""
    held: Credential | None = None
    """The credential that the new one will replace."""


class RequestingDaemon(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon that requests credentials."""

    run: str
    """An identifier that differs between replicas, and survives a restart if there is a state directory."""
    group: str = ""
    """The daemon's shard group."""
    member: str = ""
    """The daemon's member name in the shard group."""


class Issuer(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def scope(self) -> Scope: ...

    @property
    def takes_ttl(self) -> bool:
        """Whether the lifetime of a credential can be requested."""

    async def mint(self, request: MintRequest) -> IssuedCredential:
        """Return a validated credential, or the current one if there is no newer one yet. Raises CredentialError."""


@runtime_checkable
class FencingIssuer(Protocol):
    """An issuer that can revoke what other members of the shard group minted."""

    async def revoke_others(self, covers: Callable[[str], bool]) -> Mapping[str, CredentialError]:
        """Revoke what other members minted for clusters whose names `covers` accepts.

        Returns the clusters for which that was refused. Raises CredentialError if the rest was not tried.
        """


@runtime_checkable
class RevokingIssuer(Protocol):
    """An issuer that can revoke what it minted."""

    async def revoke(self, cluster: Cluster) -> None:
        """Revoke all credentials of the cluster's incarnation, and mint no more for it.

        Raises CredentialError if the credentials cannot be revoked at present; the caller tries again.
        """


@runtime_checkable
class ServerStatingIssuer(Protocol):
    """An issuer whose credentials may include the address of the cluster's API server."""

    @property
    def states_server(self) -> bool: ...


@runtime_checkable
class TimedIssuer(Protocol):
    """An issuer with its own timeout, which limits the duration of a mint."""

    @property
    def timeout_s(self) -> float: ...


@runtime_checkable
class NotifyingIssuer(Protocol):
    """An issuer that reports when credentials were replaced."""

    def subscribe(self, renew: Callable[[Callable[[Target], bool]], None]) -> None:
        """Call `renew` when credentials were replaced, with a function that returns whether a cluster is affected."""


class EachSourceIssuer:
    """Issues each cluster's credential through the issuer of the cluster's own source.

    The API server of another source may have an object of the same name, which belongs to another cluster.
    """

    scope = Scope.CLUSTER

    def __init__(self, issuers: Mapping[str, Issuer]) -> None:
        """`issuers` contains one issuer for each source, all with the same settings."""
        first = next(iter(issuers.values()))
        self.name, self.type, self.takes_ttl = first.name, first.type, first.takes_ttl
        self.states_server = any(
            isinstance(issuer, ServerStatingIssuer) and issuer.states_server for issuer in issuers.values()
        )
        self._issuers = issuers

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        return await self._issuers[request.cluster.target.source].mint(request)


class IssuerOrigin:
    """The credential of this daemon that an issuer mints."""

    gap_s = RETRY_AFTER_S
    is_watched = False
    problem = ""

    def __init__(self, issuer: Issuer, *, ttl_s: float) -> None:
        self._issuer = issuer
        self._ttl_s = ttl_s
        self._minted: Credential | None = None

    def __str__(self) -> str:
        return f"the issuer {self._issuer.name}"

    def has_changed(self) -> bool:
        return False

    async def obtain(self, *, refused: Credential | None, is_due: bool) -> Credential:
        timeout_s = mint_timeout_s(self._issuer)
        try:
            async with asyncio.timeout(timeout_s):
                issued = await self._issuer.mint(MintRequest(ttl_s=self._ttl_s, held=self._minted))
        except TimeoutError:
            raise CredentialError(f"{self} did not answer within {timeout_s:g} s") from None
        self._minted = msgspec.structs.replace(issued.credential, expires_at=issued.expires_at)
        return self._minted


def mint_timeout_s(issuer: Issuer) -> float:
    return issuer.timeout_s + TIMEOUT_MARGIN_S if isinstance(issuer, TimedIssuer) else MINT_TIMEOUT_S
