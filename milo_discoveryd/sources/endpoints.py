"""Validation of clusters' addresses and CA certificates that come from objects. Pure."""

import base64
import binascii
import re
from urllib.parse import urlsplit

from milo_discoveryd.sources.reading import DNS_SUBDOMAIN, MalformedError
from milo_kube import addresses

_PEM = re.compile(rb"\s*-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s-]+-----END CERTIFICATE-----\s*")
_MAX_AUTHORITIES = 64 << 10
_PATH = re.compile(r"(?:/[A-Za-z0-9][-A-Za-z0-9._:~]*)*/?")


def checked_url(url: str, hosts: tuple[str, ...]) -> str:
    """Return the URL without a trailing slash. Raises MalformedError if the daemon must not connect to it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise MalformedError(f"the endpoint {url[:80]!r} is not a URL") from None
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and _PATH.fullmatch(parts.path)
    if parts.scheme != "https" or not is_plain or not _is_host(host):
        raise MalformedError(f"the endpoint {url[:80]!r} is not https://HOST:PORT with an optional path")
    if hosts and not any(_covers(each, host) for each in hosts):
        raise MalformedError(f"the endpoint's host {host[:80]!r} is not among endpoint.hosts")
    return url.rstrip("/")


def checked_authorities(value: str, origin: str) -> bytes:
    """Return CA certificates as PEM, from PEM or base64 of it."""
    content = value.encode()
    if not value.lstrip().startswith("-----BEGIN"):
        try:
            content = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            content = b""
    if len(content) > _MAX_AUTHORITIES or not _PEM.fullmatch(content):
        raise MalformedError(f"{origin} does not contain CA certificates, as PEM or in base64")
    return content


def _is_host(host: str) -> bool:
    if addresses.ip_address(host) is None:
        return len(host) <= 253 and DNS_SUBDOMAIN.fullmatch(host) is not None
    return "%" not in host


def _covers(pattern: str, host: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
