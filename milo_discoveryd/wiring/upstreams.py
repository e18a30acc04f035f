"""Loads the API servers of sources, and opens transports for requests with small responses, such as TokenReviews."""

from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from milo_discoveryd.config import Settings, SourceSettings
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.logger import log
from milo_discoveryd.sources.kind import ProjectServer
from milo_discoveryd.watchers.transport import MonitoredTransport, Transport
from milo_kube.credential import Credential
from milo_kube.credential_providers import StaticCredential
from milo_kube.upstream import Upstream, UpstreamError, load_in_cluster, load_kubeconfig

_RESPONSE_LIMIT = 1 << 20


def load_discovery_upstream(
    kubeconfig: Path | None,
    environ: Mapping[str, str],
    plugins: Collection[str] = (),
    *,
    plain_loopback: bool = False,
) -> Upstream:
    """Load the kubeconfig or, without one, the API server of the cluster that the daemon runs in.

    Raises ConfigError.
    """
    try:
        if kubeconfig is None:
            return load_in_cluster(environ, note=note_renewal)
        return load_kubeconfig(kubeconfig, plugins, plain_loopback=plain_loopback, note=note_renewal)
    except UpstreamError as error:
        raise ConfigError(error.problems) from None


def note_renewal(origin: str, problem: str) -> None:
    """Log that the renewal of a credential of the daemon, or of CAs that it trusts, fails, or works again."""
    if problem:
        log.warning("credential of the daemon not renewed", origin=origin, problem=problem)
    else:
        log.info("credential of the daemon renewed again", origin=origin)


def load_project_upstream(
    project: Path | None,
    discovery: Path | None,
    environ: Mapping[str, str],
    plugins: Collection[str] = (),
    *,
    plain_loopback: bool = False,
) -> Upstream:
    """Load the project kubeconfig. Without one, outside a cluster, the discovery kubeconfig is used."""
    if project is None and "KUBERNETES_SERVICE_HOST" not in environ:
        project = discovery
    return load_discovery_upstream(project, environ, plugins, plain_loopback=plain_loopback)


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
    """Return a transport, which `closing` closes, and its origin for messages. Raises ConfigError.

    Without a kubeconfig, the API server of the cluster that the daemon runs in is used.
    """
    upstream = load_discovery_upstream(
        kubeconfig, environ, settings.exec_plugins, plain_loopback=settings.plain_loopback
    )
    closing.push_async_exit(aclosing(upstream))
    return opened(upstream, settings, environ, closing), upstream.origin


def opened(
    upstream: Upstream, settings: Settings, environ: Mapping[str, str], closing: AsyncExitStack
) -> MonitoredTransport:
    """Return a transport, which `closing` closes."""
    timeout_s = settings.watch.connect_timeout.total_seconds()
    transport = MonitoredTransport(
        upstream, response_limit=_RESPONSE_LIMIT, connect_timeout_s=timeout_s, environ=environ
    )
    closing.push_async_exit(aclosing(transport))
    return transport
