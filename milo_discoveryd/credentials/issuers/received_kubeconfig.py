"""The credential and the CA of a kubeconfig that was received from an API server, or is in a file of a source.

Only inline data is accepted: a file path or a command in that kubeconfig would be read or run by the daemon.
"""

import base64
import binascii

import msgspec

from milo_discoveryd.credentials.authentication import kubeconfig_schema
from milo_discoveryd.credentials.authentication.kubeconfig_schema import ClusterEntry, User
from milo_discoveryd.credentials.credential import ClientCertificate, Credential, token_of
from milo_discoveryd.credentials.secret import Secret
from milo_discoveryd.daemon_errors import BackendError, ConfigError


class ReceivedKubeconfig(msgspec.Struct, frozen=True):
    server: str
    credential: Credential
    authorities: bytes | None
    """CA certificates as PEM."""


def read(encoded: str, what: str) -> ReceivedKubeconfig:
    """Return the server, CA and credential of a base64 kubeconfig's current context. Raises BackendError."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise BackendError(f"{what} does not contain a kubeconfig") from None
    return parse(content, what)


def parse(content: bytes, what: str, name: str = "") -> ReceivedKubeconfig:
    """Return the server, CA and credential of a kubeconfig's context, by default the current one. Raises
    BackendError."""
    try:
        config = kubeconfig_schema.read(content, what)
    except ConfigError:
        raise BackendError(f"{what} does not contain a kubeconfig") from None
    name = name or config.current_context
    context = next((each.context for each in config.contexts or () if each.name == name), None)
    user = next((each.user for each in config.users or () if context and each.name == context.user), None)
    if context is None or user is None:
        raise BackendError(f"{what} contains a kubeconfig whose current context has no user")
    if user.exec or user.token_file or user.client_certificate or user.client_key or user.auth_provider:
        raise BackendError(f"{what} contains a kubeconfig that names a command or a file: only inline data is accepted")
    if user.impersonate:
        # If the impersonation were ignored, operators would have the permissions of the impersonating user.
        raise BackendError(f"{what} contains a kubeconfig that impersonates another user, which is not supported")
    cluster = next((each.cluster for each in config.clusters or () if each.name == context.cluster), ClusterEntry())
    token = token_of(user.token, f"the token of {what}") if user.token else None
    credential = Credential(token=token, certificate=_pair(user, what))
    return ReceivedKubeconfig(cluster.server, credential, _authorities(cluster, what))


def _authorities(cluster: ClusterEntry, what: str) -> bytes | None:
    try:
        return base64.b64decode(cluster.certificate_authority_data, validate=True) or None
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
