"""The address and the identity of a sandbox, saved beside its kubeconfig.

A sandbox that is started again with the same kubeconfig file has the same port, certificates and projects, so clients
of the earlier one recover as after a restart of an API server.
"""

from datetime import datetime, timedelta
from pathlib import Path
from random import SystemRandom

import msgspec

from milo_sandbox import kubeconfigs
from milo_sandbox.certificates import ServerIdentity, issue_identity

_RENEWED_BEFORE = timedelta(days=1)


class SavedServer(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    """The port; 0 before the first start, for any free port."""
    seed: int
    """The random seed, which determines the names and UIDs of the first projects."""
    identity: ServerIdentity


def saved_path(kubeconfig: Path) -> Path:
    return kubeconfig.with_name(f"{kubeconfig.name}.sandbox")


def load_or_issue(kubeconfig: Path, host: str, port: int, now: datetime) -> SavedServer:
    """Return the server saved by an earlier run on this address, or a new one."""
    try:
        saved = msgspec.json.decode(saved_path(kubeconfig).read_bytes(), type=SavedServer)
    except (OSError, msgspec.DecodeError):
        return _new(host, port, now)
    if saved.host != host or port not in (0, saved.port) or saved.identity.expires_at - now < _RENEWED_BEFORE:
        return _new(host, port, now)
    return saved


def save(kubeconfig: Path, server: SavedServer) -> None:
    kubeconfigs.write_secret(saved_path(kubeconfig), msgspec.json.encode(server).decode())


def _new(host: str, port: int, now: datetime) -> SavedServer:
    return SavedServer(
        host=host, port=port, seed=SystemRandom().getrandbits(32), identity=issue_identity(host, now=now)
    )
