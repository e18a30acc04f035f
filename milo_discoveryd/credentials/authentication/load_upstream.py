"""Which API servers two settings mean: where objects are watched, and whose address and identity lead to projects."""

from collections.abc import Collection, Mapping
from pathlib import Path

from milo_discoveryd.credentials.authentication.in_cluster import load_in_cluster
from milo_discoveryd.credentials.authentication.kubeconfig import load_kubeconfig
from milo_discoveryd.credentials.authentication.upstream import Upstream


def load_discovery_upstream(
    kubeconfig: Path | None, environ: Mapping[str, str], plugins: Collection[str] = ()
) -> Upstream:
    """A kubeconfig's, or without one, that of the cluster we run in."""
    return load_in_cluster(environ) if kubeconfig is None else load_kubeconfig(kubeconfig, plugins)


def load_project_upstream(
    project: Path | None, discovery: Path | None, environ: Mapping[str, str], plugins: Collection[str] = ()
) -> Upstream:
    """The same; but outside a cluster only the discovery kubeconfig can be meant where there is no other."""
    if project is None and "KUBERNETES_SERVICE_HOST" not in environ:
        project = discovery
    return load_discovery_upstream(project, environ, plugins)
