"""The server and the CA of a kubeconfig that an object or a file contains. Its credential is not read. Pure."""

import base64
import binascii
from typing import Any

import msgspec

from milo_discoveryd import yaml_document
from milo_discoveryd.modes.endpoints import checked_authorities
from milo_discoveryd.modes.reading import MalformedError


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str = ""
    certificate_authority_data: str = ""
    # Declared so that they can be rejected: to ignore them would change the connection.
    certificate_authority: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    """The fields that make a user unusable here. Their types do not matter."""

    exec: Any = None
    auth_provider: Any = None
    token_file: Any = msgspec.field(name="tokenFile", default=None)
    client_certificate: Any = None
    client_key: Any = None
    username: Any = None
    password: Any = None
    impersonate: Any = msgspec.field(name="as", default=None)


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None


class _Context(msgspec.Struct, frozen=True):
    cluster: str = ""
    user: str = ""


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class KubeconfigFields(msgspec.Struct, frozen=True, rename="kebab"):
    current_context: str | None = None
    clusters: list[_NamedCluster] | None = None
    contexts: list[_NamedContext] | None = None
    users: list[_NamedUser] | None = None

    @property
    def context_names(self) -> list[str]:
        return [each.name for each in self.contexts or ()]

    def required_context(self, origin: str) -> str:
        """Return the current context. Raises MalformedError if there is none."""
        if not self.current_context:
            raise MalformedError(f"{origin} has no current-context")
        return self.current_context

    def server(self, context: str, origin: str) -> tuple[str, bytes | None]:
        """Return the server of a context, and its CA certificates as PEM. Raises MalformedError."""
        named = self._context(context, origin)
        cluster = next((each.cluster for each in self.clusters or () if each.name == named.cluster), None)
        if cluster is None:
            raise MalformedError(f"{origin} has no cluster for the context {context[:80]!r}")
        unsupported = [
            setting
            for setting, given in (
                ("certificate-authority", cluster.certificate_authority and not cluster.certificate_authority_data),
                ("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify),
                ("tls-server-name", cluster.tls_server_name),
                ("proxy-url", cluster.proxy_url),
            )
            if given
        ]
        if unsupported:
            raise MalformedError(
                f"{origin} has a cluster with {', '.join(unsupported)}, which is not supported: only a server and "
                "certificate-authority-data are used"
            )
        data = cluster.certificate_authority_data
        return cluster.server, checked_authorities(data, f"certificate-authority-data of {origin}") if data else None

    def require_inline_user(self, context: str, origin: str) -> None:
        """Reject a context whose user is not an inline token, or an inline certificate with its key.

        The daemon would run a command, or read a file, that the user names, with its own permissions.
        """
        named = self._context(context, origin)
        user = next((each.user for each in self.users or () if each.name == named.user), None)
        if user is None:
            raise MalformedError(f"{origin} has no user for the context {context[:80]!r}")
        refused = [
            setting
            for setting, given in (
                ("an exec plugin", user.exec),
                ("an auth-provider", user.auth_provider),
                ("a tokenFile", user.token_file),
                ("a client-certificate file", user.client_certificate),
                ("a client-key file", user.client_key),
                ("a username and password", user.username or user.password),
                ("impersonation", user.impersonate),
            )
            if given
        ]
        if refused:
            raise MalformedError(
                f"{origin} has a user with {', '.join(refused)}: only a token, or client-certificate-data with "
                "client-key-data, is accepted"
            )

    def _context(self, name: str, origin: str) -> _Context:
        found = next((each.context for each in self.contexts or () if each.name == name), None)
        if found is None:
            raise MalformedError(f"{origin} has no context {name[:80]!r}")
        return found


# `convert` runs in several threads at once, where the first use of a type crashes msgspec 0.22: see docs/upstream.md.
msgspec.json.Decoder(KubeconfigFields)


def parse(content: bytes, origin: str) -> KubeconfigFields:
    """Parse a kubeconfig. Raises MalformedError, which quotes nothing of the content, since that holds a secret."""
    try:
        document = yaml_document.read(content, scalars="typed").value
    except yaml_document.DocumentError as error:
        raise MalformedError(f"{origin} is not a kubeconfig: it is not valid YAML (line {error.line})") from None
    if not isinstance(document, dict):
        raise MalformedError(f"{origin} is not a kubeconfig: it is empty, or not a mapping")
    try:
        return msgspec.convert(document, KubeconfigFields)
    except msgspec.ValidationError:
        raise MalformedError(f"{origin} is not a kubeconfig: a field has the wrong type") from None


def server_of(encoded: str, origin: str) -> tuple[str, bytes | None]:
    """Return the server, and its CA certificates as PEM, of a base64 kubeconfig's current context.

    Raises MalformedError.
    """
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{origin} does not contain a kubeconfig in base64") from None
    config = parse(content, origin)
    return config.server(config.required_context(origin), origin)
