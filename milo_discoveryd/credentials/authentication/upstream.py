"""An API server and how to be somebody there: what a kubeconfig, or the pod we run in, comes down to."""

from dataclasses import dataclass

from milo_discoveryd.credentials.authentication.credential_provider import CredentialProvider
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.credentials.secret import Secret


@dataclass(frozen=True, kw_only=True)
class Upstream:
    server: str
    """scheme://host[:port][/prefix], without a slash at its end."""
    origin: str
    """Where this is written, for messages: the kubeconfig's path, or "in-cluster"."""
    credentials: CredentialProvider
    authorities: FileContent | bytes | None = None
    """PEM, or a file of it that is renewed from outside; none is the system's."""
    tls_server_name: str | None = None
    proxy: Secret | None = None
    """The proxy that the kubeconfig names, possibly with a password in it; none leaves it to the environment."""

    def trusted(self) -> bytes | None:
        return self.authorities.read() if isinstance(self.authorities, FileContent) else self.authorities
