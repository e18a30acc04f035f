"""Connection pools shared by API clients: one per trust root, client certificate and proxy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from milo_discovery._kubeconfig_access import KubeconfigAccess

TransportT = TypeVar("TransportT")


def transport_key(access: KubeconfigAccess, proxy: str | None) -> Hashable:
    """Return the key by which connections are shared. A token is sent per request, so it is not part of the key."""
    certificate = None if access.token is not None else (access.certificate, access.key)
    # NO_PROXY can make the proxy depend on the server.
    return access.authorities, access.tls_server_name, certificate, proxy and (proxy, access.server)


@dataclass(slots=True)
class _Shared(Generic[TransportT]):
    transport: TransportT
    users: int = 0


class SharedTransports(Generic[TransportT]):
    """Transports with the number of users of each. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: dict[Hashable, _Shared[TransportT]] = {}

    def acquire(self, key: Hashable, create: Callable[[], TransportT]) -> TransportT:
        """Return the transport for the key, created if there is none."""
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(create())
            shared.users += 1
            return shared.transport

    def release(self, key: Hashable) -> TransportT | None:
        """Return the transport to close if that was its last user."""
        with self._lock:
            shared = self._shared[key]
            shared.users -= 1
            if shared.users:
                return None
            del self._shared[key]
            return shared.transport
