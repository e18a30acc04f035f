"""Tests of the record of upstream changes: it contains exactly the changes that are known to have been applied."""

from random import Random
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest

from tests.end_to_end.process.upstream import State
from tests.end_to_end.real.api import RefusedError
from tests.end_to_end.soak.project_writer import MARK, ProjectWriter
from tests.end_to_end.soak.servers import COLLECTION


class Lossy:
    """An API server in a dictionary; `loses` drops the next response, before or after the request takes effect."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.loses = ""
        self._uids = 0

    def api(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        pass

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        loses, self.loses = self.loses, ""
        if loses == "before":
            raise aiohttp.ServerDisconnectedError
        answer = self._done(method, path.removeprefix(COLLECTION).strip("/").split("/")[0], body)
        if loses == "after":
            raise aiohttp.ServerDisconnectedError
        return answer

    def _done(self, method: str, name: str, body: Any) -> dict[str, Any]:
        if method == "GET" and not name:
            return {"items": list(self.objects.values())}
        if method == "POST":
            self._uids += 1
            made = {"metadata": {**body["metadata"], "uid": f"u{self._uids}"}, "status": {}}
            self.objects[body["metadata"]["name"]] = made
            return made
        if name not in self.objects:
            raise RefusedError(f"{method} {name}", 404, f'{{"reason":"NotFound","details":{{"name":"{name}"}}}}')
        if method == "DELETE":
            return self.objects.pop(name)
        found = self.objects[name]
        for part, change in (body or {}).items():
            found[part] = found[part] | change
        return found


@pytest.fixture
def server() -> Lossy:
    return Lossy()


@pytest.fixture
async def writer(server: Lossy) -> ProjectWriter:
    made = ProjectWriter(server, Random(1))  # type: ignore[arg-type]
    await made.load_or_create()
    return made


def truth(server: Lossy) -> dict[str, State]:
    return {
        name: State(
            each["metadata"]["uid"],
            any(condition["status"] == "True" for condition in each["status"].get("conditions", ())),
            tuple(sorted(each["metadata"]["labels"].items())),
        )
        for name, each in server.objects.items()
    }


def noted(writer: ProjectWriter) -> dict[str, State]:
    return {name: writer.upstream[name] for name in writer.upstream.names()}


async def test_project_writer_records_initial_objects(server: Lossy, writer: ProjectWriter) -> None:
    assert noted(writer) == truth(server)
    assert writer.upstream[MARK].ready


@pytest.mark.parametrize("loses", ["before", "after"])
async def test_project_writer_resolves_unknown_write_outcome_before_the_next_write(
    server: Lossy, writer: ProjectWriter, loses: str
) -> None:
    for turn in range(200):
        server.loses = loses if turn % 3 == 0 else ""
        async with writer.quiet():
            await writer.change_randomly()
    await writer.mark()
    assert noted(writer) == truth(server)
    assert writer.lost > 30


async def test_project_writer_repeats_its_mark_until_it_is_visible(server: Lossy, writer: ProjectWriter) -> None:
    server.loses = "after"
    mark = await writer.mark()
    assert server.objects[MARK]["metadata"]["labels"]["mark"] == mark
    assert writer.lost == 1
