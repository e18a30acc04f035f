"""A follower of a collection whose server is hostile."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from milo_kube.api_request import Answer
from milo_kube.cache_budget import CacheBudget, CacheLimits
from milo_kube.collection_follower import CollectionFollower
from milo_kube.costly_steps import CostlySteps
from milo_kube.http.errors import TransportError
from milo_kube.reflect.messages import ListEnded, SourceEvent
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reflect.wire import ListPage, WatchEvent
from milo_kube.tenants import working_for
from tests.support.eventually import LIMIT_S, eventually


class Invalid(NamedTuple):
    name: str
    uid: str = "u"
    version: str = "1"
    namespace: str = ""
    problem: str = "it is no object"


class Objects:
    """An API server with a hundred objects that are invalid, a kind, its decoder and its sink."""

    resource = path = "v1/things"

    @property
    def query(self) -> list[tuple[str, str]]:
        return []

    metadata_only = False
    size = 0
    synced = False

    async def get(self, *_: Any, **__: Any) -> Answer:
        return Answer(200, {}, b"{}")

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    @property
    def decoder(self) -> "Objects":
        return self

    def page(self, _: bytes) -> tuple[ListPage, list[Invalid]]:
        return ListPage("1", ""), [Invalid(f"thing-{number}") for number in range(100)]

    def lines(self, _: Iterable[bytes | bytearray]) -> list[WatchEvent[Invalid]]:
        raise AssertionError

    def apply(self, event: SourceEvent[Invalid]) -> Iterable[str]:
        self.synced = type(event).__name__ == "ListEnded"
        return ()

    def clear(self) -> None: ...

    def __len__(self) -> int:
        return 0

    def __str__(self) -> str:
        return self.resource


class Follower(CollectionFollower[Invalid, str]):
    tenant = ("",)

    def __init__(self, objects: Any, budget: CacheBudget | None = None) -> None:
        log, budget = logging.getLogger("follower"), budget or CacheBudget(CacheLimits())
        policy = ReflectorPolicy(streaming_lists=False)
        super().__init__(objects, objects, objects, policy, budget=budget, cluster="alpha", log=log)
        self.listed = asyncio.Event()

    def changed(self, change: str) -> None: ...

    def synced(self) -> None:
        self.listed.set()

    def failed(self) -> None: ...


class TenantsObjects(Objects):
    """An API server whose pages are decoded for a tenant."""

    def page(self, _: bytes) -> tuple[ListPage, list[Invalid]]:
        return ListPage("1", ""), [Invalid("/".join(working_for.get()))]


async def test_objects_are_decoded_in_the_turn_of_their_tenant(caplog: pytest.LogCaptureFixture) -> None:
    follower = Follower(TenantsObjects())
    follower.tenant = ("source", "acme")
    following = asyncio.create_task(follower.run())
    await follower.listed.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert caplog.messages == ["alpha: v1/things source/acme is invalid: it is no object"]


async def test_invalid_objects_of_a_cluster_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    follower = Follower(Objects())
    following = asyncio.create_task(follower.run())
    await asyncio.wait({following, asyncio.create_task(follower.listed.wait())}, return_when="FIRST_COMPLETED")
    assert follower.listed.is_set()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert caplog.messages == [f"alpha: v1/things thing-{number} is invalid: it is no object" for number in range(10)]


class LargeObjects(Objects):
    """Objects of which a hundred are more bytes than a page may have."""

    async def get(self, _path: str, query: list[tuple[str, str]], **_: Any) -> Answer:
        if int(dict(query)["limit"]) >= 100:
            raise TransportError("too_large", "the response has too many bytes")
        return await super().get()


class HugePages(Objects):
    """Pages with an object of any size."""

    def __init__(self, size: int) -> None:
        self.size_of_page = size

    async def get(self, *_: Any, limit: int, **__: Any) -> Answer:
        if self.size_of_page > limit:
            raise TransportError("too_large", "the response has too many bytes")
        return await super().get()


async def test_page_that_would_block_the_event_loop_is_not_read() -> None:
    follower = Follower(HugePages((16 << 20) + 1))
    following = asyncio.create_task(follower.run())
    await eventually(lambda: follower.problem.startswith("ResponseTooLarge"))
    assert not follower.listed.is_set()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


class UnfinishedEvents(Objects):
    """A server that begins an event of 7 MiB, and does not finish it."""

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        yield self

    status = 200

    def lines(self, lines: Iterable[bytes | bytearray]) -> list[WatchEvent[Invalid]]:
        assert not [*lines]
        return []

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for _ in range(7):
            yield b"a" * (1 << 20)
        await asyncio.Event().wait()


async def test_events_that_watches_have_begun_count_toward_the_budget() -> None:
    budget = CacheBudget(CacheLimits(total_bytes=16 << 20))
    followers = [Follower(UnfinishedEvents(), budget) for _ in range(3)]
    following = [asyncio.create_task(follower.run()) for follower in followers]
    await eventually(lambda: [follower.state for follower in followers].count("over_budget") == 1)
    assert budget.total == 14 << 20
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    assert budget.total == 0


class LargeEvents(Objects):
    """A server that sends a small event, and then one of 3 MiB."""

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        yield self

    status = 200

    def __init__(self) -> None:
        self.decoded: list[tuple[int, bool]] = []
        self.is_turn = False

    def lines(self, lines: Iterable[bytes | bytearray]) -> list[WatchEvent[Invalid]]:
        self.decoded += [(len(line), self.is_turn) for line in lines]
        return []

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield b"small\n"
        for _ in range(3):
            yield b"a" * (1 << 20)
        yield b"\nsmall\n"
        await asyncio.Event().wait()


async def test_large_event_of_a_watch_is_decoded_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    server, result = LargeEvents(), CostlySteps.result

    async def turns(steps: CostlySteps, step: Callable[[], Any]) -> Any:
        def turn() -> Any:
            server.is_turn = True
            found = step()
            server.is_turn = False
            return found

        return await result(steps, turn)

    monkeypatch.setattr(CostlySteps, "result", turns)
    following = asyncio.create_task(Follower(server).run())
    await eventually(lambda: sum(size for size, _ in server.decoded) > 3 << 20)
    assert [(size, is_turn) for size, is_turn in server.decoded if size > 5] == [(3 << 20, True)]
    assert server.decoded[0] == (5, False)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_objects_that_are_too_large_for_one_page_are_read_in_smaller_ones() -> None:
    follower = Follower(LargeObjects())
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(LIMIT_S):
        await follower.listed.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert follower.problem == ""


async def test_collection_with_another_address_is_listed_again_at_once_unless_it_was_dropped() -> None:
    objects = Objects()
    follower = Follower(objects)
    follower.list_again()  # before it runs
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(LIMIT_S):
        await follower.listed.wait()
        objects.synced = False
        follower.listed.clear()
        for _ in range(2):
            follower.list_again()
        await follower.listed.wait()
    objects.synced = False
    follower.listed.clear()
    for _ in range(2):
        follower.list_again()
        follower.exceed("too large")
        await asyncio.sleep(0)
    assert not following.done()
    assert follower.state == "over_budget"
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_collection_that_was_dropped_before_its_follower_ran_is_listed_after_a_while() -> None:
    """It was followed without being applied, until the next restart."""
    follower = Follower(Objects(), CacheBudget(CacheLimits(retry_s=0.01)))
    follower.exceed("too large")
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(LIMIT_S):
        await follower.listed.wait()
    assert follower.state == "synced"
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_dropped_collection_is_listed_again_that_long_after_it_was_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in tests of a busy machine: the time began only when the watch was closed."""
    follower = Follower(Objects(), CacheBudget(CacheLimits(retry_s=3600.0)))
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(LIMIT_S):
        await follower.listed.wait()
    follower.listed.clear()
    follower.exceed("too large")
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda time=loop.time: time() + 3600.0)
    async with asyncio.timeout(LIMIT_S):
        await follower.listed.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@pytest.mark.parametrize("synced", [False, True])
