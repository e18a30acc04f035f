"""The credential and the CA of a kubeconfig that was received from an API server, or is in a file of a source."""

import base64
from collections.abc import Callable

import msgspec

from milo_discoveryd.daemon_errors import BackendError
from milo_kube import kubeconfig
from milo_kube.credential import ClientCertificate, Credential, Secret, token_of
from milo_kube.kubeconfig import KubeconfigError, ParsedKubeconfig, Policy


class ReceivedCredential(msgspec.Struct, frozen=True):
    credential: Credential
    authorities: bytes | None
    """CA certificates as PEM."""


class ReceivedKubeconfig(ReceivedCredential, frozen=True):
    server: str
    """URL of the API server; empty if the kubeconfig has none."""
    tls_server_name: str


def read(encoded: str, what: str, policy: Policy = kubeconfig.RECEIVED) -> ReceivedKubeconfig:
    """Return the server, CA and credential of the current context of a base64-encoded kubeconfig.

    Raises BackendError.
    """
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii.Error, or text that is not ASCII
        raise BackendError(f"{what} does not contain a base64-encoded kubeconfig") from None
    return _selected(kubeconfig.parse_received, content, what, "", policy)


def parse(content: bytes, what: str, name: str = "", *, policy: Policy = kubeconfig.RECEIVED) -> ReceivedKubeconfig:
    """Return the server, CA and credential of a context of a kubeconfig file, by default the current one.

    Raises BackendError.
    """
    return _selected(kubeconfig.parse, content, what, name, policy)


def _selected(
    parse: Callable[[bytes], ParsedKubeconfig], content: bytes, what: str, name: str, policy: Policy
) -> ReceivedKubeconfig:
    try:
        read_content = parse(content)
    except KubeconfigError as error:
        raise BackendError(f"{what} does not contain a kubeconfig: {error}") from None
    try:
        found = read_content.select(policy, name or None)
    except KubeconfigError as error:
        raise BackendError(f"{what} contains a kubeconfig that is refused: {error}") from None
    token = token_of(found.token, f"the token of {what}") if found.token else None
    certificate = None
    # If the kubeconfig has both, only the token is issued: the certificate may be valid for years.
    if token is None and found.certificate is not None and found.key is not None:
        certificate = ClientCertificate(chain=found.certificate, key=Secret(found.key.decode(errors="replace")))
    credential = Credential(token=token, certificate=certificate)
    return ReceivedKubeconfig(credential, found.authorities, found.server, found.tls_server_name)
