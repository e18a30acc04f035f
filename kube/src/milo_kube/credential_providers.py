"""Providers of this process's credentials at an API server: fixed values, files, and exec credential plugins."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from milo_kube import exec_plugin
from milo_kube.credential import ClientCertificate, Credential, CredentialError, Secret, token_of
from milo_kube.exec_plugin import TIMEOUT_S, ExecAnswer, ExecCommand, ExecPluginError
from milo_kube.file_content import FileContent

# Minimum time between two runs of a plugin, unless its credential expires sooner. Callers request a credential again
# after each rejection and failure, and each run starts a process and often calls an identity provider.
REPEAT_AFTER_S = 5.0


class CredentialProvider(Protocol):
    async def credential(self, *, refused: Credential | None = None) -> Credential:
        """Return the credential to use now. Raises CredentialError if there is none.

        `refused` is a credential that was rejected with 401. A provider that can obtain another credential does so; any
        other provider returns the same one again.
        """


class StaticCredential(msgspec.Struct, frozen=True):
    """A fixed credential, such as one written in the kubeconfig itself."""

    value: Credential

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        return self.value


class FileCredential(msgspec.Struct, frozen=True, kw_only=True):
    """A credential in files that another process renews, such as a projected token or a key pair from cert-manager.

    Each file is read again when it changes. While a file is missing or empty, for example during its replacement, the
    last good content is used. Parts that are not in files come from `fixed`.
    """

    fixed: Credential = msgspec.field(default_factory=Credential)
    token: FileContent | None = None
    chain: FileContent | None = None
    key: FileContent | None = None

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        reread = refused is not None
        token, certificate = self.fixed.token, self.fixed.certificate
        if self.token is not None:
            token = token_of(self.token.read(reread=reread).decode(errors="replace"), f"token file {self.token.path}")
        if self.chain is not None and self.key is not None:
            chain, key = self.chain.read(reread=reread), self.key.read(reread=reread)
            certificate = ClientCertificate(chain=chain, key=Secret(key.decode(errors="replace")))
        return Credential(token=token, certificate=certificate)


class _CachedCredential(msgspec.Struct, frozen=True):
    credential: Credential
    at: float
    expires_at: float | None

    def renew_at(self) -> float:
        """Return when to renew: a fifth of the lifetime before the expiry, at least 10 s and at most 5 min."""
        if self.expires_at is None:
            return float("inf")
        return self.expires_at - max(10.0, min(300.0, 0.2 * (self.expires_at - self.at)))


class ExecPlugin:
    """An exec plugin, which runs when a credential is needed; the result is cached until shortly before its expiry."""

    def __init__(
        self, command: ExecCommand, *, timeout_s: float = TIMEOUT_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._clock = clock
        self._issued: _CachedCredential | None = None
        self._ran_at = float("-inf")
        self._failure: str | None = None
        # Held while the plugin runs: concurrent callers wait and then find its result. A canceled caller cancels only
        # its own run.
        self._single_flight = asyncio.Lock()

    def runs_like(self, other: "ExecPlugin") -> bool:
        """Return whether both plugins run the same command with the same environment."""
        one, another = self._command, other._command
        return (one.argv, one.environment) == (another.argv, another.environment)

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        async with self._single_flight:
            now = self._clock()
            held = self._usable(now)
            if held is not None and held.credential != refused and now < held.renew_at():
                return held.credential
            if 0 <= now - self._ran_at < REPEAT_AFTER_S:
                if held is not None:
                    return held.credential
                if self._failure is not None:
                    raise CredentialError(self._failure)
            if held is not None and held.credential == refused:
                held = None
            return await self._renewed(held)

    async def _renewed(self, held: _CachedCredential | None) -> Credential:
        self._ran_at, self._failure = self._clock(), None
        try:
            output = await exec_plugin.run(self._command, timeout_s=self._timeout_s)
            now = self._clock()
            self._issued = _cached(exec_plugin.read_answer(output, self._command, now), self._command, now)
        except (ExecPluginError, CredentialError) as error:
            self._failure = str(error)
            if held is not None:
                return held.credential  # the renewal failed, but the old credential is still valid
            raise CredentialError(self._failure) from None
        return self._issued.credential

    def _usable(self, now: float) -> _CachedCredential | None:
        issued = self._issued
        if issued is None or (issued.expires_at is not None and now >= issued.expires_at):
            return None
        return issued


def _cached(answer: ExecAnswer, command: ExecCommand, now: float) -> _CachedCredential:
    certificate = None
    if answer.client_certificate_data:
        certificate = ClientCertificate(
            chain=answer.client_certificate_data.encode(), key=Secret(answer.client_key_data)
        )
    token = token_of(answer.token, f"the token of exec plugin {command.argv[0]}") if answer.token else None
    expires_at = answer.expiration_timestamp.timestamp() if answer.expiration_timestamp else None
    return _CachedCredential(Credential(token=token, certificate=certificate, expires_at=expires_at), now, expires_at)
