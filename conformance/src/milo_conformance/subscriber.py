"""The subscriber under test: what it reports, as lines of JSON, and the commands that it reads."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from milo_conformance.failure import CannotRun

Trace = Any


@dataclass(slots=True)
class SubscriberLine:
    """One line that the subscriber under test printed: an event, or the answer to a command."""

    event: str
    """ENGAGED, UPDATED, DISENGAGED, KUBECONFIG, FATAL, or the answer to a command: ISSUED, CREDENTIAL, FAILED.

    FATAL is an error that a retry cannot fix. In the profile `fleet` also BEGIN, SIGNALED and END of a handler,
    and ANSWERED.
    """
    fields: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)

    @property
    def cluster(self) -> str:
        return str(self.fields.get("cluster", ""))

    def without(self, fields: tuple[str, ...]) -> SubscriberLine:
        return SubscriberLine(
            self.event, {key: value for key, value in self.fields.items() if key not in fields}, self.at
        )

    def __str__(self) -> str:
        """Return the line in the notation of the cases, without fields that are unset or have the kit's default."""
        name, words = self.cluster, [self.event]
        words += [name] if name else []
        uid = self.fields.get("uid") or ""
        words += [f"uid={uid}"] if uid and uid != f"uid-{name}" else []
        endpoint = self.fields.get("endpoint") or ""
        words += [f"endpoint={endpoint}"] if endpoint and endpoint != f"https://milo.test/{name}" else []
        words += ["suspended"] if self.fields.get("suspended") else []
        for key in ("draining", "reason", "code"):
            value = self.fields.get(key) or ""
            words += [f"{key}={value}"] if value not in {"", "UNSPECIFIED"} else []
        token = token_of(self.fields.get("kubeconfig") or "")
        words += [f"token={token}"] if token else []
        return " ".join(words)


def token_of(kubeconfig: str) -> str:
    """Return the token in a kubeconfig; "other" if it has none, and empty if there is no kubeconfig."""
    if not kubeconfig:
        return ""
    try:
        return str(json.loads(kubeconfig)["users"][0]["user"].get("token") or "other")
    except (ValueError, LookupError, AttributeError, TypeError):
        return "other"


class ClientProgram(Protocol):
    """A running subscriber."""

    lines: asyncio.Queue[SubscriberLine | None]
    """The lines that the subscriber has reported, in order; None once it has exited."""

    async def command(self, line: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    async def close(self) -> None: ...
    def stderr_tail(self) -> str:
        """Return the subscriber's last lines on standard error."""
        ...


class Launch(Protocol):
    """A function that starts a subscriber with these environment variables."""

    async def __call__(self, environment: Mapping[str, str], trace: Trace) -> ClientProgram: ...


class SubscriberProcess:
    """A subscriber that runs as a child process."""

    def __init__(self, process: asyncio.subprocess.Process, trace: Trace) -> None:
        self.lines: asyncio.Queue[SubscriberLine | None] = asyncio.Queue()
        self._process = process
        self._trace = trace
        self._stderr: list[str] = []
        self._readers = [
            asyncio.create_task(self._read_lines(), name="stdout of the subscriber"),
            asyncio.create_task(self._read_errors(), name="stderr of the subscriber"),
        ]

    async def command(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        with suppress(ConnectionError):
            await self._process.stdin.drain()

    def pause(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    async def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)

    def stderr_tail(self) -> str:
        return "\n".join(["the subscriber exited unexpectedly; its last lines on stderr:", *self._stderr[-20:]])

    async def _read_lines(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.lines.put_nowait(parse(line.decode(errors="replace"), self._trace))
        self.lines.put_nowait(None)

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._stderr.append(line.decode(errors="replace").rstrip())
            self._trace(f"subscriber (stderr): {self._stderr[-1]}")


def parse(line: str, trace: Trace) -> SubscriberLine:
    """Parse a line. Invalid JSON becomes an unknown event, which no case expects."""
    try:
        fields = json.loads(line)
        parsed = SubscriberLine(str(fields.pop("event")), fields)
    except (ValueError, KeyError, AttributeError):
        parsed = SubscriberLine(f"a line that is not a JSON object with an event: {line.strip()[:200]!r}")
    trace(f"reported: {parsed}")
    return parsed


class Program:
    """The command that runs as the subscriber."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def __call__(self, environment: Mapping[str, str], trace: Trace) -> ClientProgram:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MILO_DISCOVERY", "CONFORMANCE_")) and name.lower() not in PROXY_VARIABLES
        }
        # Nothing listens on this proxy's address, so a client that uses a proxy for the daemon fails.
        inherited |= dict.fromkeys(PROXY_VARIABLES, "http://127.0.0.1:9") | {"no_proxy": ""}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=inherited | dict(environment),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=16 << 20,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotRun(f"cannot start {self._command[0]!r}: {error.strerror}") from error
        return SubscriberProcess(process, trace)


PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "no_proxy")
