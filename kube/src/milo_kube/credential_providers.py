"""Providers of this process's credentials at an API server.

Credentials that can change are renewed by a task: from files, by an exec credential plugin, or by what else is their
origin. Requests use what is held, and wait only without a valid credential, or after a server refused it.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import ClassVar, Protocol

import msgspec

from milo_kube import exec_plugin
from milo_kube.credential import ClientCertificate, Credential, CredentialError, Secret, token_of
from milo_kube.credential_renewal import CredentialRenewal
from milo_kube.exec_plugin import TIMEOUT_S, ExecAnswer, ExecCommand, ExecPluginError
from milo_kube.file_content import FileContent
from milo_kube.moment import Moment
from milo_kube.tls_identity import check_pair

REPEAT_AFTER_S = 5.0
"""Minimum time between two runs of a plugin: each starts a process, and often calls an identity provider."""
LOOK_EVERY_S = 1.0
"""How often files are compared with what was read of them."""
CHECK_EVERY_S = 5.0
"""The maximum delay until a step of the wall clock is noticed."""


class CredentialProvider(Protocol):
    async def credential(self, *, within_s: float, refused: Credential | None = None) -> Credential:
        """Return the credential to use now. Raises CredentialError if there is none `within_s`.

        `refused` is a credential that was rejected with 401. A provider that can obtain another credential does so; any
        other provider returns the same one again.
        """

    def held(self) -> Credential:
        """Return the newest credential, which may have expired; an anonymous one if there is none yet."""

    async def aclose(self) -> None:
        """End the renewal."""


class CredentialOrigin(Protocol):
    """Where a credential comes from."""

    @property
    def gap_s(self) -> float:
        """The minimum time between the begin of two attempts to obtain a credential."""

    @property
    def is_watched(self) -> bool:
        """Whether `has_changed` can return true."""

    @property
    def problem(self) -> str:
        """Why the credential that was obtained is not what is configured; empty if it is."""

    def has_changed(self) -> bool:
        """Return whether another credential can be obtained since the last attempt."""

    async def obtain(self, *, refused: Credential | None, is_due: bool) -> Credential:
        """Return a credential, with its expiry if that is known. Raises CredentialError.

        `refused` is a credential that a server refused. Unless `is_due`, the one that was obtained last is still good.
        """


class StaticCredential(msgspec.Struct, frozen=True):
    """A fixed credential."""

    value: Credential

    async def credential(self, *, within_s: float, refused: Credential | None = None) -> Credential:
        return self.value

    def held(self) -> Credential:
        return self.value

    async def aclose(self) -> None:
        pass


class RenewedCredential:
    """A credential that a task renews before its expiry, and when its origin changes.

    The task begins with the first request.
    """

    def __init__(
        self,
        origin: CredentialOrigin,
        *,
        note: Callable[[str], None] = lambda _: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`note` is called when the problem of the renewal changes, with an empty text when it is over."""
        self.origin = origin
        self._note = note
        self._wall = wall
        self._renewal = CredentialRenewal(lambda: origin.gap_s)
        self._refused: Credential | None = None
        """What a server refused since the last attempt began."""
        self._problem = ""
        self._wanted = asyncio.Event()
        self._ended = asyncio.Event()
        """Set at the end of the attempt that is in progress or next."""
        self._task: asyncio.Task[None] | None = None

    def held(self) -> Credential:
        held = self._renewal.held
        return Credential() if held is None else held.credential

    async def credential(self, *, within_s: float, refused: Credential | None = None) -> Credential:
        now = self._now()
        held = self._renewal.valid(now)
        if held is not None and held != refused:
            return held
        if self._task is None:
            self._task = asyncio.create_task(self._renew(), name=f"renew the credential of {self.origin}")
        if self._renewal.want(now):
            self._refused = refused or self._refused
            self._wanted.set()
            await self._attempt_ended(within_s)
            held = self._renewal.valid(self._now())
            failure = self._renewal.failure
        else:
            failure = None if held is not None else self._renewal.failure
        if failure is not None and (held is None or held == refused):
            raise CredentialError(str(failure))
        if held is None:
            raise CredentialError(f"{self.origin} returned a credential that has expired")
        return held

    async def aclose(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _attempt_ended(self, within_s: float) -> None:
        ended, began_at = self._ended, self._now().steady
        try:
            async with asyncio.timeout(within_s):
                await ended.wait()
        except TimeoutError:
            waited_s = self._now().steady - began_at
            before = f"; the attempt before failed: {failure}" if (failure := self._renewal.failure) else ""
            raise CredentialError(f"{self.origin} has not answered for {waited_s:.1f} s{before}") from None

    async def _renew(self) -> None:
        while True:
            now = self._now()
            wait_s = self._renewal.attempts_in(now)
            if wait_s <= 0:
                await self._attempt(now)
                continue
            self._wanted.clear()
            limit_s = LOOK_EVERY_S if self.origin.is_watched else inf if wait_s == inf else CHECK_EVERY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait_s == limit_s == inf else min(wait_s, limit_s)):
                    await self._wanted.wait()
            # After a wait only: an origin that stays changed, because its attempts fail, is not tried without a pause.
            if self.origin.is_watched and self._has_changed():
                self._renewal.want(self._now())

    def _has_changed(self) -> bool:
        try:
            return self.origin.has_changed()
        except Exception:  # noqa: BLE001 - the top of the task; the attempt reports the problem
            return True

    async def _attempt(self, now: Moment) -> None:
        is_due = self._renewal.is_due(now) or self._refused is not None
        refused, self._refused = self._refused, None
        self._renewal.begin(now)
        try:
            credential = await self.origin.obtain(refused=refused, is_due=is_due)
        except CredentialError as error:
            self._renewal.failed(error if str(error) else _unnamed(error, self.origin), self._now())
        except Exception as error:  # noqa: BLE001 - the top of the task: a defect must not end the renewal
            self._renewal.failed(_unnamed(error, self.origin), self._now())
        else:
            self._renewal.succeeded(credential, self._now())
        ended, self._ended = self._ended, asyncio.Event()
        ended.set()
        problem = str(self._renewal.failure or self.origin.problem)
        if problem != self._problem:
            self._problem = problem
            self._note(problem)

    def _now(self) -> Moment:
        return Moment(self._wall(), time.monotonic())


