"""Credentials from exec credential plugins (client.authentication.k8s.io, v1 and v1beta1).

A plugin may hang, prompt, print without end, leave child processes behind, or print a secret with an error. This
module limits all of these.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated

import msgspec

from milo_discoveryd.credentials.authentication import external_command
from milo_discoveryd.credentials.credential import ClientCertificate, Credential, token_of
from milo_discoveryd.credentials.secret import Secret
from milo_discoveryd.daemon_errors import CredentialError

TIMEOUT_S = 60.0
MAX_OUTPUT = 1 << 20
MAX_STDERR = 500  # characters of a plugin's stderr in an error
# A rejected or failing credential is requested again at each attempt, and each run is a process and often a call to an
# identity provider.
REPEAT_AFTER_S = 5.0

_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|XDG_\w+|SSL_CERT_(?:FILE|DIR)"
    r"|(?i:HTTPS?_PROXY|NO_PROXY)|KUBERNETES_\w+|(?:AWS|AZURE|GOOGLE|CLOUDSDK|DATUM)_\w+"
)
"""The environment variables that plugins receive: locations of programs, files, CAs and proxies, and logins of cloud
tools."""

_TOKEN_LIKE = re.compile(
    r"""(?ix)
    eyJ[\w-]+(\.[\w-]+)*                                            # a JWT
    | (?<=bearer\s)\S+
    | (?<=://)[^/\s@]+(?=@)                                         # user:password@ of a URL
    | (?:(?<=token)|(?<=secret)|(?<=password)|(?<=key)|(?<=assertion)) ["']?\s*[=:]\s*["']?\S+
    | -----BEGIN[\s\S]+?(?:-----END[^-]*-----|\Z)
    | [A-Za-z0-9+/_=-]{32,}
    """
)


class ExecCommand(msgspec.Struct, frozen=True, kw_only=True):
    api_version: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    install_hint: str = ""
    cluster: Callable[[], Mapping[str, object]] | None = None
    """Returns the plugin's `spec.cluster`, if the kubeconfig sets provideClusterInfo."""


class _ExecStatus(msgspec.Struct, frozen=True, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _ExecCredential(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    status: _ExecStatus | None = None


_DECODER = msgspec.json.Decoder(_ExecCredential)


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
        """Return whether both run the same command with the same environment."""
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
            self._issued = read_answer(await self._run(), self._command, self._clock())
        except CredentialError as error:
            self._failure = str(error)
            if held is not None:
                return held.credential  # the renewal failed, and the old one is still valid: the next attempt is soon
            raise
        return self._issued.credential

    def _usable(self, now: float) -> _CachedCredential | None:
        issued = self._issued
        if issued is None or (issued.expires_at is not None and now >= issued.expires_at):
            return None
        return issued

    async def _run(self) -> bytes:
        command = self._command
        environment = {**inherited(os.environ), **command.environment, "KUBERNETES_EXEC_INFO": _exec_info(command)}
        try:
            outcome = await external_command.run(
                command.argv, environment, timeout_s=self._timeout_s, output_limit=MAX_OUTPUT
            )
        except OSError as error:
            raise CredentialError(self._problem(f"cannot be started: {error.strerror or error}")) from None
        match outcome.end:
            case "timeout":
                raise CredentialError(self._problem(f"did not finish within {self._timeout_s:g} s"))
            case "flood":
                raise CredentialError(self._problem(f"printed more than {MAX_OUTPUT} bytes"))
        if outcome.status != 0:
            raise CredentialError(self._problem(f"exited with status {outcome.status}: {redacted(outcome.errors)}"))
        return outcome.output

    def _problem(self, what: str) -> str:
        return _problem(self._command, what)


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the daemon's environment that a plugin receives: no settings or secrets of other programs."""
    return {name: value for name, value in environ.items() if _INHERITED.fullmatch(name)}


def _exec_info(command: ExecCommand) -> str:
    spec: dict[str, object] = {"interactive": False}
    if command.cluster is not None:
        spec["cluster"] = command.cluster()
    return msgspec.json.encode({"apiVersion": command.api_version, "kind": "ExecCredential", "spec": spec}).decode()


def read_answer(output: bytes, command: ExecCommand, now: float) -> _CachedCredential:
    def wrong(what: str) -> CredentialError:
        return CredentialError(_problem(command, what))

    try:
        answer = _DECODER.decode(output)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise wrong(f"did not print an ExecCredential: {error}") from None
    if answer.kind != "ExecCredential" or answer.api_version != command.api_version:
        raise wrong(f"printed {answer.kind} {answer.api_version} instead of ExecCredential {command.api_version}")
    status = answer.status or _ExecStatus()
    if bool(status.client_certificate_data) != bool(status.client_key_data):
        raise wrong("printed a client certificate without a key, or a key without a certificate")
    if not status.token and not status.client_certificate_data:
        raise wrong("printed neither a token nor a client certificate")
    expires_at = status.expiration_timestamp.timestamp() if status.expiration_timestamp else None
    if expires_at is not None and expires_at <= now:
        raise wrong(f"printed a credential that expired at {status.expiration_timestamp:%Y-%m-%dT%H:%M:%SZ}")
    certificate = None
    if status.client_certificate_data:
        certificate = ClientCertificate(
            chain=status.client_certificate_data.encode(), key=Secret(status.client_key_data)
        )
    token = token_of(status.token, f"the token of exec plugin {command.argv[0]}") if status.token else None
    return _CachedCredential(Credential(token=token, certificate=certificate, expires_at=expires_at), now, expires_at)


def _problem(command: ExecCommand, what: str) -> str:
    hint = f" ({redacted(command.install_hint.encode())})" if command.install_hint else ""
    return f"exec plugin {command.argv[0]} {what}{hint}"


def redacted(output: bytes) -> str:
    """Return the end of a plugin's output on one line, without what looks like a secret."""
    text = _TOKEN_LIKE.sub("***", output.decode(errors="replace"))
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= MAX_STDERR else "..." + text[-MAX_STDERR:]
