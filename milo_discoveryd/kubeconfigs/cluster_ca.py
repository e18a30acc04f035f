"""Decides how the API server of a cluster is reached and verified, in its kubeconfig and for probes."""

from collections.abc import Callable

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.sources.kind import SourceKind
from milo_kube.authorities_file import AuthoritiesFile
from milo_kube.upstream import Note, Upstream

TrustOf = Callable[[Target, IssuedCredential | None], ClusterTrust]


def cluster_trust(kind: SourceKind, project: Upstream, note: Note = lambda _origin, _problem: None) -> TrustOf:
    """Return a function that selects the CA of a source's cluster, given the credential that was issued for it.

    Clusters at configured addresses share the CA of the project kubeconfig, except clusters whose credential was issued
    with the URL of an API server. `note` is called with a problem of the file of CAs, as that of `AuthoritiesFile`.
    """
    file = None if kind.authorities_file is None else AuthoritiesFile(kind.authorities_file, note)

    def trust(target: Target, issued: IssuedCredential | None) -> ClusterTrust:
        if issued is not None and issued.server:
            return ClusterTrust(issued.authorities, issued.tls_server_name or None, server=issued.server)
        if kind.addresses_are_configured:
            return ClusterTrust(project.trusted(), project.tls_server_name, plain_loopback=project.plain_loopback)
        own = target.authorities if isinstance(target, DeclaredTarget) else None
        stated = None if issued is None else issued.authorities
        return ClusterTrust(own or stated or (None if file is None else file.read()))

    return trust