def _unnamed(error: Exception, origin: CredentialOrigin) -> CredentialError:
    return CredentialError(f"{origin} failed: {str(error) or type(error).__name__}")


class FileOrigin(msgspec.Struct, kw_only=True):
    """A credential in files that another process renews, such as a projected token or a key pair from cert-manager.

    While a file is missing or empty, for example during its replacement, its last good content is used. Parts that are
    not in files come from `fixed`.
    """

    fixed: Credential = msgspec.field(default_factory=Credential)
    token: FileContent | None = None
    chain: FileContent | None = None
    key: FileContent | None = None
    tried: tuple[bytes, ...] = ()
    """The content of the files at the last attempt."""

    gap_s: ClassVar[float] = 0.0
    problem: ClassVar[str] = ""

    def __str__(self) -> str:
        return ", ".join(str(file.path) for file in self._files) or "the credential"

    @property
    def is_watched(self) -> bool:
        return bool(self._files)

    def has_changed(self) -> bool:
        try:
            return self._read(reread=False) != self.tried
        except CredentialError:
            return False  # nothing was ever read

    async def obtain(self, *, refused: Credential | None, is_due: bool) -> Credential:
        self.tried = self._read(reread=refused is not None)
        token, certificate = self.fixed.token, self.fixed.certificate
        if self.token is not None:
            token = token_of(self.token.read().decode(errors="replace"), f"token file {self.token.path}")
        if self.chain is not None and self.key is not None:
            *_, chain, key = self.tried
            certificate = ClientCertificate(chain=chain, key=Secret(key.decode(errors="replace")))
        if certificate is not None:
            check_pair(certificate)  # one file may have been replaced, and the other not yet
        return Credential(token=token, certificate=certificate)

    def _read(self, *, reread: bool) -> tuple[bytes, ...]:
        return tuple(file.read(reread=reread) for file in self._files)

    @property
    def _files(self) -> tuple[FileContent, ...]:
        return tuple(file for file in (self.token, self.chain, self.key) if file is not None)


class ExecOrigin(msgspec.Struct, frozen=True):
    """A credential that an exec plugin prints."""

    command: ExecCommand
    timeout_s: float = TIMEOUT_S

    is_watched: ClassVar[bool] = False
    problem: ClassVar[str] = ""

    def __str__(self) -> str:
        return f"exec plugin {self.command.argv[0]}"

    @property
    def gap_s(self) -> float:
        return REPEAT_AFTER_S

    def has_changed(self) -> bool:
        return False

    async def obtain(self, *, refused: Credential | None = None, is_due: bool = True) -> Credential:
        try:
            output = await exec_plugin.run(self.command, timeout_s=self.timeout_s)
            answer = exec_plugin.read_answer(output, self.command, time.time())
        except ExecPluginError as error:
            raise CredentialError(str(error)) from None
        return _printed(answer, self.command)

    def runs_like(self, other: "ExecOrigin") -> bool:
        """Return whether both plugins run the same command with the same environment."""
        one, another = self.command, other.command
        return (one.argv, one.environment) == (another.argv, another.environment)


def _printed(answer: ExecAnswer, command: ExecCommand) -> Credential:
    certificate = None
    if answer.client_certificate_data:
        certificate = ClientCertificate(
            chain=answer.client_certificate_data.encode(), key=Secret(answer.client_key_data)
        )
        check_pair(certificate)
    token = token_of(answer.token, f"the token of exec plugin {command.argv[0]}") if answer.token else None
    expires_at = answer.expiration_timestamp.timestamp() if answer.expiration_timestamp else None
    return Credential(token=token, certificate=certificate, expires_at=expires_at)
