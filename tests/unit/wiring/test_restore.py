"""The start of a source with a state file."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from milo_discoveryd.model.observation import Ready
from milo_discoveryd.state_file.encoding import StateOrigin, StoredCluster, StoredFleet
from milo_discoveryd.wiring import source as wiring
from milo_discoveryd.wiring.source import Discovery
from milo_kube.reflect.reflector import ReflectorPolicy
from tests.support.logs import capture_logs
from tests.unit.fleet.fleets import ready
from tests.unit.wiring.test_positions import source

ORIGIN = StateOrigin("https://milo.test", "project")


class Stored:
    """A store with two clusters."""

    origin = ORIGIN

    async def loaded(self) -> StoredFleet:
        found = [ready(name, "") for name in ("a", "b")]
        return StoredFleet(ORIGIN, 1.0, tuple(_stored(one) for one in found), positions={"before": 7})

    async def save_changes(self, fleet: Callable[[], StoredFleet], changed: Callable[[], Awaitable[None]]) -> None:
        raise AssertionError("saved before all sources are restored")


def _stored(seen: Ready) -> StoredCluster:
    return StoredCluster(seen.uid, seen.target, 1.0)


async def test_no_source_is_followed_before_all_are_restored() -> None:
    of, store, waits = source(), Stored(), asyncio.Event()

    async def others_restored() -> None:
        waits.set()
        await asyncio.Event().wait()

    discovery = Discovery(
        of, store, epoch="this", policy=ReflectorPolicy(), jitter=lambda: 0.0, connect_timeout_s=1, request_timeout_s=1
    )
    running = asyncio.create_task(discovery.run(None, (), lambda target: target.place, others_restored))  # type: ignore[arg-type]
    await waits.wait()
    assert (of.engagements.engaged, of.synced, of.restored_positions) == (2, True, {"before": 7})
    running.cancel()
    await asyncio.wait((running,))


class Unstored(Stored):
    """A store whose fleet cannot be read, or restored, and that cannot be saved the first time."""

    def __init__(self) -> None:
        self.saved = asyncio.Event()
        self._failures = 1

    async def loaded(self) -> StoredFleet:
        raise ZeroDivisionError

    async def save_changes(self, fleet: Callable[[], StoredFleet], changed: Callable[[], Awaitable[None]]) -> None:
        if self._failures:
            self._failures -= 1
            raise ZeroDivisionError
        self.saved.set()
        await asyncio.Event().wait()


async def test_source_whose_state_causes_unexpected_errors_is_followed_and_saved_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wiring, "RETRY_S", 0.0)
    of, store = source(), Unstored()
    discovery = Discovery(
        of, store, epoch="this", policy=ReflectorPolicy(), jitter=lambda: 0.0, connect_timeout_s=1, request_timeout_s=1
    )
    of.collections = ()
    with capture_logs() as logs:
        running = asyncio.create_task(discovery.run(None, (), lambda target: target.place))  # type: ignore[arg-type]
        await store.saved.wait()
    assert [entry["event"] for entry in logs] == ["state not restored", "state not saved"]
    running.cancel()
    await asyncio.wait((running,))
