"""Responses with very many events: other tasks run between their parts."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any

from milo_discoveryd.model.observation import Malformed, Observation
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import PROJECTS, ProjectObjects
from milo_discoveryd.sources.reading import KubeObject
from milo_kube.api_request import Answer, Stream
from milo_kube.list_watch import EVENTS_AT_ONCE, ListWatch
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.wire import Decoder, Undecodable, UnknownEvent
from tests.support.eventually import LIMIT_S

PARTS = 20
COUNT = PARTS * EVENTS_AT_ONCE


def project(number: int) -> dict[str, object]:
    return {"metadata": {"name": f"p-{number}", "uid": f"uid-{number}", "resourceVersion": str(number + 10)}}


class LongApi:
    """Answers a list with many objects, and each watch with one piece."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, listed: int = 0, watched: Iterable[bytes] = ()) -> None:
        self._listed = listed
        self._watched = b"".join(watched)

    async def get(self, path: str, query: Any = (), *, timeout_s: float, **_: object) -> Answer:
        items = [project(number) for number in range(self._listed)]
        return Answer(200, {}, json.dumps({"metadata": {"resourceVersion": "5"}, "items": items}).encode())

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]:
        return nullcontext(self)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._watched
        await asyncio.Event().wait()

    async def read_error(self, limit: int) -> bytes:
        raise AssertionError("not reached")


class DeepApi(LongApi):
    """Answers a list of objects with 1,000 fields each, of which one is nested more deeply than the decoder accepts."""

    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer:
        wanted = dict(query)
        first = int(wanted.get("continue", "0"))
        last = min(first + int(wanted["limit"]), self._listed)
        items = [json.dumps(project(number) | {"more": [{}] * 1_000}) for number in range(first, last)]
        if first == 0:
            items[0] = items[0].removesuffix("}") + ', "deep": ' + '{"a":' * 2_000 + "1" + "}" * 2_001
        metadata = json.dumps({"resourceVersion": "5", "continue": str(last) if last < self._listed else ""})
        return Answer(200, {}, f'{{"metadata":{metadata},"items":[{",".join(items)}]}}'.encode())


async def received(
    api: LongApi, last: type[object], count: int = 1, *, decoding_s: float = 0.0
) -> tuple[list[object], int]:
    """Return the events up to `count` of a type, and how often another task had a turn before that.

    `decoding_s`: the duration of the decoding of an object.
    """
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    mode = ProjectObjects(SourceOptions(project_server="https://milo.test"))

    def observe(found: KubeObject) -> Observation:
        time.sleep(decoding_s)
        return mode.observe(found)

    decoder: Decoder[KubeObject, Observation] = Decoder(KubeObject, observe if decoding_s else mode.observe, Malformed)
    reflector: Reflector[Observation] = Reflector(
        ReflectorPolicy(streaming_lists=False), lambda: 0.0, asyncio.get_running_loop().time()
    )
    list_watch = ListWatch(
        api, PROJECTS, decoder=decoder, reflector=reflector, connect_timeout_s=1.0, request_timeout_s=LIMIT_S
    )
    found: list[object] = []
    running = asyncio.create_task(other())
    async with asyncio.timeout(LIMIT_S), aclosing(list_watch.batches()) as batches:
        async for batch in batches:
            found += batch
            if sum(type(event) is last for event in found) >= count:
                break
    running.cancel()
    return found, turns


async def test_other_tasks_run_while_a_long_list_is_applied() -> None:
    found, turns = await received(LongApi(COUNT), ListEnded)
    assert [type(event) for event in found] == [ListStarted, *[Listed] * COUNT, ListEnded]
    assert turns >= PARTS // 2


async def test_object_that_is_nested_too_deeply_does_not_affect_the_others_of_a_long_list() -> None:
    found, _ = await received(DeepApi(300), ListEnded)
    listed = [event.observation for event in found if isinstance(event, Listed)]
    assert [observation.name for observation in listed] == [f"p-{number}" for number in range(300)]
    assert [observation.name for observation in listed if isinstance(observation, Malformed)] == ["p-0"]


async def test_other_tasks_run_between_objects_of_a_list_that_take_long_to_decode() -> None:
    """A kubeconfig in a Secret can take 15 ms, and a tenant can create thousands."""
    found, turns = await received(LongApi(20), ListEnded, decoding_s=0.006)
    assert [type(event) for event in found] == [ListStarted, *[Listed] * 20, ListEnded]
    assert turns >= 10


async def test_other_tasks_run_while_a_long_part_of_a_watch_is_applied() -> None:
    lines = [json.dumps({"type": "ADDED", "object": project(number)}).encode() + b"\n" for number in range(COUNT)]
    found, turns = await received(LongApi(watched=lines), ObjectChanged, COUNT)
    assert [type(event) for event in found] == [ListStarted, ListEnded, *[ObjectChanged] * COUNT]
    assert turns >= PARTS // 2


def test_nothing_is_decoded_after_a_line_that_is_not_an_event() -> None:
    """A piece of a watch can have half a million of these."""
    mode = ProjectObjects(SourceOptions(project_server="https://milo.test"))
    decoder: Decoder[KubeObject, Observation] = Decoder(KubeObject, mode.observe, Malformed)
    unknown, undecodable = decoder.lines([b'{"type":"","object":0}', *[b"1"] * 1000])
    assert isinstance(unknown, UnknownEvent)
    assert isinstance(undecodable, Undecodable)
