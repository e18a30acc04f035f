"""Loads the API servers of sources, and opens those that are asked for small responses."""

from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from milo_discoveryd.config import Settings, SourceSettings
from milo_discoveryd.credentials import Credential, Upstream, load_discovery_upstream, load_project_upstream
from milo_discoveryd.credentials.authentication.credential_provider import StaticCredential
from milo_discoveryd.sources.kind import ProjectServer
from milo_discoveryd.watchers.transport import Transport

_RESPONSE_LIMIT = 1 << 20


def discovery_upstream(of: SourceSettings, settings: Settings, environ: Mapping[str, str]) -> Upstream | None:
    """Load the API server that a source watches; None if it watches none. Raises ConfigError."""
    if not of.settings.is_watched:
        return None
    return load_discovery_upstream(
        of.discovery_kubeconfig, environ, settings.exec_plugins, plain_loopback=settings.plain_loopback
    )


def project_upstream(of: SourceSettings, settings: Settings, environ: Mapping[str, str]) -> Upstream:
    """Load the API server that serves a source's clusters, or whose identity and CA are used for them.

    Raises ConfigError.
    """
    if of.settings.project_server is ProjectServer.NONE:
        return Upstream(server="", origin="nothing", credentials=StaticCredential(Credential()))
    return load_project_upstream(
        of.project_kubeconfig,
        of.discovery_kubeconfig,
        environ,
        settings.exec_plugins,
        plain_loopback=settings.plain_loopback,
    )


def open_upstream(
    kubeconfig: Path | None, settings: Settings, environ: Mapping[str, str], closing: AsyncExitStack
) -> tuple[Transport, str]:
    """Return a transport, which `closing` closes, and its origin for messages. Raises DaemonError.

    Without a kubeconfig, the server is that of the cluster that the daemon runs in.
    """
    upstream = load_discovery_upstream(
        kubeconfig, environ, settings.exec_plugins, plain_loopback=settings.plain_loopback
    )
    timeout_s = settings.watch.connect_timeout.total_seconds()
    transport = Transport(upstream, response_limit=_RESPONSE_LIMIT, connect_timeout_s=timeout_s, environ=environ)
    closing.push_async_exit(aclosing(transport))
    return transport, upstream.origin
