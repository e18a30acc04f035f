"""The credential of an API client's connections, and the Authorization header of its requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from milo_discovery._credential_cache import CachedCredential
from milo_discovery.errors import CertificateRenewed, DiscoveryError
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_kube.tls_identity import as_file

BEARER = "BearerToken"
"""The key under which the kubernetes package stores the token in a Configuration."""


class ConnectionCredential:
    """The credential with which an API client was created.

    A client certificate stays with the connections; a token is sent with each request and can be replaced.
    """

    def __init__(self, made_with: CachedCredential) -> None:
        self.made_with = made_with

    def authorization(self, access: KubeconfigAccess) -> str | None:
        """Return the Authorization header for a request; None without a token. Raises CertificateRenewed if the
        certificate of the connections has expired and was renewed. Beside a token, it is not known when it expires."""
        made, expires_at = self.made_with.access, self.made_with.expires_at
        if access.token is not None:
            return f"Bearer {access.token}"
        if access.certificate != made.certificate and expires_at is not None and datetime.now(UTC) >= expires_at:
            raise CertificateRenewed(
                "the client certificate of this API client has expired: close the client, and create another, which "
                "uses the renewed certificate"
            )
        return None


class RequestUrls:
    """Rewrites the URLs of an API client's requests, which may name a former server, to the current server."""

    def __init__(self, server: str) -> None:
        self._servers = {server.rstrip("/")}

    def add(self, server: str) -> None:
        """Record the URL of a server of the cluster. Request URLs that begin with it are accepted."""
        self._servers.add(server.rstrip("/"))

    def moved(self, url: str, server: str) -> str:
        """Return the URL, rewritten to `server`: no other server may receive the credential.

        Raises DiscoveryError if the URL does not belong to a server of the cluster.
        """
        self.add(server)
        made_for = [
            candidate for candidate in tuple(self._servers) if url.startswith((f"{candidate}/", f"{candidate}?"))
        ]
        if not made_for:
            raise DiscoveryError(
                f"the request URL {url.partition('?')[0]!r} does not belong to a server of the cluster"
            )
        return server.rstrip("/") + url[len(max(made_for, key=len)) :]


@contextmanager
def certificate_file(access: KubeconfigAccess) -> Iterator[str | None]:
    """Yield the path of a file with the client certificate and key; None if no client certificate is used."""
    if access.certificate is None:
        yield None
    else:
        with as_file(f"{access.certificate}\n{access.key}\n".encode()) as path:
            yield path
