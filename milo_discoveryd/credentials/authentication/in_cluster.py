"""The API server of the cluster that the daemon runs in, with the pod's service account."""

from collections.abc import Mapping
from pathlib import Path

from milo_discoveryd.credentials.authentication.credential_provider import FileCredential
from milo_discoveryd.credentials.authentication.upstream import Upstream
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.daemon_errors import ConfigError, CredentialError
from milo_kube import addresses

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def load_in_cluster(environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> Upstream:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError(
            [
                "in-cluster: not running in a pod (KUBERNETES_SERVICE_HOST and _PORT are not set): "
                "set --discovery-kubeconfig and --project-kubeconfig"
            ]
        )
    token, authorities = FileContent(service_account / "token"), FileContent(service_account / "ca.crt")
    problems: list[str] = []
    for file in (token, authorities):
        try:
            file.read()
        except CredentialError as error:
            problems.append(f"in-cluster: {error} (does the pod have automountServiceAccountToken: false?)")
    if problems:
        raise ConfigError(problems)
    return Upstream(
        server=f"https://{addresses.bracketed(host)}:{port}",
        origin="in-cluster",
        credentials=FileCredential(token=token),
        authorities=authorities,
    )