async def test_collection_that_is_read_again_after_a_silent_watch_has_no_problem_if_it_is_synced(synced: bool) -> None:
    objects = Objects()
    objects.synced = synced
    follower = Follower(objects)
    follower.status = ViewStatus(ViewState.CATCHING_UP, 0.0, "Silence", "the watch received no data for 90 s")
    problem = "Silence: the watch received no data for 90 s"
    assert (follower.state, follower.problem) == (("synced", "") if synced else ("starting", problem))


class ManyRemoved(Objects):
    """A collection whose second list lacks all objects."""

    lists = 0

    def apply(self, event: SourceEvent[Invalid]) -> Iterable[str]:
        super().apply(event)
        self.lists += self.synced
        return [str(number) for number in range(1000)] if self.synced and self.lists == 2 else ()


class ChangedFollower(Follower):
    def __init__(self, objects: Any) -> None:
        super().__init__(objects)
        self.changes: list[str] = []
        self.has_changed = asyncio.Event()

    def changed(self, change: str) -> None:
        self.changes.append(change)
        self.has_changed.set()


@pytest.mark.parametrize("ends_by", ["nothing", "list_again", "exceed", "cancel"])
async def test_removal_of_many_objects_at_once_is_reported_in_slices(ends_by: str) -> None:
    """A tenant's list without its former 100,000 objects blocked the event loop for up to three seconds."""
    follower = ChangedFollower(ManyRemoved())
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(LIMIT_S):
        await follower.listed.wait()
        follower.list_again()
        await follower.has_changed.wait()
        assert len(follower.changes) == 250
        match ends_by:
            case "list_again":
                follower.list_again()
            case "exceed":
                follower.exceed("too large")
            case "cancel":
                following.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert len(follower.changes) == (1000 if ends_by in ("nothing", "list_again") else 250)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_first_list_that_ends_while_another_one_is_requested_has_synced() -> None:
    class Removed(Objects):
        """A collection whose first list lacks all objects that an earlier one contained until it failed."""

        def apply(self, event: SourceEvent[Invalid]) -> Iterable[str]:
            was_synced, self.synced = self.synced, self.synced or isinstance(event, ListEnded)
            return [str(number) for number in range(1000)] if self.synced and not was_synced else ()

    follower = ChangedFollower(Removed())
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(LIMIT_S):
        await follower.has_changed.wait()
        assert len(follower.changes) == 250
        follower.list_again()
        await follower.listed.wait()
    assert len(follower.changes) == 1000
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_change_that_exceeds_a_limit_is_the_last_one_reported() -> None:
    class Exceeding(ChangedFollower):
        def changed(self, change: str) -> None:
            super().changed(change)
            self.exceed("too large")

    follower = Exceeding(ManyRemoved())
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(LIMIT_S):
        await follower.listed.wait()
        follower.list_again()
        await eventually(lambda: follower.state == "over_budget")
    assert follower.changes == ["0"]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
