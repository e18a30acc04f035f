"""The driver against a real HTTPS server with scripted responses."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from aiohttp import web

from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.events import Event
from milo_discoveryd.model.observation import Malformed, Observation
from milo_discoveryd.model.resource import WatchedCollection
from milo_discoveryd.objects.budget import OVER_BUDGET
from milo_discoveryd.objects.collection import ObjectCollection
from milo_discoveryd.objects.pending_deletions import ConfirmationResult, PendingDeletions
from milo_discoveryd.objects.store import OBJECT_OVERHEAD
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import PROJECTS, ProjectObjects
from milo_discoveryd.sources.reading import KubeObject
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.watchers import driver as driver_module
from milo_discoveryd.watchers.driver import Driver
from milo_discoveryd.watchers.transport import Transport
from milo_kube.liveness_probe import LivenessProbe
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reflect.wire import Decoder
from tests.integration.watchers.api_server import ApiServer, upstream
from tests.support.eventually import LIMIT_S, eventually
from tests.support.logs import capture_logs
from tests.support.sources import new_source

PATH = PROJECTS.path
QUICK = Backoff(first_s=0.001, cap_s=0.01)
DEFAULT_POLICY = ReflectorPolicy(backoff=QUICK)
LOST = "the source may have been out of date when the response arrived"

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


class ScriptedResponse:
    """A response that is written piece by piece, and stays open until it is ended or cut."""

    def __init__(self, *pieces: bytes) -> None:
        self._orders: asyncio.Queue[bytes | str] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        for piece in pieces:
            self._orders.put_nowait(piece)

    def send(self, piece: bytes) -> None:
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


class ScriptedServer:
    """An API server that answers lists, watches and reads of single objects from scripted queues.

    A request without a scripted response is left pending.
    """

    def __init__(self) -> None:
        self.lists: list[Answer] = []
        self.watches: list[Answer] = []
        self.reads: list[Answer] = []
        self.alive: Answer = ScriptedResponse()
        """The response to liveness probes; by default none."""
        self.queries: list[dict[str, str]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/livez":
            return await self.alive(request)
        self.queries.append(dict(request.query))
        of_collection = self.watches if "watch" in request.query else self.lists
        turn = of_collection if request.path == PATH else self.reads
        answer = turn.pop(0) if turn else ScriptedResponse()
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


class DriverRun:
    def __init__(
        self,
        server_script: ScriptedServer,
        server: ApiServer,
        source: ClusterSource,
        ledger: "Ledger",
        task: asyncio.Task[None],
    ) -> None:
        self.server_script = server_script
        self.server = server
        self.source = source
        self.events = ledger.events
        self.reads = ledger.reads
        self.reasons = ledger.reasons
        self.task = task

    async def synced(self) -> None:
        await eventually(lambda: self.source.synced and self.source.status.state is ViewState.STREAMING)

    async def expect_stale(self, reason: str) -> None:
        await eventually(lambda: reason in self.reasons)

    async def expect_events(self, *events: str) -> None:
        await eventually(lambda: self.events == list(events))


class Ledger(Journal):
    """A journal that records changes as text, such as `ENGAGED alpha`."""

    def __init__(self) -> None:
        super().__init__(Metrics().sources, Audit(Metrics().audit))
        self.events: list[str] = []
        self.reads: list[str] = []
        self.relistings: list[str] = []
        self.reasons: list[str] = []

    def changed(self, done, *, is_live):  # type: ignore[no-untyped-def]
        reason = f" {done.reason.value}" if done.reason else ""
        self.events.append(f"{done.type.value} {done.cluster.target.name}{reason}")

    def liveness_checked(self, result: str) -> None:
        self.reads.append(result)

    def source_status_changed(self, status: ViewStatus) -> None:
        self.reasons += [status.reason] if status.state is ViewState.STALE else []

    def relisting(self, reason: str) -> None:
        self.relistings.append(reason)


@asynccontextmanager
async def running(
    server_script: ScriptedServer,
    policy: ReflectorPolicy = DEFAULT_POLICY,
    objects_limit: int = 1 << 30,
    decoder: Decoder[KubeObject, Observation] | None = None,
    request_timeout_s: float = 10.0,
) -> AsyncIterator[DriverRun]:
    def encode(event: Event) -> bytes:
        return b""

    ledger = Ledger()
    pending_deletions = PendingDeletions(lambda: 0.0, backoff=QUICK)
    source = new_source(
        ledger, ChangeLog(encode, Retention()), pending_deletions=pending_deletions, objects_limit=objects_limit
    )
    mode = ProjectObjects(SourceOptions(project_server="https://milo.test"))
    async with ApiServer(server_script) as server:
        transport = Transport(upstream(server))
        driver = Driver(
            transport,
            WatchedCollection(PROJECTS),
            decoder=decoder or Decoder(KubeObject, mode.observe, Malformed),
            reflector=Reflector(policy, lambda: 0.0, asyncio.get_running_loop().time()),
            source=source,
            collection=source.collections[0],
            connect_timeout_s=10.0,
            request_timeout_s=request_timeout_s,
        )
        task = asyncio.create_task(driver.run())
        try:
            yield DriverRun(server_script, server, source, ledger, task)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await transport.aclose()


async def test_streaming_list_engages_ready_objects_and_continues_as_watch() -> None:
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        line("ADDED", project("alpha", 1)),
        line("ADDED", project("beta", 2, is_ready=False)),
        bookmark(5, ends_list=True),
    )
    server_script.watches = [watch]
    async with running(server_script) as run:
        await run.synced()
        assert run.events == ["ENGAGED alpha"]
        watch.send(line("MODIFIED", project("beta", 6)))
        await run.expect_events("ENGAGED alpha", "ENGAGED beta")
    assert {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}.items() <= server_script.queries[
        0
    ].items()


async def test_watch_that_exceeds_the_objects_limit_makes_the_source_stale_and_disengages_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver_module, "OVER_BUDGET_RETRY_S", 0.05)
    server_script = ScriptedServer()
    watch = ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    server_script.watches = [watch]
    async with running(server_script, objects_limit=10 * OBJECT_OVERHEAD) as run:
        await run.synced()
        for number in range(100):
            watch.send(line("ADDED", project(f"p-{number}", 6 + number)))
        await eventually(lambda: run.source.status.reason == OVER_BUDGET)
        assert run.source.status.state is ViewState.STALE
        assert run.source.engagements.engaged < 10
        await eventually(watch.gone.is_set)
        again = ScriptedResponse(*(line("ADDED", project(f"p-{number}", 6 + number)) for number in range(100)))
        server_script.watches = [again]
        await eventually(again.gone.is_set)
        assert run.source.status.reason == OVER_BUDGET
        engaged = [cluster.target.name for cluster in run.source.engagements.clusters()]
        repaired = [line("ADDED", project(name, 200)) for name in engaged]
        server_script.watches = [ScriptedResponse(*repaired, bookmark(201, ends_list=True))]
        await run.synced()
        assert not any("DISENGAGED" in event for event in run.events)


async def test_list_whose_pages_never_end_makes_the_source_stale() -> None:
    server_script = ScriptedServer()
    pages = (listing(5, *(project(f"p-{page}-{item}", 1) for item in range(5)), more=f"{page}") for page in range(40))
    server_script.lists = [*pages]
    policy = ReflectorPolicy(backoff=QUICK, streaming_lists=False)
    async with running(server_script, policy, objects_limit=20 * OBJECT_OVERHEAD) as run:
        await eventually(lambda: run.source.status.reason == OVER_BUDGET)
        assert run.source.status.state is ViewState.STALE
        assert run.source.engagements.engaged == 0, "clusters of an incomplete list were engaged"
        assert len(server_script.queries) < 40


async def test_deletion_is_reported_after_the_confirmation_read_returns_404() -> None:
    server_script = ScriptedServer()
    watch = ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    server_script.watches = [watch]
    server_script.reads = [answering(lambda: error_status(404, "NotFound", name="alpha"))]
    async with running(server_script) as run:
        await run.synced()
        watch.send(line("DELETED", project("alpha", 6)))
        await run.expect_events("ENGAGED alpha", "DISENGAGED alpha DELETED")


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
    server_script = ScriptedServer()
    watch = ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    asked = ScriptedResponse()
    server_script.watches = [watch]
    server_script.reads = [answering(unsure), asked]
    async with running(server_script) as run:
        await run.synced()
        watch.send(line("DELETED", project("alpha", 6)))
        await asked.asked.wait()
        assert run.events == ["ENGAGED alpha"]
        assert run.source.collections[0].pending_deletions.explain("alpha") is not None


async def test_deletion_is_not_confirmed_if_reads_of_reference_objects_also_return_404() -> None:
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        *(line("ADDED", project(name, 1)) for name in ("alpha", "beta", "gamma")), bookmark(5, ends_list=True)
    )
    again = ScriptedResponse()
    server_script.watches = [watch]
    server_script.reads = [*(gone(name) for name in ("alpha", "beta", "gamma")), again]
    async with running(server_script) as run:
        await run.synced()
        watch.send(line("DELETED", project("alpha", 6)))
        await eventually(lambda: again.asked.is_set() or len(run.events) > 3)
        assert run.events == ["ENGAGED alpha", "ENGAGED beta", "ENGAGED gamma"]
        why = run.source.collections[0].pending_deletions.explain("alpha")
        assert why is not None
        assert why[1] == "the server lacks other known objects too, so it may be a different server"


async def test_failed_read_of_reference_objects_is_reported() -> None:
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        *(line("ADDED", project(name, 1)) for name in ("alpha", "beta", "gamma")), bookmark(5, ends_list=True)
    )
    again = ScriptedResponse()
    server_script.watches = [watch]
    server_script.reads = [gone("alpha"), answering(lambda: error_status(403, "Forbidden")), gone("gamma"), again]
    async with running(server_script) as run:
        await run.synced()
        watch.send(line("DELETED", project("alpha", 6)))
        await again.asked.wait()
        why = run.source.collections[0].pending_deletions.explain("alpha")
        assert why is not None
        assert why[1].startswith("the server may be a different one, and reading beta from it failed: 403: ")


async def test_deletion_is_confirmed_if_a_read_of_a_reference_object_succeeds() -> None:
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        *(line("ADDED", project(name, 1)) for name in ("alpha", "beta", "gamma")), bookmark(5, ends_list=True)
    )
    server_script.watches = [watch]
    server_script.reads = [gone("alpha"), gone("beta"), answering(lambda: web.json_response(project("gamma", 1)))]
    async with running(server_script) as run:
        await run.synced()
        watch.send(line("DELETED", project("alpha", 6)))
        await run.expect_events("ENGAGED alpha", "ENGAGED beta", "ENGAGED gamma", "DISENGAGED alpha DELETED")


async def test_deletion_is_not_confirmed_before_the_new_watch_answers() -> None:
    server_script = ScriptedServer()
    first, second, read = (
        ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True)),
        ScriptedResponse(),
        ScriptedResponse(),
    )
    server_script.watches, server_script.reads = [first, second], [read]
    async with running(server_script) as run:
        await run.synced()
        first.send(line("DELETED", project("alpha", 6)) + expired())
        await second.asked.wait()
        assert not read.asked.is_set()
        second.send(line("ADDED", project("alpha", 1)) + bookmark(9, ends_list=True))
        await eventually(lambda: not len(run.source.collections[0].pending_deletions))
        assert (run.events, read.asked.is_set()) == (["ENGAGED alpha"], False)


async def test_confirmation_after_source_was_lost_is_ignored() -> None:
    server_script = ScriptedServer()
    first, second = (
        ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True)),
        ScriptedResponse(),
    )
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        asked.set()
        await may_answer.wait()
        return error_status(404, "NotFound", name="alpha")

    server_script.watches, server_script.reads = [first, second], [late]
    async with running(server_script) as run:
        await run.synced()
        first.send(line("DELETED", project("alpha", 6)))
        await asked.wait()
        first.send(expired())
        await second.asked.wait()
        may_answer.set()
        await eventually(lambda: (run.source.collections[0].pending_deletions.explain("alpha") or (0, ""))[1] == LOST)
        second.send(line("ADDED", project("alpha", 1)) + bookmark(9, ends_list=True))
        await eventually(lambda: not len(run.source.collections[0].pending_deletions))
        assert run.events == ["ENGAGED alpha"]


@pytest.mark.parametrize("where", ["head of the list", "list", "watch", "confirmation read", "back-off"])
async def test_source_canceled_at_any_point_ends_at_once_and_closes_its_requests(where: str) -> None:
    server_script = ScriptedServer()
    reached, gone = asyncio.Event(), asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        reached.set()
        try:
            return await asyncio.Future()
        finally:
            gone.set()

    watch = ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))
    match where:
        case "head of the list":
            server_script.watches = [silent]
        case "list":
            server_script.watches, server_script.lists = [answering(lambda: error_status(422, "Invalid"))], [silent]
        case "watch":
            server_script.watches = [watch]
        case "confirmation read":
            server_script.watches, server_script.reads = [watch], [silent]
            watch.send(line("DELETED", project("alpha", 6)))
        case "back-off":
            server_script.watches = [answering(lambda: error_status(500, "InternalError"))]
    async with running(server_script, ReflectorPolicy(backoff=Backoff(first_s=3600, cap_s=3600))) as run:
        match where:
            case "watch":
                await run.synced()
                reached, gone = watch.asked, watch.gone
            case "back-off":
                await eventually(lambda: run.source.status.state is ViewState.STALE)
                gone.set()
            case _:
                await reached.wait()
        run.task.cancel()
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(asyncio.CancelledError):
                await run.task
            await gone.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "confirm" in task.get_name() or "follow" in task.get_name()]


@pytest.mark.parametrize("answer", [project("beta", 1), {"metadata": {}}], ids=["another object", "no name"])
async def test_confirmation_read_that_returns_another_object_is_inconclusive(answer: dict[str, object]) -> None:
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        *(line("ADDED", project(name, 1)) for name in ("alpha", "beta")), bookmark(5, ends_list=True)
    )
    server_script.watches = [watch]
    again = ScriptedResponse()
    server_script.reads = [answering(lambda: web.json_response(answer)), again]
    async with running(server_script) as run:
        await run.synced()
        watch.send(line("DELETED", project("alpha", 6)))
        await again.asked.wait()
        assert run.events == ["ENGAGED alpha", "ENGAGED beta"]
        why = run.source.collections[0].pending_deletions.explain("alpha")
        assert why is not None
        assert why[1].startswith("the response is not the object")


async def test_refused_confirmation_reads_share_one_backoff() -> None:
    server_script = ScriptedServer()
    names = [f"a{number}" for number in range(100)]
    watch = ScriptedResponse(*(line("ADDED", project(name, 1)) for name in names), bookmark(5, ends_list=True))
    server_script.watches = [watch]
    again = ScriptedResponse()
    server_script.reads = [*[answering(lambda: error_status(403, "Forbidden"))] * 20, again]
    async with running(server_script) as run:
        await run.synced()
        watch.send(b"".join(line("DELETED", project(name, 6)) for name in names))
        await again.asked.wait()
        assert run.source.collections[0].pending_deletions.refused == "403: Forbidden"
        assert run.source.collections[0].pending_deletions.take_due(float("inf")) == []


async def test_confirmation_reads_in_flight_have_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "READ_BYTES", 1000)
    monkeypatch.setattr(driver_module, "CONFIRMATION_TIMEOUT_S", 600.0)
    server_script = ScriptedServer()
    names = ("alpha", "beta")
    watch = ScriptedResponse(*(line("ADDED", project(name, 1)) for name in names), bookmark(5, ends_list=True))
    server_script.watches = [watch]
    again = ScriptedResponse()
    server_script.reads = [ScriptedResponse(b"x" * 800), ScriptedResponse(b"x" * 800), again]
    async with running(server_script, request_timeout_s=600.0) as run:
        await run.synced()
        watch.send(b"".join(line("DELETED", project(name, 6)) for name in names))
        async with asyncio.timeout(LIMIT_S):
            await again.asked.wait()
        assert run.events == ["ENGAGED alpha", "ENGAGED beta"]


async def test_deletion_is_confirmed_while_every_watch_expires() -> None:
    server_script = ScriptedServer()
    first = ScriptedResponse(
        *(line("ADDED", project(name, 1)) for name in ("alpha", "beta")), bookmark(5, ends_list=True)
    )
    server_script.watches = [first, *[answering(lambda: error_status(410, "Expired"))] * 10_000]
    server_script.lists = [listing(6 + number, project("beta", 1)) for number in range(10_000)]
    found = answering(lambda: web.json_response(project("beta", 1)))
    server_script.reads = [gone("alpha"), found] * 100
    async with running(server_script, ReflectorPolicy(backoff=QUICK, streaming_lists=True)) as run:
        await run.synced()
        first.end()
        await run.expect_events("ENGAGED alpha", "ENGAGED beta", "DISENGAGED alpha DELETED")


async def test_object_for_which_the_kind_raises_an_unexpected_error_does_not_affect_others() -> None:
    failed: list[str] = []
    mode = ProjectObjects(SourceOptions(project_server="https://milo.test"))

    def observe(found: KubeObject) -> Observation:
        if found.metadata.name == "broken":
            raise ZeroDivisionError
        return mode.observe(found)

    decoder = Decoder(KubeObject, observe, Malformed, failed=lambda key, error: failed.append(key))
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        line("ADDED", project("broken", 1)), line("ADDED", project("alpha", 2)), bookmark(5, ends_list=True)
    )
    server_script.watches = [watch]
    async with running(server_script, decoder=decoder) as run:
        await run.synced()
        assert run.events == ["ENGAGED alpha"]
        watch.send(line("MODIFIED", project("broken", 6)) + line("ADDED", project("beta", 7)))
        await run.expect_events("ENGAGED alpha", "ENGAGED beta")
    assert failed == ["broken", "broken"]


def fails_once(monkeypatch: pytest.MonkeyPatch, of: type, name: str) -> None:
    """Let the next call of a method raise an unexpected exception."""
    method = getattr(of, name)

    def failing(*args: object, **named: object) -> object:
        monkeypatch.setattr(of, name, method)
        raise ZeroDivisionError

    monkeypatch.setattr(of, name, failing)


@pytest.mark.parametrize(
    ("of", "method"),
    [
        pytest.param(ObjectCollection, "apply_events", id="collection"),
        pytest.param(ClusterSource, "_update_progress", id="source"),
        pytest.param(ClusterSource, "set_followed", id="status"),
        pytest.param(Reflector, "events", id="reflector"),
        pytest.param(Decoder, "lines", id="decoder"),
    ],
)
async def test_unexpected_error_of_a_collection_makes_its_source_stale_and_is_retried(
    of: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        line("ADDED", project("alpha", 1)), line("ADDED", project("beta", 2)), bookmark(5, ends_list=True)
    )
    server_script.watches = [
        watch,
        ScriptedResponse(
            line("ADDED", project("alpha", 1)), line("ADDED", project("gamma", 6)), bookmark(7, ends_list=True)
        ),
    ]
    async with running(server_script) as run:
        await run.synced()
        server_script.reads = [gone("beta"), answering(lambda: web.json_response(project("alpha", 1)))]
        with capture_logs() as logs:
            fails_once(monkeypatch, of, method)
            watch.send(line("ADDED", project("gamma", 6)))
            await run.expect_stale("UnexpectedError")
            await eventually(lambda: "DISENGAGED beta DELETED" in run.events)
            await run.synced()
        assert not run.task.done()
        assert sorted(run.events) == ["DISENGAGED beta DELETED", *map("ENGAGED {}".format, ("alpha", "beta", "gamma"))]
    (error,) = logs.errors
    assert "ZeroDivisionError" in error


async def test_source_whose_objects_cause_an_unexpected_error_each_time_is_read_again_with_backoff(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Decoder, "page", failing)
    server_script = ScriptedServer()
    server_script.lists = [listing(5, project("alpha", 1))] * 4
    async with running(server_script, msgspec.structs.replace(DEFAULT_POLICY, streaming_lists=False)) as run:
        await eventually(lambda: not server_script.lists)
        assert run.source.status.reason == "UnexpectedError"
        assert "ZeroDivisionError" in run.source.status.message
        assert run.source.status.retry_at is not None


@pytest.mark.parametrize(
    ("of", "method"),
    [pytest.param(ClusterSource, "tick", id="grace"), pytest.param(PendingDeletions, "take_due", id="deletions")],
)
async def test_unexpected_error_of_the_timers_of_a_source_delays_them(
    of: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "RETRY_S", 0.01)
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        line("ADDED", project("alpha", 1)), line("ADDED", project("beta", 2)), bookmark(5, ends_list=True)
    )
    server_script.watches = [watch]
    async with running(server_script) as run:
        await run.synced()
        server_script.reads = [gone("alpha"), answering(lambda: web.json_response(project("beta", 2)))]
        with capture_logs() as logs:
            fails_once(monkeypatch, of, method)
            watch.send(line("DELETED", project("alpha", 6)))
            await run.expect_events("ENGAGED alpha", "ENGAGED beta", "DISENGAGED alpha DELETED")
    (error,) = logs.errors
    assert "ZeroDivisionError" in error


async def test_unexpected_error_of_a_liveness_probe_does_not_end_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "RETRY_S", 0.01)
    fails_once(monkeypatch, LivenessProbe, "_check")
    policy = msgspec.structs.replace(DEFAULT_POLICY, liveness=LivenessPolicy(every_s=0.1))
    server_script = ScriptedServer()
    server_script.watches = [ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True))]
    server_script.alive = answering(web.Response)
    with capture_logs() as logs:
        async with running(server_script, policy) as run:
            await eventually(lambda: len(run.reads) > 1)
    (error,) = logs.errors
    assert "ZeroDivisionError" in error


async def test_unexpected_error_of_a_confirmation_read_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = Driver._read_object, ["alpha"]

    async def failing(self: Driver, key: str) -> ConfirmationResult:
        if key in failures:
            failures.clear()
            raise ZeroDivisionError
        return await read(self, key)

    monkeypatch.setattr(Driver, "_read_object", failing)
    server_script = ScriptedServer()
    watch = ScriptedResponse(
        *(line("ADDED", project(name, version)) for version, name in enumerate(("alpha", "beta", "gamma"), 1)),
        bookmark(5, ends_list=True),
    )
    server_script.watches = [watch]
    async with running(server_script) as run:
        await run.synced()
        engaged = [f"ENGAGED {name}" for name in ("alpha", "beta", "gamma")]
        server_script.reads = [gone("alpha"), answering(lambda: web.json_response(project("beta", 2)))]
        with capture_logs() as logs:
            watch.send(line("DELETED", project("alpha", 6)))
            await run.expect_events(*engaged, "DISENGAGED alpha DELETED")
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["confirmation failed"]
