"""The two API servers that the settings name: the one that is watched, and the one that serves projects."""

from collections.abc import Collection, Mapping
from pathlib import Path

from milo_discoveryd.credentials.authentication.in_cluster import load_in_cluster
from milo_discoveryd.credentials.authentication.kubeconfig import load_kubeconfig
from milo_discoveryd.credentials.authentication.upstream import Upstream


def load_discovery_upstream(
    kubeconfig: Path | None,
    environ: Mapping[str, str],
    plugins: Collection[str] = (),
    *,
    plain_loopback: bool = False,
) -> Upstream:
    """Load the kubeconfig or, without one, the API server of the cluster that the daemon runs in."""
    if kubeconfig is None:
        return load_in_cluster(environ)
    return load_kubeconfig(kubeconfig, plugins, plain_loopback=plain_loopback)


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
