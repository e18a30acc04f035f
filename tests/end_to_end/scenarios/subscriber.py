"""A subscriber that uses the client library as an operator does, and records events."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from milo_discovery import Connected, Disconnected, DiscoveryClient, DiscoveryError, Event, EventType, Synced
from tests.end_to_end.scenarios import matching
from tests.end_to_end.scenarios.matching import (
    Awaiting,
    Contradicted,
    Fulfilled,
    UidsOf,
    Verdict,
    tell_all,
    transitions,
)
from tests.end_to_end.scenarios.steps import Expected, Subscribe
from tests.support.eventually import eventually

PATIENCE_S = 45.0
"""The limit for expected events; between two attempts to connect to its source the daemon may wait for half a minute.
"""
QUIET_S = 0.5
"""How long a step waits for events that must not come."""


class UnexpectedError(Exception):
    """The events differ from the scenario."""


class _Stream:
    """The stream of one daemon to a subscriber."""

    def __init__(self, address: str, asked: Subscribe, events: list[Event], arrived: asyncio.Event) -> None:
        """Append received events to `events`, and set `arrived` each time."""
        self._client = DiscoveryClient(address)
        self.watch = self._client.watch(
            label_selector=asked.label_selector, names=asked.names, organizations=asked.organizations
        )
        self.is_connected = False
        self.is_current = False
        """Whether the stream has received the state that the daemon had at the time of the connection."""
        self._events, self._arrived = events, arrived
        self.recording = asyncio.create_task(self._record(), name=f"subscriber {asked.who}")
        self.recording.add_done_callback(lambda _: arrived.set())

    async def _record(self) -> None:
        async for item in self.watch.feed():
            match item:
                case Event():
                    self._events.append(item)
                case Connected():
                    self.is_connected, self.is_current = True, item.resumed
                case Synced():
                    self.is_current = True
                case Disconnected():
                    self.is_connected = self.is_current = False
            self._arrived.set()

    async def reconnect(self) -> None:
        self.is_connected = self.is_current = False
        await self.watch.reconnect()

    async def close(self) -> None:
        await self._client.close()
        await asyncio.wait((self.recording,))


class Subscriber:
    def __init__(self, addresses: Iterable[str], asked: Subscribe, *, patience_s: float = PATIENCE_S) -> None:
        """Subscribe to a daemon, or to each member of a group, whose events are recorded in the order of arrival."""
        self.name = asked.who
        self._patience_s = patience_s
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._expected = 0
        """The number of events that `expect` steps have consumed so far."""
        self._examined = 0
        """The number of events that any expectation has seen."""
        self._streams = [_Stream(address, asked, self._events, self._arrived) for address in addresses]

    async def close(self) -> None:
        """Close the streams; recorded events are kept."""
        for stream in self._streams:
            await stream.close()

    # --- connection ---

    async def connected(self) -> None:
        await self._comes(
            lambda: all(stream.is_connected for stream in self._streams),
            lambda: f"{self.name} was not connected to the daemon",
        )

    async def current(self) -> None:
        await self._comes(
            lambda: all(stream.is_current for stream in self._streams), lambda: f"{self.name} received no complete view"
        )

    async def disconnected(self) -> None:
        await self._comes(
            lambda: not any(stream.is_connected for stream in self._streams),
            lambda: f"{self.name} did not notice that the daemon exited",
        )

    async def reconnect(self) -> None:
        for stream in self._streams:
            await stream.reconnect()

    async def expect_source(self, state: str) -> None:
        def last() -> set[str]:
            return {source.state.name if (source := stream.watch.source) else "nothing" for stream in self._streams}

        try:
            # A new connection causes no event.
            await eventually(lambda: last() == {state}, within_s=self._patience_s)
        except TimeoutError:
            states = ", ".join(sorted(last()))
            raise UnexpectedError(
                f"within {self._patience_s:g} s {self.name} did not receive {state}; its last state is {states}"
            ) from None

    # --- events ---

    async def expect(self, expected: Sequence[Expected], uids_of: UidsOf) -> None:
        def seen() -> list[Event]:
            return transitions(self._events[self._expected :])

        def judge() -> Verdict:
            verdict = matching.compare(expected, seen(), uids_of)
            if isinstance(verdict, Contradicted):
                raise UnexpectedError(f"{verdict.why}: {self._instead(expected, seen())}")
            return verdict

        await self._comes(
            lambda: isinstance(judge(), Fulfilled),
            lambda: f"{self.name} did not receive {_missing(judge())}: {self._instead(expected, seen())}",
        )
        await self._stays_away(lambda: not isinstance(judge(), Fulfilled))
        self._expected = self._examined = len(self._events)

    async def expect_updated(self, name: str, fields: dict[str, Any]) -> None:
        def last() -> int | None:
            return self._last_update(name, since=self._expected)

        def instead() -> str:
            showing = f"{self.name} did not receive an UPDATED {name} with the expected {', '.join(fields)}"
            if (position := last()) is None:
                return f"{showing}: {self.name} received no UPDATED of this cluster"
            shown = {field: getattr(self._events[position].cluster, field) for field in fields}
            return f"{showing}: the last one that {self.name} received has {shown}"

        await self._comes(
            lambda: (
                (position := last()) is not None
                and all(self._shows(position, field, value) for field, value in fields.items())
            ),
            instead,
        )
        self._examined = len(self._events)

    async def expect_no_updates(self, name: str) -> None:
        await self._stays_away(lambda: self._last_update(name, since=self._examined) is not None)
        if (position := self._last_update(name, since=self._examined)) is not None:
            raise UnexpectedError(f"{self.name} received an UPDATED: {self._events[position].cluster}")
        self._examined = len(self._events)

    def _last_update(self, name: str, *, since: int) -> int | None:
        for position in range(len(self._events) - 1, since - 1, -1):
            event = self._events[position]
            if event.type is EventType.UPDATED and event.cluster.name == name:
                return position
        return None

    def _shows(self, position: int, field: str, wanted: object) -> bool:
        """Return whether a field has the expected value, or if none is expected, whether it is or was set."""
        cluster = self._events[position].cluster
        value = getattr(cluster, field)
        if wanted is msgspec.UNSET:
            before = [event.cluster for event in self._events[:position] if event.cluster.name == cluster.name]
            return bool(value) or (bool(before) and getattr(before[-1], field) != value)
        if isinstance(wanted, dict):
            return all(value.get(key) == expected for key, expected in wanted.items())
        return bool(value == wanted)

    def _instead(self, expected: Sequence[Expected], seen: Sequence[Event]) -> str:
        return (
            f"expected {', '.join(map(matching.tell_expected, expected)) or 'nothing'}; "
            f"{self.name} received {tell_all(seen)}"
        )

    # --- waiting ---

    async def _comes(self, holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._until(holds)
        except TimeoutError:
            raise UnexpectedError(f"within {self._patience_s:g} s {otherwise()}") from None

    async def _stays_away(self, has_come: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(QUIET_S):
                await self._until(has_come)
        except TimeoutError:
            return

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds, evaluated after each event."""
        while not holds():
            self._check()
            self._arrived.clear()
            await self._arrived.wait()

    def _check(self) -> None:
        for stream in self._streams:
            if stream.recording.done() and (error := stream.recording.exception()) is not None:
                if isinstance(error, DiscoveryError):
                    raise UnexpectedError(f"the stream of {self.name} was closed: {error}") from error
                raise error


def _missing(verdict: Verdict) -> str:
    return verdict.missing if isinstance(verdict, Awaiting) else "nothing"
