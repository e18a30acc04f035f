"""Credentials: those that the daemon authenticates with (`authentication`), and those that it issues (`issuers`).

Secrets are kept in `Secret`, which masks itself. No error or log message of this package contains one.
"""

from milo_discoveryd.credentials.authentication.credential_provider import CredentialProvider
from milo_discoveryd.credentials.authentication.in_cluster import load_in_cluster
from milo_discoveryd.credentials.authentication.kubeconfig import load_kubeconfig
from milo_discoveryd.credentials.authentication.load_upstream import load_discovery_upstream, load_project_upstream
from milo_discoveryd.credentials.authentication.upstream import Upstream
from milo_discoveryd.credentials.credential import ClientCertificate, Credential
from milo_discoveryd.credentials.secret import Secret

__all__ = [
    "ClientCertificate",
    "Credential",
    "CredentialProvider",
    "Secret",
    "Upstream",
    "load_discovery_upstream",
    "load_in_cluster",
    "load_kubeconfig",
    "load_project_upstream",
]
