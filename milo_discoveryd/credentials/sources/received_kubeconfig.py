"""The credential and the CA of a kubeconfig that was received from an API server.

Only inline data is accepted: a file path or a command in that kubeconfig would be read or run by the daemon.
"""

import base64
import binascii

from milo_discoveryd.credentials.authentication import kubeconfig_schema
from milo_discoveryd.credentials.authentication.kubeconfig_schema import Kubeconfig, User
from milo_discoveryd.credentials.credential import ClientCertificate, Credential, token_of
from milo_discoveryd.credentials.secret import Secret
from milo_discoveryd.daemon_errors import BackendError, ConfigError


def read(encoded: str, what: str) -> tuple[Credential, bytes | None]:
    """Return the credential, and the CA certificates as PEM, of a kubeconfig in base64. Raises BackendError."""
    try:
        content = base64.b64decode(encoded, validate=True)
        config = kubeconfig_schema.read(content, what)
    except (binascii.Error, ConfigError):
        raise BackendError(f"{what} does not contain a kubeconfig") from None
    context = next((each.context for each in config.contexts or () if each.name == config.current_context), None)
    user = next((each.user for each in config.users or () if context and each.name == context.user), None)
    if context is None or user is None:
        raise BackendError(f"{what} contains a kubeconfig whose current context has no user")
    if user.exec or user.token_file or user.client_certificate or user.client_key or user.auth_provider:
        raise BackendError(f"{what} contains a kubeconfig that names a command or a file: only inline data is accepted")
    credential = Credential(
        token=token_of(user.token, f"the token of {what}") if user.token else None, certificate=_pair(user, what)
    )
    return credential, _authorities(config, context.cluster, what)


def _authorities(config: Kubeconfig, cluster: str, what: str) -> bytes | None:
    data = next((each.cluster.certificate_authority_data for each in config.clusters or () if each.name == cluster), "")
    try:
        return base64.b64decode(data, validate=True) or None
    except binascii.Error:
        raise BackendError(f"{what} contains CA certificates that are not valid base64") from None


def _pair(user: User, what: str) -> ClientCertificate | None:
    if user.token or not (user.client_certificate_data or user.client_key_data):
        return None
    try:
        chain = base64.b64decode(user.client_certificate_data, validate=True)
        key = base64.b64decode(user.client_key_data, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise BackendError(f"{what} contains a certificate or key that is not valid base64") from None
    if not chain or not key:
        raise BackendError(f"{what} contains a certificate without a key, or a key without a certificate")
    return ClientCertificate(chain=chain, key=Secret(key))
