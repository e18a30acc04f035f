"""Reads the server of a kubeconfig in a file, or in an object of an API server. Pure."""

import base64
import binascii
from collections.abc import Callable

from milo_discoveryd.sources.endpoints import checked_authorities
from milo_discoveryd.sources.reading import MalformedError
from milo_kube import kubeconfig
from milo_kube.kubeconfig import KubeconfigError, ParsedKubeconfig, Policy


def parsed(content: bytes, origin: str) -> ParsedKubeconfig:
    """Parse a kubeconfig. Raises MalformedError, which quotes no value of the content, since values may be secret."""
    return _parsed(kubeconfig.parse, content, origin)


def decoded(encoded: str, origin: str) -> ParsedKubeconfig:
    """Parse a kubeconfig in base64. Raises MalformedError."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{origin} does not contain a kubeconfig in base64") from None
    return _parsed(kubeconfig.parse_received, content, origin)


def _parsed(parse: Callable[[bytes], ParsedKubeconfig], content: bytes, origin: str) -> ParsedKubeconfig:
    try:
        return parse(content)
    except KubeconfigError as error:
        raise MalformedError(f"{origin}: {error}") from None


def server_of(
    config: ParsedKubeconfig, policy: Policy, origin: str, context: str | None = None
) -> tuple[str, bytes | None]:
    """Return a context's server, and its CA certificates as PEM. Raises MalformedError."""
    try:
        selected = config.select(policy, context)
    except KubeconfigError as error:
        raise MalformedError(f"{origin}: {error}") from None
    authorities = selected.authorities
    if authorities is not None:
        pem = authorities.decode(errors="replace")
        authorities = checked_authorities(pem, f"certificate-authority-data of {origin}")
    return selected.server, authorities
