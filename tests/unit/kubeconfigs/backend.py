"""A scripted credential issuer: slow, failing or healthy."""

import asyncio
import time

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.model.cluster import Cluster, Target
from milo_kube.credential import Credential, CredentialError, Secret

CANARY = "CANARY-8c2e"


class Backend:
    """An issuer that responds while its gate is open."""

    name, type = "backend", "test"

    def __init__(self, scope: Scope = Scope.IDENTITY, *, life_s: float = 600.0, takes_ttl: bool = False) -> None:
        self.scope = scope
        self.takes_ttl = takes_ttl
        self.life_s = life_s
        self.failure: CredentialError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[MintRequest] = []
        self.at_once = 0
        self.most_at_once = 0
        self.given: list[str] = []

    async def mint(self, request: MintRequest) -> IssuedCredential:
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        token = f"{CANARY}-{request.cluster.target.name if request.cluster else 'all'}-{len(self.asked)}"
        self.given.append(token)
        life_s = min(self.life_s, request.ttl_s) if self.takes_ttl else self.life_s
        now = time.time()
        return IssuedCredential(credential=Credential(token=Secret(token)), issued_at=now, expires_at=now + life_s)


class RevokingBackend(Backend):
    def __init__(self, *, life_s: float = 600.0) -> None:
        super().__init__(Scope.CLUSTER, life_s=life_s)
        self.revoked: list[tuple[str, int]] = []
        self.revocation_failures = 0

    async def revoke(self, cluster: Cluster) -> None:
        if self.revocation_failures:
            self.revocation_failures -= 1
            raise CredentialError("not now")
        self.revoked.append((cluster.target.name, cluster.incarnation))


def a_cluster(name: str = "alpha", incarnation: int = 1, **labels: str) -> Cluster:
    target = Target(name=name, uid=f"uid-{name}", place=(f"https://{name}.test",), labels=tuple(sorted(labels.items())))
    return Cluster(
        target=target, source_version="1", engaged_at=0.0, incarnation=incarnation, object_uid=f"object-{name}"
    )
