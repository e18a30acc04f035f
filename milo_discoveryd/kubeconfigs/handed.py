"""What is handed out, to whom, and what can be told of where it came from."""

import msgspec

from milo_discoveryd.credentials.minted import Minted


class Kubeconfig(msgspec.Struct, frozen=True):
    """As it is handed out. Its text may hold a secret."""

    cluster: str
    text: bytes
    issued_at: float
    expires_at: float | None = None
    refresh_at: float | None = None
    minted: Minted | None = None

    def __repr__(self) -> str:
        return f"Kubeconfig(cluster={self.cluster!r}, text=***)"


class SourceHealth(msgspec.Struct, frozen=True):
    name: str
    type: str
    trouble: str
    expires_at: float | None
    """When the first of the credentials that it holds ends."""
    leases: int
