"""Runs exec credential plugins (client.authentication.k8s.io, v1 and v1beta1).

A plugin may hang, prompt, print without end, leave child processes behind, or print a secret with an error. This
module limits all of these.
"""

import base64
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated

import msgspec

from milo_kube import external_command
from milo_kube.kubeconfig import ContextAccess

TIMEOUT_S = 60.0
MAX_OUTPUT = 1 << 20
MAX_STDERR = 500  # characters of a plugin's stderr that an error quotes
_EXTENSION = "client.authentication.k8s.io/exec"

_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|XDG_\w+|SSL_CERT_(?:FILE|DIR)"
    r"|(?i:HTTPS?_PROXY|NO_PROXY)|KUBERNETES_\w+|(?:AWS|AZURE|GOOGLE|CLOUDSDK|DATUM)_\w+"
)
"""The environment variables that plugins inherit. They contain the user, shell, locale and time zone, the locations of
programs, files, CAs, proxies and Kubernetes Services, and the logins of cloud tools."""

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


class ExecPluginError(Exception):
    """A plugin failed to provide a credential. The message contains nothing that looks like a secret."""


class ExecCommand(msgspec.Struct, frozen=True, kw_only=True):
    api_version: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    install_hint: str = ""
    cluster: Callable[[], Mapping[str, object]] | None = None
    """Returns the plugin's `spec.cluster`, if the kubeconfig sets provideClusterInfo."""

    def problem(self, what: str) -> ExecPluginError:
        hint = f" ({redacted(self.install_hint.encode())})" if self.install_hint else ""
        return ExecPluginError(f"exec plugin {self.argv[0]} {what}{hint}")


class ExecAnswer(msgspec.Struct, frozen=True):
    """The credential that a plugin printed: a token, a client certificate with its key, or both."""

    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None

    def __repr__(self) -> str:
        return f"ExecAnswer(expiration_timestamp={self.expiration_timestamp})"


class _CredentialStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of an answer; null is as absent."""

    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _ExecCredential(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    status: _CredentialStatus | None = None


_DECODER = msgspec.json.Decoder(_ExecCredential)


async def run(command: ExecCommand, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """Run the plugin, and return what it printed. Raises ExecPluginError."""
    environment = {**inherited(os.environ), **command.environment, "KUBERNETES_EXEC_INFO": _exec_info(command)}
    try:
        outcome = await external_command.run(command.argv, environment, timeout_s=timeout_s, output_limit=MAX_OUTPUT)
    except (OSError, ValueError) as error:  # ValueError: an argument with a NUL character
        reason = error.strerror if isinstance(error, OSError) else None
        raise command.problem(f"cannot be started: {reason or error}") from None
    match outcome.end:
        case "timeout":
            raise command.problem(f"did not finish within {timeout_s:g} s")
        case "flood":
            raise command.problem(f"printed more than {MAX_OUTPUT} bytes")
    if outcome.status != 0:
        end = f"exited with status {outcome.status}" if outcome.status > 0 else f"was killed (signal {-outcome.status})"
        raise command.problem(f"{end}: {redacted(outcome.errors) or 'it printed no error'}")
    return outcome.output


def read_answer(output: bytes, command: ExecCommand, now: float) -> ExecAnswer:
    """Parse the credential in a plugin's output. Raises ExecPluginError."""
    try:
        answer = _DECODER.decode(output)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise command.problem(f"did not print an ExecCredential: {error}") from None
    if answer.kind != "ExecCredential" or answer.api_version != command.api_version:
        printed = redacted(f"{answer.kind} {answer.api_version}".encode())
        raise command.problem(f"printed {printed} instead of ExecCredential {command.api_version}")
    given = answer.status or _CredentialStatus()
    status = ExecAnswer(
        given.token or "",
        given.client_certificate_data or "",
        given.client_key_data or "",
        given.expiration_timestamp,
    )
    if bool(status.client_certificate_data) != bool(status.client_key_data):
        raise command.problem("printed a client certificate without a key, or a key without a certificate")
    if not status.token and not status.client_certificate_data:
        raise command.problem("printed neither a token nor a client certificate")
    expires_at = status.expiration_timestamp
    if expires_at is not None and expires_at.timestamp() <= now:
        raise command.problem(f"printed a credential that expired at {expires_at.isoformat()}")
    return status


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the environment that a plugin receives, without the settings and secrets of this process."""
    return {name: value for name, value in environ.items() if _INHERITED.fullmatch(name)}


def cluster_info(access: ContextAccess, authorities: bytes | None) -> Mapping[str, object]:
    """Return `spec.cluster` of the ExecCredential that a plugin receives. `authorities`: PEM."""
    info: dict[str, object] = {"server": access.server}
    if access.tls_server_name:
        info["tls-server-name"] = access.tls_server_name
    if authorities is not None:
        info["certificate-authority-data"] = base64.b64encode(authorities).decode()
    if access.proxy_url:
        info["proxy-url"] = access.proxy_url
    for extension in access.extensions:
        if extension.get("name") == _EXTENSION:
            info["config"] = extension.get("extension")
    return info


def _exec_info(command: ExecCommand) -> str:
    spec: dict[str, object] = {"interactive": False}
    if command.cluster is not None:
        spec["cluster"] = command.cluster()
    return msgspec.json.encode({"apiVersion": command.api_version, "kind": "ExecCredential", "spec": spec}).decode()


def redacted(output: bytes) -> str:
    """Return the end of a plugin's output on one line, without what looks like a secret."""
    text = _TOKEN_LIKE.sub("***", output.decode(errors="replace"))
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= MAX_STDERR else "..." + text[-MAX_STDERR:]
