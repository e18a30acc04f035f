"""Selects the proxy for a request from the environment.

NO_PROXY is interpreted as in Go, and so as in kubectl. Python's own functions ignore CIDR blocks, which are common
in the manifests of clusters, and so would send in-cluster traffic to the proxy.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from milo_kube import addresses

_DEFAULT_PORTS = {"http": 80, "https": 443}


def environment_proxy(server: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy's URL, or None to connect directly."""
    parts = urlsplit(server)
    host = (parts.hostname or "").rstrip(".")
    proxy = _variable(environ, f"{parts.scheme}_proxy")
    if (
        not proxy
        or addresses.is_loopback(host)
        or _is_excepted(host, parts.port or _DEFAULT_PORTS[parts.scheme], environ)
    ):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excepted(host: str, port: int, environ: Mapping[str, str]) -> bool:
    return any(
        _matches(word.strip().lower(), host, port) for word in _variable(environ, "no_proxy").split(",") if word.strip()
    )


def _matches(exception: str, host: str, port: int) -> bool:
    if exception == "*":
        return True
    address = addresses.ip_address(host)
    _, slash, bits = exception.partition("/")
    if slash:
        try:
            return bits.isdecimal() and address is not None and address in ipaddress.ip_network(exception, strict=False)
        except ValueError:
            return False
    name, wanted_port = _split_port(exception)
    if wanted_port is not None and wanted_port != port:
        return False
    if address is not None:
        return address == addresses.ip_address(name)
    if name.startswith("*."):
        name = name[1:]
    # A name matches itself and its subdomains; with a leading dot, only its subdomains.
    return host.endswith(name if name.startswith(".") else f".{name}") or host == name


def _split_port(exception: str) -> tuple[str, int | None]:
    if addresses.ip_address(exception) is not None:
        return exception, None
    name, colon, port = exception.rpartition(":")
    if colon and (port.isdecimal() or not port):
        return name.strip("[]"), int(port) if port else None
    return exception.strip("[]"), None


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name.upper()) or environ.get(name) or ""
