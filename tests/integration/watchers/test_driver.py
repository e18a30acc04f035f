"""The driver against a real HTTPS server whose every answer the test writes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.modes.mode import Setting
from milo_discoveryd.modes.project import ProjectMode
from milo_discoveryd.registry.direct_fleet import DirectFleet
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.pending_deletions import PendingDeletions
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.watchers.driver import Driver, WatchedCollection
from milo_discoveryd.watchers.transport import Transport
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.source_status import SourceState
from milo_kube.reflect.wire import Decoder
from tests.integration.watchers.api_server import ApiServer, upstream
from tests.support.eventually import eventually

PATH = ProjectMode.resource.path
QUICK = Backoff(first_s=0.001, cap_s=0.01)
LOST = "the source was lost before the response came"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def project(name: str, version: int, *, uid: str = "", is_ready: bool = True) -> dict[str, object]:
    return {
        "metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)},
        "status": {"conditions": [{"type": "Ready", "status": str(is_ready)}]},
    }


def line(kind: str, content: dict[str, object]) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"


def bookmark(version: int, *, ends_list: bool = False) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"} if ends_list else {}
    return line("BOOKMARK", {"metadata": {"resourceVersion": str(version), "annotations": annotations}})


def expired() -> bytes:
    return line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})


def error_status(status: int, reason: str, name: str = "") -> web.Response:
    body = {"kind": "Status", "code": status, "reason": reason, "message": reason, "details": {"name": name}}
    return web.json_response(body, status=status)


class Said:
    """An answer written piece by piece; it stays open after the last, until it is told to end or cut."""

    def __init__(self, *pieces: bytes) -> None:
        self._orders: asyncio.Queue[bytes | str] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        for piece in pieces:
            self._orders.put_nowait(piece)

    def say(self, piece: bytes) -> None:
        self._orders.put_nowait(piece)

    def end(self) -> None:
        self._orders.put_nowait("end")

    def cut(self) -> None:
        self._orders.put_nowait("cut")

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked.set()
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while (order := await self._orders.get()) != "end":
                if order == "cut":
                    assert request.transport is not None
                    request.transport.abort()
                    break
                assert isinstance(order, bytes)
                await response.write(order)
        finally:
            self.gone.set()
        return response


class Played:
    """An API server that answers lists, watches and looks at single objects in turn, as the test has laid down.

    Where nothing more is laid down, it parks the request: the last word stands.
    """

    def __init__(self) -> None:
        self.lists: list[Answer] = []
        self.watches: list[Answer] = []
        self.looks: list[Answer] = []
        self.alive: Answer = Said()
        """Says nothing, unless the test has it answer."""
        self.queries: list[dict[str, str]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/livez":
            return await self.alive(request)
        self.queries.append(dict(request.query))
        of_collection = self.watches if "watch" in request.query else self.lists
        turn = of_collection if request.path == PATH else self.looks
        answer = turn.pop(0) if turn else Said()
        return await answer(request)


def answering(make: Callable[[], web.Response]) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return make()

    return answer


def gone(name: str) -> Answer:
    return answering(lambda: error_status(404, "NotFound", name=name))


def listing(version: int, *objects: dict[str, object], more: str = "") -> Answer:
    content = {"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(objects)}
    return answering(lambda: web.json_response(content))


class Running:
    def __init__(
        self, played: Played, server: ApiServer, fleet: DirectFleet, ledger: "Ledger", task: asyncio.Task[None]
    ) -> None:
        self.played = played
        self.server = server
        self.fleet = fleet
        self.told = ledger.told
        self.looks = ledger.looks
        self.task = task

    async def synced(self) -> None:
        await eventually(lambda: self.fleet.synced and self.fleet.status.state is SourceState.STREAMING)

    async def tells(self, *events: str) -> None:
        await eventually(lambda: self.told == list(events))


class Ledger(Journal):
    """Notes changes as a person would: `ENGAGED alpha`."""

    def __init__(self) -> None:
        super().__init__(Metrics(), Audit(Metrics()))
        self.told: list[str] = []
        self.looks: list[str] = []
        self.relistings: list[str] = []

    def changed(self, done, *, is_live):  # type: ignore[no-untyped-def]
        reason = f" {done.reason.value}" if done.reason else ""
        self.told.append(f"{done.type.value} {done.cluster.target.name}{reason}")

    def liveness_checked(self, result: str) -> None:
        self.looks.append(result)

    def relisting(self, reason: str) -> None:
        self.relistings.append(reason)


@asynccontextmanager
async def running(
    played: Played, policy: ReflectorPolicy | None = None, liveness: LivenessPolicy | None = None
) -> AsyncIterator[Running]:
    def encode(event: Event) -> bytes:
        return b""

    ledger = Ledger()
    pending_deletions = PendingDeletions(lambda: 0.0, backoff=QUICK)
    fleet = DirectFleet(ChangeLog(encode, Retention()), pending_deletions, ledger)
    mode = ProjectMode(Setting(project_endpoint="https://milo.test"))
    async with ApiServer(played) as server:
        transport = Transport(upstream(server))
        driver = Driver(
            transport,
            WatchedCollection(ProjectMode.resource),
            decoder=Decoder(KubeObject, mode.observe, Malformed),
            reflector=Reflector(
                policy or ReflectorPolicy(backoff=QUICK), lambda: 0.0, asyncio.get_running_loop().time()
            ),
            pending_deletions=pending_deletions,
            sink=fleet,
            connect_timeout_s=10.0,
            request_timeout_s=10.0,
            liveness=liveness or LivenessPolicy(),
        )
        task = asyncio.create_task(driver.run())
        try:
            yield Running(played, server, fleet, ledger, task)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await transport.aclose()


async def test_streaming_list_engages_ready_objects_and_continues_as_watch() -> None:
    played = Played()
    watch = Said(
        line("ADDED", project("alpha", 1)),
        line("ADDED", project("beta", 2, is_ready=False)),
        bookmark(5, ends_list=True),
    )
    played.watches = [watch]
    async with running(played) as run:
        await run.synced()
        assert run.told == ["ENGAGED alpha"]
        watch.say(line("MODIFIED", project("beta", 6)))
        await run.tells("ENGAGED alpha", "ENGAGED beta")
    assert {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}.items() <= played.queries[0].items()


async def test_server_without_streaming_lists_is_read_in_pages() -> None:
    played = Played()
    played.watches = [answering(lambda: error_status(422, "Invalid")), Said()]
    played.lists = [listing(7, project("alpha", 1), more="page-2"), listing(7, project("beta", 2))]
    async with running(played) as run:
        await run.synced()
        assert run.told == ["ENGAGED alpha", "ENGAGED beta"]
    _, first, second, watch = played.queries
    assert (first["limit"], "continue" in first) == ("5000", False)
    assert second["continue"] == "page-2"
    assert watch["resourceVersion"] == "7"


async def test_watch_cut_within_an_event_resumes_before_it() -> None:
    played = Played()
    half = line("ADDED", project("beta", 9))[:40]
    first = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    second = Said()
    played.watches = [first, second]
    async with running(played) as run:
        await run.synced()
        first.say(line("MODIFIED", project("alpha", 6)) + half)
        first.cut()
        await second.asked.wait()
        assert played.queries[-1]["resourceVersion"] == "6"
        second.say(line("ADDED", project("beta", 9)))
        await run.tells("ENGAGED alpha", "ENGAGED beta")


async def test_expired_version_leads_to_relist_with_differences_only() -> None:
    played = Played()
    first = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    second = Said(line("ADDED", project("alpha", 1)), line("ADDED", project("beta", 8)), bookmark(9, ends_list=True))
    played.watches = [first, second]
    async with running(played) as run:
        await run.synced()
        first.say(expired())
        await run.tells("ENGAGED alpha", "ENGAGED beta")


async def test_lost_server_is_reported_and_disengages_nothing() -> None:
    played = Played()
    first = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    played.watches = [first, *[answering(lambda: web.Response(status=503, text="<html>no</html>"))] * 3, Said()]
    async with running(played, ReflectorPolicy(backoff=Backoff(first_s=0.05, cap_s=0.05))) as run:
        await run.synced()
        first.cut()
        await eventually(lambda: run.fleet.status.state is SourceState.STALE)
        assert (run.fleet.status.reason, run.fleet.status.message) == ("NotServing", "503: no")
        await run.synced()
        assert run.told == ["ENGAGED alpha"]


@pytest.mark.parametrize("status", [404, 503])
async def test_resource_not_served_yet_is_resumed_at_same_version(status: int) -> None:
    played = Played()
    first = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    second = Said()
    played.watches = [first, answering(lambda: web.Response(status=status, text="404 page not found")), second]
    async with running(played) as run:
        await run.synced()
        first.cut()
        await second.asked.wait()
    assert played.queries[-1]["resourceVersion"] == "5"


async def test_deletion_is_reported_after_not_found() -> None:
    played = Played()
    watch = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    played.watches = [watch]
    played.looks = [answering(lambda: error_status(404, "NotFound", name="alpha"))]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await run.tells("ENGAGED alpha", "DISENGAGED alpha DELETED")


@pytest.mark.parametrize(
    "unsure",
    [
        lambda: web.Response(status=404, text="nginx: not found"),
        lambda: error_status(404, "NotFound"),
        lambda: error_status(403, "Forbidden"),
        lambda: web.Response(status=502, text="bad gateway"),
    ],
    ids=["a proxy's 404", "no such resource", "no rights", "a broken gateway"],
)
async def test_inconclusive_confirmation_is_retried_and_cluster_stays_engaged(
    unsure: Callable[[], web.Response],
) -> None:
    played = Played()
    watch = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    asked = Said()
    played.watches = [watch]
    played.looks = [answering(unsure), asked]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await asked.asked.wait()
        assert run.told == ["ENGAGED alpha"]
        assert run.fleet.pending_deletions.explain("alpha") is not None


async def test_deletion_is_not_confirmed_by_server_without_other_objects() -> None:
    played = Played()
    watch = Said(*(line("ADDED", project(name, 1)) for name in ("alpha", "beta", "gamma")), bookmark(5, ends_list=True))
    again = Said()
    played.watches = [watch]
    played.looks = [*(gone(name) for name in ("alpha", "beta", "gamma")), again]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await eventually(lambda: again.asked.is_set() or len(run.told) > 3)
        assert run.told == ["ENGAGED alpha", "ENGAGED beta", "ENGAGED gamma"]
        why = run.fleet.pending_deletions.explain("alpha")
        assert why is not None
        assert why[1] == "the server has none of the other objects either, and may be another server"


async def test_failed_witness_check_is_reported() -> None:
    played = Played()
    watch = Said(*(line("ADDED", project(name, 1)) for name in ("alpha", "beta", "gamma")), bookmark(5, ends_list=True))
    again = Said()
    played.watches = [watch]
    played.looks = [gone("alpha"), answering(lambda: error_status(403, "Forbidden")), gone("gamma"), again]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await again.asked.wait()
        why = run.fleet.pending_deletions.explain("alpha")
        assert why is not None
        assert why[1].startswith("the server may be another one, and reading beta from it failed: 403: ")


async def test_deletion_is_confirmed_by_server_with_other_objects() -> None:
    played = Played()
    watch = Said(*(line("ADDED", project(name, 1)) for name in ("alpha", "beta", "gamma")), bookmark(5, ends_list=True))
    played.watches = [watch]
    played.looks = [gone("alpha"), gone("beta"), answering(lambda: web.json_response(project("gamma", 1)))]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await run.tells("ENGAGED alpha", "ENGAGED beta", "ENGAGED gamma", "DISENGAGED alpha DELETED")


async def test_deletion_is_not_confirmed_by_unknown_server() -> None:
    played = Played()
    first, second, look = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True)), Said(), Said()
    played.watches, played.looks = [first, second], [look]
    async with running(played) as run:
        await run.synced()
        first.say(line("DELETED", project("alpha", 6)) + expired())
        await second.asked.wait()
        assert not look.asked.is_set()
        second.say(line("ADDED", project("alpha", 1)) + bookmark(9, ends_list=True))
        await eventually(lambda: not len(run.fleet.pending_deletions))
        assert (run.told, look.asked.is_set()) == (["ENGAGED alpha"], False)


async def test_confirmation_after_source_was_lost_is_ignored() -> None:
    played = Played()
    first, second = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True)), Said()
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        asked.set()
        await may_answer.wait()
        return error_status(404, "NotFound", name="alpha")

    played.watches, played.looks = [first, second], [late]
    async with running(played) as run:
        await run.synced()
        first.say(line("DELETED", project("alpha", 6)))
        await asked.wait()
        first.say(expired())
        await second.asked.wait()
        may_answer.set()
        await eventually(lambda: (run.fleet.pending_deletions.explain("alpha") or (0, ""))[1] == LOST)
        second.say(line("ADDED", project("alpha", 1)) + bookmark(9, ends_list=True))
        await eventually(lambda: not len(run.fleet.pending_deletions))
        assert run.told == ["ENGAGED alpha"]


async def test_live_object_reported_as_deleted_stays_engaged() -> None:
    played = Played()
    watch = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    played.watches = [watch]
    played.looks = [answering(lambda: web.json_response(project("alpha", 1)))]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await eventually(lambda: not played.looks and not len(run.fleet.pending_deletions))
        assert run.told == ["ENGAGED alpha"]


async def test_object_recreated_during_confirmation_is_replaced() -> None:
    played = Played()
    watch = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    played.watches = [watch]
    played.looks = [answering(lambda: web.json_response(project("alpha", 7, uid="another")))]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await run.tells("ENGAGED alpha", "DISENGAGED alpha REPLACED", "ENGAGED alpha")


async def test_malformed_object_does_not_affect_others() -> None:
    played = Played()
    bad = {"metadata": {"name": "bad", "uid": "uid-bad", "resourceVersion": "2"}, "status": {"conditions": 7}}
    played.watches = [Said(line("ADDED", bad), line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))]
    async with running(played) as run:
        await run.synced()
        assert run.told == ["ENGAGED alpha"]
        record = run.fleet.registry["bad"]
        assert record is not None
        assert "conditions" in record.message


@pytest.mark.parametrize("where", ["head of the list", "list", "watch", "look", "back-off"])
async def test_driver_cancelled_at_any_point_ends_at_once_and_closes_everything(where: str) -> None:
    played = Played()
    reached, gone = asyncio.Event(), asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        reached.set()
        try:
            return await asyncio.Future()
        finally:
            gone.set()

    watch = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    match where:
        case "head of the list":
            played.watches = [silent]
        case "list":
            played.watches, played.lists = [answering(lambda: error_status(422, "Invalid"))], [silent]
        case "watch":
            played.watches = [watch]
        case "look":
            played.watches, played.looks = [watch], [silent]
            watch.say(line("DELETED", project("alpha", 6)))
        case "back-off":
            played.watches = [answering(lambda: error_status(500, "InternalError"))]
    async with running(played, ReflectorPolicy(backoff=Backoff(first_s=3600, cap_s=3600))) as run:
        match where:
            case "watch":
                await run.synced()
                reached, gone = watch.asked, watch.gone
            case "back-off":
                await eventually(lambda: run.fleet.status.state is SourceState.STALE)
                gone.set()
            case _:
                await reached.wait()
        run.task.cancel()
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await run.task
            await gone.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "confirm" in task.get_name() or "follow" in task.get_name()]


@pytest.mark.parametrize("answer", [project("beta", 1), {"metadata": {}}], ids=["another object", "no name"])
async def test_confirmation_read_that_returns_another_object_is_inconclusive(answer: dict[str, object]) -> None:
    played = Played()
    watch = Said(*(line("ADDED", project(name, 1)) for name in ("alpha", "beta")), bookmark(5, ends_list=True))
    played.watches = [watch]
    again = Said()
    played.looks = [answering(lambda: web.json_response(answer)), again]
    async with running(played) as run:
        await run.synced()
        watch.say(line("DELETED", project("alpha", 6)))
        await again.asked.wait()
        assert run.told == ["ENGAGED alpha", "ENGAGED beta"]
        why = run.fleet.pending_deletions.explain("alpha")
        assert why is not None
        assert why[1].startswith("the response is not the object")


async def test_confirmation_reads_that_are_refused_back_off_together() -> None:
    played = Played()
    names = [f"a{number}" for number in range(100)]
    watch = Said(*(line("ADDED", project(name, 1)) for name in names), bookmark(5, ends_list=True))
    played.watches = [watch]
    again = Said()
    played.looks = [*[answering(lambda: error_status(403, "Forbidden"))] * 20, again]
    async with running(played) as run:
        await run.synced()
        watch.say(b"".join(line("DELETED", project(name, 6)) for name in names))
        await again.asked.wait()
        assert run.fleet.pending_deletions.refused == "403: Forbidden"
        assert run.fleet.pending_deletions.take_due(float("inf")) == []


async def test_watch_that_is_always_expired_lets_deletions_be_confirmed() -> None:
    played = Played()
    first = Said(*(line("ADDED", project(name, 1)) for name in ("alpha", "beta")), bookmark(5, ends_list=True))
    played.watches = [first, *[answering(lambda: error_status(410, "Expired"))] * 8]
    played.lists = [listing(6 + number, project("beta", 1)) for number in range(4)]
    found = answering(lambda: web.json_response(project("beta", 1)))
    played.looks = [gone("alpha"), found]
    async with running(played, ReflectorPolicy(backoff=QUICK, streaming_lists=True)) as run:
        await run.synced()
        first.end()
        await run.tells("ENGAGED alpha", "ENGAGED beta", "DISENGAGED alpha DELETED")
