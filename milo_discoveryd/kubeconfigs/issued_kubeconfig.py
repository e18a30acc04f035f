"""A kubeconfig that the daemon issues."""

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential


class IssuedKubeconfig(msgspec.Struct, frozen=True):
    """A kubeconfig for one cluster. The text may contain a secret, so its repr masks it."""

    cluster: str
    text: bytes
    issued_at: float
    expires_at: float | None = None
    refresh_at: float | None = None
    credential: IssuedCredential | None = None

    def __repr__(self) -> str:
        return f"IssuedKubeconfig(cluster={self.cluster!r}, text=***)"
