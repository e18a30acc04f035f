"""Opens the API server of a kubeconfig, for requests with small responses."""

from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from milo_discoveryd.config import Settings
from milo_discoveryd.credentials import load_discovery_upstream
from milo_discoveryd.watchers.transport import Transport

_RESPONSE_LIMIT = 1 << 20


def open_upstream(
    kubeconfig: Path | None, settings: Settings, environ: Mapping[str, str], closing: AsyncExitStack
) -> tuple[Transport, str]:
    """Return a transport, which `closing` closes, and its origin for messages. Raises DiscoveryError.

    Without a kubeconfig, the server is that of the cluster that the daemon runs in.
    """
    upstream = load_discovery_upstream(
        kubeconfig, environ, settings.exec_plugins, plain_loopback=settings.plain_loopback
    )
    timeout_s = settings.watch.connect_timeout.total_seconds()
    transport = Transport(upstream, response_limit=_RESPONSE_LIMIT, connect_timeout_s=timeout_s, environ=environ)
    closing.push_async_exit(aclosing(transport))
    return transport, upstream.origin
