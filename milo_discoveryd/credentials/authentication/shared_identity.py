"""Decides whether two credential providers stand for one user of an API server."""

from milo_discoveryd.credentials.authentication.credential_provider import (
    CredentialProvider,
    FileCredential,
    StaticCredential,
)
from milo_discoveryd.credentials.authentication.exec_plugin import ExecPlugin
from milo_discoveryd.credentials.authentication.kubeconfig import ReloadedCredential
from milo_discoveryd.credentials.credential import Credential, token_of
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.daemon_errors import CredentialError


def share_identity(one: CredentialProvider, other: CredentialProvider) -> bool:
    """Return whether both have the same token or certificate, read the same file, or run the same plugin."""
    first, second = _current(one), _current(other)
    if isinstance(first, ExecPlugin) and isinstance(second, ExecPlugin):
        return first.runs_like(second)
    if (file := _file(first)) is not None and (its_file := _file(second)) is not None:
        return file.path.resolve() == its_file.path.resolve() or _is_same(_secret(first), _secret(second))
    return _is_same(_secret(first), _secret(second))


def _current(provider: CredentialProvider) -> CredentialProvider:
    return provider.current if isinstance(provider, ReloadedCredential) else provider


def _file(provider: CredentialProvider) -> FileContent | None:
    return (provider.token or provider.chain) if isinstance(provider, FileCredential) else None


def _secret(provider: CredentialProvider) -> object:
    """Return what identifies the user, as far as it is known without running a plugin."""
    match provider:
        case StaticCredential(value=Credential(token=token, certificate=certificate)):
            return token or (certificate and certificate.chain)
        case FileCredential():
            try:
                if provider.token is not None:
                    return token_of(provider.token.read().decode(errors="replace"), "a token")
                return provider.fixed.token or (provider.chain and provider.chain.read())
            except CredentialError:
                return None
    return None


def _is_same(one: object, other: object) -> bool:
    return one is not None and one == other
