"""Validation of clusters' addresses and CA certificates that come from objects, or from kubeconfigs in objects or
files. Pure.
"""

import base64
import binascii
import re
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias
from urllib.parse import urlsplit

from milo_discoveryd.sources.reading import DNS_SUBDOMAIN, MalformedError
from milo_kube import addresses, key_sizes, kubeconfig
from milo_kube.kubeconfig import KubeconfigError, ParsedKubeconfig, Policy

_PEM = re.compile(rb"\s*-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s-]+-----END CERTIFICATE-----\s*")
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9](?:[-A-Za-z0-9.:]*[A-Za-z0-9])?")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Names that resolvers take for an IPv4 address, such as 10.0.5, which is 10.0.0.5."""
_HTTPS = 443
_MAX_AUTHORITIES = 64 << 10
_PATH = re.compile(r"(?:/[A-Za-z0-9][-A-Za-z0-9._:~]*)*/?")


HostPattern: TypeAlias = str | IPv4Network | IPv6Network
"""A host, all hosts below a domain ("*.example.com"), or a network of addresses."""


def host_pattern(text: str) -> HostPattern:
    """Parse a pattern for hosts. Raises ValueError, which says what would be valid."""
    if "/" in text:
        try:
            return ip_network(text)
        except ValueError as error:
            raise ValueError(f"must be a network such as 10.0.0.0/8: {error}") from None
    if not _HOST.fullmatch(text):
        raise ValueError(
            'must be a host, all hosts below a domain, such as "*.example.com", or a network such as 10.0.0.0/8'
        )
    return text.lower()


def checked_url(endpoint: str, hosts: tuple[HostPattern, ...], port: int = 443) -> str:
    """Return the endpoint's URL without a trailing slash. A bare host or address is completed to a URL.

    Raises MalformedError if the daemon must not connect to it.
    """
    if len(endpoint) > kubeconfig.LONGEST_URL:
        raise MalformedError(f"the endpoint {endpoint[:80]!r} is longer than {kubeconfig.LONGEST_URL} characters")
    url = endpoint if "://" in endpoint else f"https://{_bracketed(endpoint)}"
    try:
        parts = urlsplit(url)
        host, stated_port = parts.hostname or "", parts.port
    except ValueError:
        raise MalformedError(f"the endpoint {endpoint[:80]!r} is not a URL") from None
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and _PATH.fullmatch(parts.path)
    # urlsplit strips tabs, newlines and leading control characters; other parsers do not.
    is_visible = endpoint.isprintable() and " " not in endpoint
    if parts.scheme != "https" or not is_plain or not is_visible or not _is_host(host):
        raise MalformedError(
            f"the endpoint {endpoint[:80]!r} is not of the form https://HOST[:PORT][/PATH] or HOST[:PORT]"
        )
    if hosts and not any(_covers(pattern, host) for pattern in hosts):
        raise MalformedError(f"the endpoint's host {host[:80]!r} is not among endpoint.hosts")
    if stated_port is None and port != _HTTPS:
        url = f"https://{parts.netloc.rstrip(':')}:{port}{parts.path}"
    return url.rstrip("/")


def checked_authorities(value: str, origin: str) -> bytes:
    """Return CA certificates as PEM. `value` is PEM, or PEM that is encoded in base64."""
    content = value.encode()
    if not value.lstrip().startswith("-----BEGIN"):
        try:
            content = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            content = b""
    if len(content) > _MAX_AUTHORITIES or not _PEM.fullmatch(content):
        raise MalformedError(f"{origin} does not contain CA certificates of at most 64 KiB, as PEM or in base64")
    try:
        key_sizes.check(content, key_sizes.RECEIVED_BITS)
    except key_sizes.KeySizeError as error:
        raise MalformedError(f"{origin} {error}") from None
    return content


def _is_host(host: str) -> bool:
    if addresses.ip_address(host) is None:
        is_name = len(host) <= 253 and DNS_SUBDOMAIN.fullmatch(host) is not None
        return is_name and _NUMBER.fullmatch(host) is None
    return "%" not in host


def _bracketed(endpoint: str) -> str:
    """Return an endpoint without a scheme in URL syntax, with an IPv6 address in brackets."""
    return addresses.bracketed(endpoint) if addresses.ip_address(endpoint) is not None else endpoint


def _covers(pattern: HostPattern, host: str) -> bool:
    if not isinstance(pattern, str):
        address = addresses.ip_address(host)
        return address is not None and address.version == pattern.version and address in pattern
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def parsed_kubeconfig(content: bytes, origin: str, *, nodes: int | None = None) -> ParsedKubeconfig:
    """Parse a kubeconfig, with at most `nodes` YAML nodes. Raises MalformedError, which quotes no value of the content,
    since values may be secret."""
    return _parsed_kubeconfig(partial(kubeconfig.parse, nodes=nodes), content, origin)


def decoded_kubeconfig(encoded: str, origin: str) -> ParsedKubeconfig:
    """Parse a kubeconfig in base64. Raises MalformedError."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{origin} does not contain a base64-encoded kubeconfig") from None
    return _parsed_kubeconfig(kubeconfig.parse_received, content, origin)


def _parsed_kubeconfig(parse: Callable[[bytes], ParsedKubeconfig], content: bytes, origin: str) -> ParsedKubeconfig:
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
