"""Decides which CA certificates verify the API server of a cluster, in its kubeconfig and for probes."""

from collections.abc import Callable

from milo_discoveryd.credentials import Upstream
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.declared_target import DeclaredTarget
from milo_discoveryd.sources.kind import SourceKind


def cluster_trust(kind: SourceKind, project: Upstream) -> Callable[[Target, bytes | None], ClusterTrust]:
    """Return a function that selects the CA of a source's cluster, given the CA certificates that came with its
    credential.

    Clusters at configured addresses share the CA of the project kubeconfig.
    """
    if kind.addresses_are_configured:
        return lambda _, __: ClusterTrust(
            project.trusted(), project.tls_server_name, plain_loopback=project.plain_loopback
        )
    file = None if kind.authorities_file is None else FileContent(kind.authorities_file)

    def trust(target: Target, stated: bytes | None) -> ClusterTrust:
        own = target.authorities if isinstance(target, DeclaredTarget) else None
        return ClusterTrust(own or stated or (None if file is None else file.read()))

    return trust
