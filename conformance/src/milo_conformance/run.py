"""Runs one case: a scripted daemon, a subscriber, and a comparison of reported and expected events."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

import grpc

from milo_conformance.daemon import LIMIT_S, ScriptedDaemon, ScriptedStream, engaged
from milo_conformance.failure import CaseFailed
from milo_conformance.subscriber import ClientProgram, Launch, SubscriberLine

HEARTBEAT_S = 60
"""So long that no client misses three heartbeats because the machine is busy."""
CASE_LIMIT_S = 180.0
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
SUBSCRIBER = "conformance/1"


class Profile(Enum):
    """A set of features that a client can claim. All clients have to pass `core`."""

    CORE = "core"
    KUBECONFIGS = "kubeconfigs"
    RELEASE = "release"
    SHARDED = "sharded"
    IDENTITY = "identity"
    FLEET = "fleet"


class Feature(Enum):
    """A feature that a client may lack within a profile that it claims."""

    PENDING_SOURCES = "pending-sources"
    CREDENTIALS = "credentials"
    SERVER_UID = "server-uid"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Case:
    """A script for the daemon, and the rule that it tests."""

    profile: Profile
    name: str
    title: str
    why: str
    demands: str
    """A quotation from the proto file."""
    script: Callable[[Run], Awaitable[None]]
    needs: Feature | None = None
    is_large: bool = False
    """The case keeps the kit busy for seconds, and would delay other cases."""


CASES: list[Case] = []


def case(
    profile: Profile,
    title: str,
    *,
    why: str,
    demands: str,
    needs: Feature | None = None,
    name: str | None = None,
    is_large: bool = False,
) -> Callable[[Callable[[Run], Awaitable[None]]], Callable[[Run], Awaitable[None]]]:
    """Register a case under `name`, by default the name of its function with hyphens."""

    def register(script: Callable[[Run], Awaitable[None]]) -> Callable[[Run], Awaitable[None]]:
        own = name or getattr(script, "__name__", "").replace("_", "-")
        CASES.append(Case(profile, own, title, why, demands, script, needs, is_large))
        return script

    return register


@dataclass(slots=True)
class Run:
    """One run of a case: the daemon, the subscriber and its reports."""

    launch: Launch
    profile: Profile
    started_at: float = field(default_factory=time.monotonic)
    exchange: list[str] = field(default_factory=list)
    daemon: ScriptedDaemon = field(init=False)
    _subscriber: ClientProgram | None = None
    _environment: dict[str, str] = field(default_factory=dict)
    _reported: list[SubscriberLine] = field(default_factory=list)
    _barriers: int = 0

    def trace(self, line: str) -> None:
        self.exchange.append(f"{time.monotonic() - self.started_at:7.3f} {line}")

    async def start(self, environment: Mapping[str, str] = NO_SETTINGS, *, listening: bool = True) -> None:
        """Start the subscriber with these settings and the daemon's address."""
        await self.daemon.serve()
        if listening:
            await self.daemon.relay.listen()
        self._environment = {
            "MILO_DISCOVERY_ADDRESS": self.daemon.relay.address,
            "CONFORMANCE_HEARTBEAT_S": str(HEARTBEAT_S),
            **environment,
        }
        self._subscriber = await self.launch(self._environment, self.trace)

    async def close(self) -> None:
        if self._subscriber is not None:
            await self._subscriber.close()

    @property
    def subscriber(self) -> ClientProgram:
        assert self._subscriber is not None, "the case has not started its subscriber"
        return self._subscriber

    async def stream(self, *, resuming: str | None = None, limit_s: float | None = None) -> ScriptedStream:
        """Return the next stream that the subscriber opens, starting the subscriber before the first one.

        `resuming` is the revision that it has to resume from: empty to start over.
        """
        if self._subscriber is None:
            await self.start()
        stream = await self.daemon.wait_for_stream(limit_s)
        request, wanted = stream.request, self._environment
        if resuming is not None and request.resume_revision != resuming:
            raise CaseFailed(
                f"the stream was opened with resume_revision={request.resume_revision!r}, not {resuming!r}"
            )
        selector = wanted.get("CONFORMANCE_LABEL_SELECTOR", "")
        if request.filter.label_selector != selector:
            raise CaseFailed(
                f"the stream was opened with the label selector {request.filter.label_selector!r}, not {selector!r}"
            )
        heartbeat_s = wanted["CONFORMANCE_HEARTBEAT_S"]
        if request.heartbeat_interval.ToTimedelta().total_seconds() != float(heartbeat_s):
            raise CaseFailed(
                f"the stream was opened with a heartbeat interval of "
                f"{request.heartbeat_interval.ToTimedelta().total_seconds():g} s, not {heartbeat_s} s"
            )
        if request.include_kubeconfigs != ("CONFORMANCE_KUBECONFIGS" in wanted):
            raise CaseFailed(
                f"the stream was opened with include_kubeconfigs={request.include_kubeconfigs}, "
                f"not {not request.include_kubeconfigs}"
            )
        name = wanted.get("CONFORMANCE_SUBSCRIBER", "")
        if name and (request.subscriber, request.confirm_releases) != (name, True):
            raise CaseFailed(
                f"the stream was opened with subscriber={request.subscriber!r} and "
                f"confirm_releases={request.confirm_releases}, not {name!r} and True"
            )
        return stream

    @property
    def beginning(self) -> str:
        """The event that reports an engaged cluster: BEGIN from a subscriber that runs handlers, otherwise ENGAGED."""
        return "BEGIN" if "CONFORMANCE_FLEET" in self._environment else "ENGAGED"

    async def synced(self, *names: str) -> ScriptedStream:
        """Return a stream that has delivered these clusters in one batch, once the subscriber has reported them."""
        stream = await self.stream(resuming="")
        await stream.snapshot(*map(engaged, names))
        await self.reported(*[f"{self.beginning} {name}" for name in names])
        return stream

    async def resumed(self, stream: ScriptedStream) -> ScriptedStream:
        """Break a stream; return the stream that resumes it."""
        stream.end(grpc.StatusCode.UNAVAILABLE)
        return await self.stream(resuming=stream.revision)

    async def no_stream(self, seconds: float, why: str) -> None:
        """Fail if a stream is opened within this time."""
        try:
            stream = await asyncio.wait_for(self.daemon.streams.get(), seconds)
        except TimeoutError:
            return
        raise CaseFailed(f"stream {stream.number} was opened, {why}")

    async def refuses_server(self, why: str) -> None:
        """Wait until the subscriber has closed two connections, and fail if it opens a stream first."""

        async def closed() -> None:
            for _ in range(2):
                await self.daemon.relay.closed.get()

        opens, closes = asyncio.create_task(self.daemon.streams.get()), asyncio.create_task(closed())
        done, pending = await asyncio.wait({opens, closes}, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if opens in done:
            raise CaseFailed(f"stream {opens.result().number} was opened, {why}")
        if not done:
            raise CaseFailed(f"the subscriber did not close two connections within {LIMIT_S:g} s")

    async def refuses_settings(self, environment: Mapping[str, str], why: str, *, is_tcp: bool = False) -> None:
        """Start the subscriber without these settings, then with them; fail if it opens a stream with them."""
        await self.no_stream(await self.start_again(environment, is_tcp=is_tcp), why)

    async def restart(self) -> None:
        """End the subscriber, and start it again with the same settings."""
        await self.close()
        self._subscriber = await self.launch(self._environment, self.trace)

    async def start_again(
        self, environment: Mapping[str, str] = NO_SETTINGS, *, listening: bool = True, is_tcp: bool = False
    ) -> float:
        """Start the subscriber and, once it has opened a stream, start it again with these settings.

        Return the number of seconds within which it is expected to open its next stream, estimated from the first
        start.
        """
        started_at = time.monotonic()
        await self.stream()
        took_s = time.monotonic() - started_at
        await self.close()
        await self.daemon.relay.stop_listening()
        self.daemon.relay.is_tcp = is_tcp
        await self.start(environment, listening=listening)
        return 2.5 + 2 * took_s

    async def reported(
        self, *expected: str, limit_s: float | None = None, ignoring: tuple[str, ...] = ()
    ) -> list[SubscriberLine]:
        """Wait for as many lines as `expected` has, and compare them by cluster, without the fields in `ignoring`."""
        deadline = time.monotonic() + (LIMIT_S if limit_s is None else limit_s)
        while len(self._reported) < len(expected):
            try:
                line = await asyncio.wait_for(self.subscriber.lines.get(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                break
            if line is None:
                compare(expected, self._reported, self.subscriber.stderr_tail())
                raise CaseFailed("the subscriber exited")
            self._reported.append(line)
        found, self._reported = self._reported, []
        compare(expected, [reported.without(ignoring) for reported in found])
        return found

    async def nothing_else(self, stream: ScriptedStream, *, limit_s: float | None = None) -> None:
        """Fail if the subscriber has reported anything else: send a further cluster, which it must report next."""
        self._barriers += 1
        name = f"barrier-{self._barriers}"
        await stream.send(engaged(name))
        await self.reported(f"{self.beginning} {name}", limit_s=limit_s)

    async def reported_only(self, stream: ScriptedStream, *expected: str) -> None:
        """Wait until the subscriber has reported these lines, and nothing else."""
        await self.reported(*expected)
        await self.nothing_else(stream)

    async def fatal(self, code: str) -> None:
        """Wait until the subscriber reports, as its next event, an error that a retry cannot fix."""
        await self.reported(f"FATAL code={code}")

    async def answer(self, command: str, *expected: str) -> SubscriberLine:
        """Send a command, and return its answer."""
        self.trace(f"command: {command}")
        await self.subscriber.command(command)
        return (await self.reported(*expected))[0]

    async def ended(self, limit_s: float | None = None) -> None:
        """Wait until the subscriber has exited."""
        limit_s = LIMIT_S if limit_s is None else limit_s
        try:
            line = await asyncio.wait_for(self.subscriber.lines.get(), limit_s)
        except TimeoutError:
            raise CaseFailed(f"the subscriber did not exit within {limit_s:g} s") from None
        if line is not None:
            raise CaseFailed(f"the subscriber should have exited, but reported: {line}")

    async def command(self, line: str) -> None:
        """Send a command without waiting for an answer."""
        self.trace(f"command: {line}")
        await self.subscriber.command(line)


def compare(expected: tuple[str, ...], found: list[SubscriberLine], note: str = "") -> None:
    """Fail unless the subscriber has reported what is expected for each cluster."""
    wanted, reported = by_cluster(expected), by_cluster([str(line) for line in found])
    if wanted != reported:
        different = sorted(name for name in {*wanted, *reported} if wanted.get(name) != reported.get(name))[:5]
        lines = [
            f"  expected: {', '.join(wanted.get(name, [])) or 'nothing'}; "
            f"reported: {', '.join(reported.get(name, [])) or 'nothing'}"
            for name in different
        ]
        raise CaseFailed(
            "\n".join(["the subscriber did not report the expected events:", *lines, *([note] if note else [])])
        )


def by_cluster(lines: list[str] | tuple[str, ...]) -> dict[str, list[str]]:
    """Group lines by cluster: there is no order between clusters."""
    found: dict[str, list[str]] = {}
    for line in lines:
        word = re.match(r"\S+(?: (\S+))?", line)
        name = (word[1] or "") if word else ""
        found.setdefault("" if "=" in name else name, []).append(line)
    return found


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """The result of a case."""

    case: Case
    failure: str | None
    skipped: str | None
    seconds: float
    exchange: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.failure is None and self.skipped is None


async def run_case(one: Case, launch: Launch, unsupported: frozenset[Feature] = frozenset()) -> CaseOutcome:
    """Run a case."""
    if one.needs is not None and one.needs in unsupported:
        return CaseOutcome(one, None, f"needs the feature {one.needs.value}", 0.0, ())
    run = Run(launch, one.profile)
    failure: str | None = None
    try:
        async with asyncio.timeout(CASE_LIMIT_S), ScriptedDaemon(run.trace) as run.daemon:  # type: ignore[abstract]  # other calls are UNIMPLEMENTED
            try:
                await one.script(run)
            finally:
                await run.close()
    except CaseFailed as error:
        failure = str(error)
    except TimeoutError:
        failure = f"the case did not finish within {CASE_LIMIT_S:g} s"
    return CaseOutcome(one, failure, None, time.monotonic() - run.started_at, tuple(run.exchange))
