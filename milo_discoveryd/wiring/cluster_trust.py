"""Selects the CA certificates that verify the API servers of clusters."""

from collections.abc import Callable

from milo_discoveryd.config import Settings
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.declared_target import DeclaredTarget
from milo_discoveryd.modes.mode import has_own_authorities


def cluster_trust(settings: Settings, project: Upstream) -> Callable[[Target, bytes | None], ClusterTrust]:
    """Return a function that selects a cluster's CA, given the CA certificates that came with its credential.

    In modes without a CA per cluster, all clusters share the CA of the project kubeconfig.
    """
    if not has_own_authorities(settings.mode):
        return lambda _, __: ClusterTrust(
            project.trusted(), project.tls_server_name, plain_loopback=project.plain_loopback
        )
    path = None if settings.declarative is None else settings.declarative.ca_file
    file = None if path is None else FileContent(path)

    def trust(target: Target, stated: bytes | None) -> ClusterTrust:
        own = target.authorities if isinstance(target, DeclaredTarget) else None
        return ClusterTrust(own or stated or (None if file is None else file.read()))

    return trust
