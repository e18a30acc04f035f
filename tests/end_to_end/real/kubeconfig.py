"""Kubeconfigs and token files for users of the servers."""

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path

import yaml


def new_token() -> str:
    return secrets.token_urlsafe(24)


def write_tokens(path: Path, users: Mapping[str, tuple[str, ...]]) -> Path:
    """Write a static token file with each token's user and groups."""
    lines = [f'{token},{user},{user},"{",".join(groups)}"\n' for token, (user, *groups) in users.items()]
    return _write(path, "".join(lines))


def with_certificate(certificate: Path, key: Path) -> dict[str, str]:
    """Return a kubeconfig's user with a client certificate."""
    return {
        "client-certificate-data": _base64(certificate.read_bytes()),
        "client-key-data": _base64(key.read_bytes()),
    }


def write(path: Path, *, server: str, authority: bytes, user: Mapping[str, str]) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "real", "cluster": {"server": server, "certificate-authority-data": _base64(authority)}},
        ],
        "users": [{"name": "real", "user": dict(user)}],
        "contexts": [{"name": "real", "context": {"cluster": "real", "user": "real"}}],
        "current-context": "real",
    }
    return _write(path, yaml.safe_dump(content, sort_keys=False))


def _write(path: Path, content: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(content)
    return path


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
