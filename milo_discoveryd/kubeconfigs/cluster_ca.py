"""Decides how the API server of a cluster is reached and verified, in its kubeconfig and for probes."""

from collections.abc import Callable

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.sources.kind import SourceKind
from milo_kube.file_content import FileContent
from milo_kube.upstream import Upstream

TrustOf = Callable[[Target, IssuedCredential | None], ClusterTrust]


def cluster_trust(kind: SourceKind, project: Upstream) -> TrustOf:
    """Return a function that selects the CA of a source's cluster, given the credential that was issued for it.

    Clusters at configured addresses share the CA of the project kubeconfig, except clusters whose credential was issued
    with the URL of an API server.
    """
    file = None if kind.authorities_file is None else FileContent(kind.authorities_file)

    def trust(target: Target, issued: IssuedCredential | None) -> ClusterTrust:
        if issued is not None and issued.server:
            return ClusterTrust(issued.authorities, issued.tls_server_name or None, server=issued.server)
        if kind.addresses_are_configured:
            return ClusterTrust(project.trusted(), project.tls_server_name, plain_loopback=project.plain_loopback)
        own = target.authorities if isinstance(target, DeclaredTarget) else None
        stated = None if issued is None else issued.authorities
        return ClusterTrust(own or stated or (None if file is None else file.read()))

    return trust
