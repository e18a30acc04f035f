"""An API server and the daemon's identity there, as a kubeconfig or the pod's service account gives them."""

import msgspec

from milo_discoveryd.credentials.authentication.credential_provider import CredentialProvider
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.credentials.secret import Secret


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    server: str
    """scheme://host[:port][/prefix], without a trailing slash."""
    origin: str
    """The kubeconfig's path or "in-cluster", for messages."""
    credentials: CredentialProvider
    authorities: FileContent | bytes | None = None
    """PEM, or a file with PEM that another process renews; None stands for the system's CAs."""
    tls_server_name: str | None = None
    proxy: Secret | None = None
    """The kubeconfig's proxy URL, which may contain a password; None leaves the choice to the environment."""
    plain_loopback: bool = False
    """Whether credentials may be sent over plain HTTP to addresses on loopback."""

    def trusted(self) -> bytes | None:
        return self.authorities.read() if isinstance(self.authorities, FileContent) else self.authorities
