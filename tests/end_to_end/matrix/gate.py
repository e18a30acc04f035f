"""The listener of a cell for callers over the network: the certificates of its callers, and what they may do."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from milo_discovery.v1 import discovery_pb2_grpc as pb_grpc
from milo_sandbox import Sandbox
from milo_sandbox.kubeconfigs import write
from milo_sandbox.resources import NAMESPACES, SECRETS
from milo_sandbox.tokens import BoundTo
from tests.support.certificates import Authority
from tests.support.ports import free_address

TENANT, GREEDY, STRANGER = "tenant.example.com", "greedy.example.com", "stranger.example.com"
"""Names of certificates. A tenant may have the clusters of its organization, a greedy caller few streams and an issuer
that hangs, and a stranger has no rule."""
BEARER = "system:serviceaccount:milo:operator"
ORGANIZATION = "shop"
_AUDIENCE, _SECRET = "milo-discovery", "bearer"
_SCOPES: dict[str, dict[str, Any]] = {
    "one": {"organizations": [ORGANIZATION]},
    "two": {"organizations": [ORGANIZATION], "sources": ["us"]},
    "reduced": {"names": [f"eu#{ORGANIZATION}-*"]},
    "files": {"names": [f"eu#{ORGANIZATION}-*"]},
}
"""The clusters of a tenant. ServiceConsumers and files have no organization."""
_STREAMS, _KUBECONFIGS = 5, 60
_HANGS = "#!/bin/sh\nexec sleep 60\n"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
_LIFE = timedelta(hours=1)


class Gate:
    def __init__(self, sources: str, daemons: int, directory: Path, reviews: Sandbox) -> None:
        """`reviews` is the API server for the TokenReviews."""
        self.authority = Authority()
        self.addresses = [free_address() for _ in range(daemons)]
        self._scope, self._reviews = _SCOPES[sources], reviews
        certificate, key = self.authority.server().write(directory, "server")
        ca = directory / "ca.crt"
        ca.write_bytes(self.authority.pem)
        self._tls = {"certificate": str(certificate), "key": str(key), "client_ca": str(ca)}
        self._kubeconfig = directory / "reviews"
        write(self._kubeconfig, reviews.kubeconfig())
        self._plugin = directory / "plugin"
        self._plugin.write_text(_HANGS)
        self._plugin.chmod(0o755)

    def settings(self, number: int, socket: str, issuers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the settings of a daemon: callers on its socket may have everything from these issuers."""
        slow = [self._slow(issuers)] if issuers[0]["type"] == "token-file" else []  # files have no other issuer
        net = {"name": "net", "address": self.addresses[number], "tls": self._tls, "tokens": True}

        def rule(name: str, who: dict[str, str], clusters: object, **limits: object) -> dict[str, Any]:
            named = [issuer["name"] for issuer in issuers]
            return {"name": name, "who": who, "clusters": clusters, "kubeconfigs": True, "issuers": named, **limits}

        few: dict[str, Any] = {"streams": _STREAMS, "kubeconfigs_per_minute": _KUBECONFIGS}
        if slow:
            few["issuers"] = ["slow"]
        return {
            "listen": [{"name": "local", "address": socket}, net],
            "token_review": {"kubeconfig": str(self._kubeconfig), "audiences": [_AUDIENCE]},
            "kubeconfigs": {"issuers": [*issuers, *slow]},
            "rights": [
                rule("operator", {"listener": "local"}, "all"),
                rule("tenant", {"san": f"dns:{TENANT}"}, self._scope),
                rule("greedy", {"san": f"dns:{GREEDY}"}, "all", **few),
                rule("bearer", {"user": BEARER}, "all"),
            ],
        }

    def _slow(self, issuers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sources = [name for issuer in issuers for name in issuer.get("sources", ())]
        several = {"sources": sources} if sources else {}
        command = {"command": str(self._plugin), "per_cluster": True, "timeout": "20s"}
        return {"name": "slow", "type": "exec", **command, **several}

    def covers(self, name: str) -> bool:
        """Return whether a cluster is one of the tenant's."""
        source = self._scope.get("sources", ["eu"])[0]
        return name.startswith(f"{source}#{ORGANIZATION}-")

    def connect(
        self, name: str, number: int, *, authority: Authority | None = None, life: timedelta = _LIFE
    ) -> grpc.aio.Channel:
        """Connect to a daemon with a certificate of this name, by default one that is valid."""
        pair = (authority or self.authority).issue(x509.DNSName(name), life=life)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, pair.key, pair.certificate)
        return grpc.aio.secure_channel(self.addresses[number], credentials, _OPTIONS)

    @asynccontextmanager
    async def calling(
        self, name: str, number: int = 0, *, authority: Authority | None = None, life: timedelta = _LIFE
    ) -> AsyncIterator[Any]:
        async with self.connect(name, number, authority=authority, life=life) as channel:
            yield pb_grpc.DiscoveryServiceStub(channel)

    def token(self) -> str:
        """Issue a token with all rights, which is valid until it is revoked."""
        store = self._reviews.infrastructure.api.store
        store.create(NAMESPACES, {"metadata": {"name": "default"}})
        uid = store.create(SECRETS, {"metadata": {"name": _SECRET}}, namespace="default").uid
        bound = BoundTo(namespace="default", name=_SECRET, uid=uid)
        return self._reviews.tokens.issue(BEARER, audiences=[_AUDIENCE], bound=bound)

    def revoke(self) -> None:
        self._reviews.infrastructure.api.store.delete(SECRETS, _SECRET, namespace="default")
