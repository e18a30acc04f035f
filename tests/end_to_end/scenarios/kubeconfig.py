"""The parts of a kubeconfig that a client needs, for any server."""

import base64
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml


@dataclass(frozen=True)
class Access:
    server: str
    tls: ssl.SSLContext
    token: Callable[[], str | None]
    """Returns the user's token, which is read for each request, since another process renews the token file."""


def read(path: Path) -> Access:
    config = yaml.safe_load(path.read_text())
    context = _named(config["contexts"], config["current-context"])["context"]
    cluster = _named(config["clusters"], context["cluster"])["cluster"]
    user = _named(config["users"], context["user"])["user"]
    authority = _pem(cluster, "certificate-authority", path)
    tls = ssl.create_default_context(cadata=None if authority is None else authority.decode())
    certificate, key = _pem(user, "client-certificate", path), _pem(user, "client-key", path)
    if certificate is not None and key is not None:
        _present(tls, certificate, key)
    return Access(cluster["server"], tls, lambda: _token(user, path))


def _named(entries: list[Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(entry for entry in entries if entry["name"] == name)
    return found


def _pem(holder: Mapping[str, str], what: str, path: Path) -> bytes | None:
    if data := holder.get(f"{what}-data"):
        return base64.b64decode(data)
    return (path.parent / holder[what]).read_bytes() if holder.get(what) else None


def _present(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    # The ssl module loads client certificates from files only.
    with TemporaryDirectory() as directory:
        pair = Path(directory) / "pair.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(key + b"\n" + certificate)
        tls.load_cert_chain(pair)


def _token(user: Mapping[str, str], path: Path) -> str | None:
    if user.get("tokenFile"):
        return (path.parent / user["tokenFile"]).read_text().strip()
    return user.get("token")
