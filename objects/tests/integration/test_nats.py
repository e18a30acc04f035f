"""Publishing into a real nats-server, and reading back."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from milo_discovery.errors import CallFailed, ClusterNotFound, StatusError, TimedOut, Unavailable, Unimplemented
from milo_discovery.model import ClusterReport, Engagement, EngagementReason, ServerInfo, Sharding
from milo_kube.http.headers import Headers
from milo_kube.http.server import ServerRequest
from milo_objects import (
    cluster_publication,
    jetstream,
    nats_source,
    publication_records,
    publisher,
    stream_commands,
    stream_reader,
)
from milo_objects.jetstream import NatsOptions, NatsSession, NewStream, StreamLost, WriteConflict, open_session
from milo_objects.messages import Heartbeat, ObjectMessage, ScopeIsOver, ScopeMessage, StoredMessage
from milo_objects.nats_source import NatsSource
from milo_objects.objects import Objects
from milo_objects.projection import ProjectedObject
from milo_objects.publication import StreamAway, StreamConnected
from milo_objects.publisher import ObjectPublisher
from milo_objects.publisher_pages import PublisherPages
from milo_objects.scope import (
    ClusterEnded,
    FleetCluster,
    Gone,
    ObjectChanged,
    ObjectGone,
    Scope,
    Stale,
    Synced,
)
from milo_objects.stream_commands import WriteMessage
from milo_objects.subjects import PUBLISHER, ObjectSubject, ScopeSubject
from milo_sandbox.nats_server import NatsServer, running_nats
from tests.support.eventually import eventually

from .nats_world import NAMESPACES, ROLES, Fleet, World, names, running, settled


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with running_nats(tmp_path) as started:
        yield started


@pytest.fixture
def world(server: NatsServer) -> World:
    return World(server)


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clusters that ended while nobody published them looked for often."""
    for name in ("SECOND_LOOK_S", "LOOK_EVERY_S", "_RETRY_S"):
        monkeypatch.setattr(publisher, name, 0.1)
    monkeypatch.setattr(cluster_publication, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)


async def test_cancellation_is_not_lost_while_the_client_flushes(world: World) -> None:
    async with world.publisher(), world.session() as session:

        async def write() -> None:
            while not session._lost.done():
                await session._publish("milo.objects.large", {}, bytes(1 << 19), lambda _: None)

        os.kill(world.server.pid, signal.SIGSTOP)
        writing = asyncio.create_task(write())
        try:
            transport = session._client._transport._io_writer.transport
            await eventually(lambda: transport.get_write_buffer_size() > 0)
            writing.cancel()
            await asyncio.wait([writing], timeout=5)
            assert writing.cancelled()
        finally:
            os.kill(world.server.pid, signal.SIGCONT)
            writing.cancel()


@pytest.mark.parametrize("name", ["milo-objects publish", "milo-objects"])
@pytest.mark.parametrize("which", [1, 2, 3, 4])
async def test_connection_that_is_lost_at_a_subscription_is_opened_again(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, which: int
) -> None:
    """The first two subscriptions of a connection are for answers, and the others are consumers."""
    subscribe, number = Client.subscribe, 0

    async def lose(client: Client, *args: Any, **options: Any) -> Any:
        nonlocal number
        if client.options["name"] == name:
            number += 1
            if number == which:
                await client.close()
        return await subscribe(client, *args, **options)

    monkeypatch.setattr(Client, "subscribe", lose)
    world.fleet.engage("p")
    world.fleet.put("p", "one")
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: names(objects) == {"one"})
    assert number > which


async def test_event_loop_that_is_late_is_no_silence_of_the_server(world: World) -> None:
    async with world.publisher(), world.session() as session:
        idle: list[None] = []
        receiving = session.consumer([PUBLISHER], 1, lambda *_: None, lambda: idle.append(None), heartbeat_s=0.1)
        async with receiving:
            for _ in range(3):
                count = len(idle)
                time.sleep(1.5)  # noqa: ASYNC251 - longer than the server may be silent
                await eventually(lambda count=count: len(idle) > count or session._lost.done())
            assert not session._lost.done()
            os.kill(world.server.pid, signal.SIGSTOP)
            try:
                with pytest.raises(StreamLost, match="the consumer was silent"):
                    await session.lost()
            finally:
                os.kill(world.server.pid, signal.SIGCONT)


async def test_reader_has_what_the_publisher_follows(world: World) -> None:
    async with world.publisher(), world.reader() as objects:
        world.fleet.engage("web", labels={"env": "prod"}, organization="acme")
        world.fleet.put("web", "default", {"status": {"phase": "Active"}})
        await eventually(lambda: objects.view("v1/namespaces").synced and names(objects) == {"default"})
        (found,) = objects.list("v1/namespaces")
        assert found.object == world.fleet.objects[world.fleet.scope("web")]["", "default"]
        assert found.cluster == world.fleet.clusters["web"]
        world.fleet.put("web", "default", {"status": {"phase": "Terminating"}})
        await eventually(lambda: next(objects.list("v1/namespaces")).object.fields["status"]["phase"] == "Terminating")
        world.fleet.delete("web", "default")
        await eventually(lambda: names(objects) == set())
        world.fleet.end("web")
        await eventually(lambda: not objects.clusters)


async def test_restarted_publisher_changes_nothing_and_publishes_what_changed_meanwhile(world: World) -> None:
    world.fleet.engage("web")
    for number in range(50):
        world.fleet.put("web", f"n{number}", {"status": {"phase": "Active"}})
    async with world.publisher() as first:
        await settled(first)
    before = await world.stored()
    assert len(before) == 52
    async with world.publisher() as second:
        await settled(second)
        assert await world.stored() == before
        assert not second.publication.stored
    world.fleet.put("web", "n7", {"status": {"phase": "Terminating"}})
    async with world.publisher() as third:
        await settled(third)
        assert third.publication.stored == {"object": 1}


async def test_object_that_went_while_nobody_watched_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_publication, "SECOND_LOOK_S", 0.2)
    world.fleet.engage("web")
    for number in range(5):
        world.fleet.put("web", f"n{number}")
    async with world.publisher() as first:
        await settled(first)
    world.fleet.objects[world.fleet.scope("web")].pop(("", "n3"))
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: names(objects) == {"n0", "n1", "n2", "n4"})
    (gone,) = [stored for stored in await world.stored() if "Milo-Gone" in stored.headers]
    assert gone.headers["Milo-Gone"] == "MISSING"
    assert not world.fleet.relisted


async def test_first_list_that_lacks_much_waits_for_a_second_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_publication, "SECOND_LOOK_S", 0.2)
    world.fleet.engage("web")
    for number in range(5):
        world.fleet.put("web", f"n{number}")
    async with world.publisher() as first:
        await settled(first)
    objects_before = world.fleet.objects.pop(world.fleet.scope("web"))
    held = asyncio.Event()
    relisting = world.fleet.relist

    async def relist(scope: Scope) -> None:
        await relisting(scope)
        await held.wait()

    monkeypatch.setattr(world.fleet, "relist", relist)
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: "web" in objects.view("v1/namespaces").outdated)
        assert "5 of 5" in str(objects.view("v1/namespaces").outdated["web"])
        assert names(objects) == {name for _, name in objects_before}
        held.set()
        await eventually(lambda: names(objects) == set() and objects.view("v1/namespaces").synced)


async def test_second_list_is_asked_for_again_after_the_connection_was_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_publication, "SECOND_LOOK_S", 0.2)
    world.fleet.engage("web")
    for number in range(20):
        world.fleet.put("web", f"n{number}")
    async with world.publisher() as first:
        await settled(first)
    for number in range(15):
        world.fleet.objects[world.fleet.scope("web")].pop(("", f"n{number}"))
    sessions: list[NatsSession] = []

    @asynccontextmanager
    async def opened(*arguments: Any) -> AsyncIterator[NatsSession]:
        async with open_session(*arguments) as session:
            sessions.append(session)
            yield session

    async def relist(scope: Scope) -> None:
        world.fleet.relisted.append(scope)
        if len(world.fleet.relisted) == 1:
            await asyncio.Event().wait()

    monkeypatch.setattr(publisher, "open_session", opened)
    monkeypatch.setattr(world.fleet, "relist", relist)
    async with world.publisher() as second, world.reader() as objects:
        await eventually(lambda: second.publication.states() == {"STALE": 1} and second.publication.is_settled)
        sessions[0].lose("cut")
        await eventually(lambda: len(names(objects)) == 5 and objects.view("v1/namespaces").synced)
    assert len(world.fleet.relisted) == 2


async def test_reader_resumes_with_exactly_what_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []
    receive = stream_reader.StreamReader.receive

    def counted(self: Any, stored: StoredMessage, now: float) -> None:
        received.append(stored.subject)
        receive(self, stored, now)

    monkeypatch.setattr(stream_reader.StreamReader, "receive", counted)
    world.fleet.engage("web")
    for number in range(100):
        world.fleet.put("web", f"n{number}")
    objects = Objects(NatsSource(world.options), [NAMESPACES])
    source = objects._source
    async with world.publisher() as publisher:
        await settled(publisher)
        sessions: list[NatsSession] = []
        follow = NatsSession.follow

        async def followed(self: NatsSession, *arguments: Any) -> None:
            sessions.append(self)
            await follow(self, *arguments)

        monkeypatch.setattr(NatsSession, "follow", followed)
        async with running(source.run([NAMESPACES], objects)):
            await eventually(lambda: objects.view("v1/namespaces").synced)
            assert len(received) == 101
            received.clear()
            sessions[0].lose("cut")
            await eventually(lambda: isinstance(objects.fleet, Stale))
            for number in range(0, 100, 2):
                world.fleet.put("web", f"n{number}", {"status": {"phase": "Active"}})
            world.fleet.delete("web", "n1")
            await eventually(lambda: isinstance(objects.fleet, Synced) and len(received) == 51)
            await eventually(lambda: len(objects) == 99)


async def test_killed_server_delays_changes_and_loses_none(world: World) -> None:
    async with world.publisher() as publisher, world.reader() as objects:
        world.fleet.engage("web")
        world.fleet.put("web", "before")
        await eventually(lambda: names(objects) == {"before"})
        await world.server.kill()
        await eventually(lambda: isinstance(publisher.publication.connection, StreamAway))
        world.fleet.delete("web", "before")
        for number in range(100):
            world.fleet.put("web", f"n{number % 10}", {"status": {"phase": str(number)}})
        await eventually(lambda: isinstance(objects.fleet, Stale))
        assert names(objects) == {"before"}  # what is known stays
        await world.server.start()
        await eventually(lambda: names(objects) == {f"n{number}" for number in range(10)})
        await settled(publisher)
        assert publisher.publication.stored["object"] == 12
        assert [text.partition(":")[0] for text in world.reports] == [
            "publishing is interrupted",
            "publishing continues",
        ]


async def test_unexpected_error_about_one_cluster_delays_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_publication, "REREAD_S", 0.1)
    read, failures = NatsSession.last_messages, 3

    async def failing(self: NatsSession, filters: Sequence[str]) -> tuple[list[StoredMessage], int]:
        nonlocal failures
        if failures and "milo.clusters._.bad" in filters:
            failures -= 1
            raise KeyError("unexpected")
        return await read(self, filters)

    monkeypatch.setattr(NatsSession, "last_messages", failing)
    async with world.publisher(), world.reader() as objects:
        for name in ("bad", "good"):
            world.fleet.engage(name)
            world.fleet.put(name, f"in-{name}")
        await eventually(lambda: names(objects) == {"in-good"})
        await eventually(lambda: names(objects) == {"in-good", "in-bad"})
        assert not failures


async def test_pages_have_metrics_and_say_since_when_nats_is_away(world: World) -> None:
    async def page(publisher: ObjectPublisher, path: str) -> tuple[int, str]:
        reply = await PublisherPages(publisher.publication).answer(ServerRequest(path, {}, Headers(), "127.0.0.1"))
        return reply.status, reply.body.decode()

    async with world.publisher() as publisher:
        world.fleet.engage("web")
        world.fleet.put("web", "default")
        await settled(publisher)
        assert await page(publisher, "/readyz") == await page(publisher, "/livez") == (200, "ok\n")
        _, metrics = await page(publisher, "/metrics")
        for line in (
            "milo_objects_connected 1.0",
            "milo_objects_pending 0.0",
            "milo_objects_refused 0.0",
            'milo_objects_scopes{state="SYNCED"} 1.0',
            'milo_objects_messages_total{about="object"} 1.0',
            'milo_objects_failed_writes_total{cause="conflict"} 0.0',
        ):
            assert line in metrics.splitlines()
        await world.server.kill()
        world.fleet.put("web", "another")
        await eventually(lambda: isinstance(publisher.publication.connection, StreamAway))
        status, text = await page(publisher, "/readyz")
        assert status == 503
        assert text.startswith("not ready since ")
        _, metrics = await page(publisher, "/metrics")
        assert {"milo_objects_connected 0.0", "milo_objects_pending 1.0"} <= set(metrics.splitlines())
        assert (await page(publisher, "/"))[0] == 404


async def test_two_publishers_of_one_cluster_write_each_change_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, beat = 0, NatsSession.beat

    async def counted(self: NatsSession, heartbeat: Heartbeat) -> None:
        nonlocal beats
        await beat(self, heartbeat)
        beats += 1

    monkeypatch.setattr(NatsSession, "beat", counted)
    async with world.publisher() as first, world.publisher() as second, world.reader() as objects:
        world.fleet.engage("web")
        for round_number in range(20):
            for number in range(10):
                world.fleet.put("web", f"n{number}", {"status": {"phase": str(round_number)}})
            await asyncio.sleep(0)
        await settled(first)
        await settled(second)
        await eventually(
            lambda: {found.object.fields["status"]["phase"] for found in objects.list("v1/namespaces")} == {"19"}
        )
        async with world.session() as session:
            info = await session.stream()
        assert info.last_sequence == beats + sum(publisher.publication.stored.total() for publisher in (first, second))


async def test_cluster_moves_to_another_publisher(world: World) -> None:
    other = Fleet()
    other._number = 1000
    async with world.publisher() as first, world.publisher(fleet=other) as second, world.reader() as objects:
        world.fleet.engage("web", incarnation="a")
        world.fleet.put("web", "default")
        await settled(first)
        await eventually(lambda: objects.view("v1/namespaces").synced and names(objects) == {"default"})
        other.objects[Scope("web", "b", "v1/namespaces")] = dict(world.fleet.objects[world.fleet.scope("web")])
        kept = world.fleet.objects[world.fleet.scope("web")]["", "default"]
        other.engage("web", incarnation="b")
        other.apply(ObjectChanged(other.scope("web"), kept))
        world.fleet.end("web", "MOVED")
        other.put("web", "another")
        await settled(second)
        await eventually(lambda: names(objects) == {"default", "another"})
        assert objects.view("v1/namespaces").synced
        assert second.publication.stored == {"cluster": 1, "object": 1}


async def test_replaced_cluster_has_none_of_its_predecessors_objects(world: World) -> None:
    async with world.publisher() as publisher, world.reader() as objects:
        world.fleet.engage("web", uid="one")
        world.fleet.put("web", "old")
        await eventually(lambda: names(objects) == {"old"})
        world.fleet.end("web", "REPLACED")
        world.fleet.engage("web", uid="two")
        world.fleet.put("web", "new")
        await eventually(lambda: names(objects) == {"new"})
        await settled(publisher)
        assert [stored.subject for stored in await world.stored() if stored.subject.endswith(("old", "new"))] == [
            "milo.objects._.web.core.namespaces._.new"
        ]


async def test_scope_that_goes_on_after_another_project_of_its_name_is_read_again(world: World) -> None:
    async def write(
        subject: ScopeSubject | ObjectSubject, message: ScopeMessage | ObjectMessage, after: int = 0
    ) -> int:
        stored = asyncio.get_running_loop().create_future()
        await session.write(WriteMessage(subject, message, message.encode(), after, None, 0), stored.set_result)
        found = await stored
        assert isinstance(found, int)
        return found

    state = Synced(datetime(2026, 1, 1, tzinfo=UTC))
    new, former = (FleetCluster(name="web", incarnation=uid, uid=uid) for uid in ("new", "former"))
    namespaces, roles = (ScopeSubject("web", kind.paths.group, kind.paths.plural) for kind in (NAMESPACES, ROLES))
    async with world.session() as session, world.reader((NAMESPACES, ROLES)) as objects:
        await session.stream(NewStream())
        await write(namespaces, ScopeMessage(new, state, 9))
        await write(ObjectSubject(namespaces, "", "a"), ObjectMessage(ProjectedObject("", "a", "u"), 9))
        await eventually(lambda: names(objects) == {"a"})
        written = await write(roles, ScopeMessage(former, state, 10))
        await eventually(lambda: objects.clusters["web"] == former)
        assert names(objects) == set()
        await write(roles, ScopeMessage(former, ScopeIsOver("WITHDRAWN"), 10), written)
        await eventually(lambda: names(objects) == {"a"} and objects.view(NAMESPACES.resource).synced)


async def test_cluster_that_ended_while_nobody_published_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    for name in ("a", "b", "c"):
        world.fleet.engage(name)
        world.fleet.put(name, f"in-{name}")
    async with world.publisher() as first:
        await settled(first)
    world.fleet.clusters.pop("b")
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: names(objects) == {"in-a", "in-c"} and set(objects.clusters) == {"a", "c"})


async def test_ended_cluster_that_cannot_be_looked_up_delays_no_others_and_no_heartbeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: no cluster was ended, and readers were told that no publisher runs."""
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(publisher, "BEAT_EVERY_S", 0.1)
    for name in ("a", "b", "c", "d", "e"):
        world.fleet.engage(name)
    async with world.publisher() as first:
        await settled(first)
    beats: list[None] = []
    get, beat = world.fleet.get, NatsSession.beat

    async def fail_for_one(name: str) -> ClusterReport:
        if name == "b":
            raise CallFailed("unexpected error", code="INTERNAL")
        return await get(name)

    async def counted(session: NatsSession, heartbeat: Heartbeat) -> None:
        beats.append(None)
        await beat(session, heartbeat)

    monkeypatch.setattr(world.fleet, "get", fail_for_one)
    monkeypatch.setattr(NatsSession, "beat", counted)
    for name in ("b", "d"):
        world.fleet.clusters.pop(name)
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: set(objects.clusters) == {"a", "b", "c", "e"} and beats)


async def test_clusters_are_kept_if_the_rest_of_the_fleet_goes_missing_soon_after_a_part_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(publisher, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    for name in "abcdefg":
        world.fleet.engage(name)
    async with world.publisher() as first:
        await settled(first)
    for name in "abc":
        world.fleet.clusters.pop(name)
    async with world.publisher() as second, world.reader() as objects:
        await eventually(lambda: set(objects.clusters) == set("defg"))
        world.fleet.engage("c")
        await eventually(lambda: set(objects.clusters) == set("cdefg"))
        for name in "def":
            world.fleet.end(name, "UNSPECIFIED")
        await eventually(lambda: "lacks 5 of 7 clusters" in "".join(world.reports))
        await settled(second)
        assert set(objects.clusters) == set("cdefg")


async def test_clusters_are_kept_if_the_rest_of_the_fleet_goes_missing_after_a_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: a restarted publisher knew nothing of the ends that the former one had published."""
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    for name in "abcdefg":
        world.fleet.engage(name)
    async with world.publisher() as first:
        await settled(first)
    for name in "abc":
        world.fleet.clusters.pop(name)
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: set(objects.clusters) == set("defg"))
    world.fleet.engage("c")
    for name in "def":
        world.fleet.clusters.pop(name)
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: "lacks 5 of 6 clusters" in "".join(world.reports))  # "c" is a new one
        await eventually(lambda: set(objects.clusters) == set("cdefg"))


def others_of(fleet: Fleet, but: str = "") -> Fleet:
    """Return another fleet with clusters of the same names, each with an object; it has those of `but` too."""
    other = Fleet()
    other._number = 1000
    for name, cluster in fleet.clusters.items():
        other.engage(name, **({"uid": cluster.uid} if name in but else {"uid": f"another {name}"}))
        other.put(name, f"of another {name}")
    return other


def contents(stored: list[StoredMessage]) -> dict[str, tuple[int, bytes]]:
    return {message.subject: (message.sequence, message.body) for message in stored}


@pytest.mark.usefixtures("quick_looks")
async def test_publisher_of_another_fleet_of_the_same_names_writes_nothing(world: World) -> None:
    """Found by a reader: it ended the clusters of the fleet that was published before, and wrote its own."""
    for name in "abc":
        world.fleet.engage(name)
        world.fleet.put(name, f"in-{name}")
    async with world.publisher() as first:
        await settled(first)
    before, other = contents(await world.stored()), others_of(world.fleet)
    async with world.publisher(fleet=other), world.reader() as objects:
        await eventually(lambda: "lacks all 3 clusters" in "".join(world.reports))
        asked = other.asked
        await eventually(lambda: other.asked > asked + 12)
        assert contents(await world.stored()) == before
        assert names(objects) == {"in-a", "in-b", "in-c"}
    async with world.publisher(fleet=other, accepts_removals=True), world.reader() as objects:
        await eventually(lambda: names(objects) == {f"of another {name}" for name in "abc"})
        assert {cluster.uid for cluster in objects.clusters.values()} == {f"another {name}" for name in "abc"}


@pytest.mark.usefixtures("quick_looks")
async def test_publisher_whose_daemon_is_that_of_another_fleet_by_now_writes_nothing(world: World) -> None:
    for name in "abc":
        world.fleet.engage(name)
        world.fleet.put(name, f"in-{name}")
    async with world.publisher() as first:
        await settled(first)
        before, former = contents(await world.stored()), {**world.fleet.clusters}
        for name in "abc":
            world.fleet.end(name, "UNSPECIFIED")  # a snapshot shows this
            world.fleet.engage(name, uid=f"another {name}")
            world.fleet.put(name, f"of another {name}")
        await eventually(lambda: "lacks all 3 clusters" in "".join(world.reports))
        assert contents(await world.stored()) == before
        for name, cluster in former.items():
            world.fleet.end(name, "UNSPECIFIED")
            world.fleet.engage(name, uid=cluster.uid)
            world.fleet.put(name, f"in-{name}")
        world.fleet.put("a", "later")
        async with world.reader() as objects:
            await eventually(lambda: names(objects) == {"in-a", "in-b", "in-c", "later"})


@pytest.mark.usefixtures("quick_looks")
async def test_cluster_of_another_fleet_that_is_written_again_is_not_ended_again(world: World) -> None:
    """Found by a reader: the publisher of the larger one of two fleets ended the clusters of the other again and
    again."""
    for name in "abcdefg":
        world.fleet.engage(name)
    small = Fleet()
    small.engage("small", incarnation="1")
    async with world.publisher() as large, world.publisher(fleet=small), world.reader() as objects:
        await eventually(lambda: "deleted objects were written again (small)" in "".join(world.reports))
        await settled(large)
        asked = world.fleet.asked
        await eventually(lambda: world.fleet.asked > asked + 3 and set(objects.clusters) == {*"abcdefg", "small"})
        stored = contents(await world.stored())
        asked = world.fleet.asked
        await eventually(lambda: world.fleet.asked > asked + 3)
        assert contents(await world.stored()) == stored


@pytest.mark.usefixtures("quick_looks")
async def test_cluster_that_was_replaced_while_nobody_published_is_ended_first(world: World) -> None:
    for name in "abc":
        world.fleet.engage(name)
        world.fleet.put(name, f"in-{name}")
    async with world.publisher() as first:
        await settled(first)
    other, ends = others_of(world.fleet, but="bc"), []
    for name in "bc":
        other.put(name, f"in-{name}")
    async with world.reader() as objects:
        await eventually(lambda: len(names(objects)) == 3)
        changes = objects.changes()
        async with world.publisher(fleet=other), asyncio.timeout(30):
            async for change in changes:
                if isinstance(change, ClusterEnded):
                    ends.append((change.cluster.uid, change.reason))
                if "of another a" in names(objects):
                    break
    assert ends == [("uid of a", "MISSING")]


@pytest.mark.usefixtures("quick_looks")
async def test_clusters_are_kept_if_a_rule_no_longer_covers_most_of_them(world: World) -> None:
    """Found by a reader: they ended at once, and are held if they were taken while the publisher was down."""
    for name in "abcdef":
        world.fleet.engage(name)
    async with world.publisher() as first, world.reader() as objects:
        await settled(first)
        world.fleet.end("f", "REVOKED")
        await eventually(lambda: set(objects.clusters) == set("abcde"))
        for name in "bcd":
            world.fleet.end(name, "REVOKED")
        await eventually(lambda: "lacks 4 of 6 clusters" in "".join(world.reports))
        await settled(first)
        assert set(objects.clusters) == set("abcde")


async def test_clusters_are_kept_if_another_fleet_is_published_in_their_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: the clusters of a wrong daemon counted, so that those of the right one were not most."""
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(publisher, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    for name in "abcdef":
        world.fleet.engage(name)
    async with world.publisher() as first:
        await settled(first)
    for name in "bcdef":
        world.fleet.clusters.pop(name)
    for name in "uvwxyz":
        world.fleet.engage(name)
    async with world.publisher() as second, world.reader() as objects:
        await settled(second)
        await eventually(lambda: "lacks 5 of 6 clusters" in "".join(world.reports))
        for name in "ghijkl":
            world.fleet.engage(name)
        await eventually(lambda: set(objects.clusters) == set("abcdefghijkluvwxyz"))
        reviewed, looks = asyncio.Event(), iter(range(3))
        review = second._removals.review

        def counted(*given: Any, **named: Any) -> Any:
            confirmed = review(*given, **named)
            if next(looks, None) is None:
                reviewed.set()
            return confirmed

        monkeypatch.setattr(second._removals, "review", counted)
        await reviewed.wait()
        assert set(objects.clusters) == set("abcdefghijkluvwxyz")
        assert second._removals.problem.startswith("the daemon's view lacks 5 of 6 clusters")


@pytest.mark.parametrize("has_others", [False, True])
async def test_clusters_are_kept_if_a_member_of_the_group_lacks_many_whichever_member_owns_them(
    world: World, monkeypatch: pytest.MonkeyPatch, has_others: bool
) -> None:
    """Found by a reader: each member compared what it owns with those of all members, and ended its share."""
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(publisher, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    owned = {f"owned-{number}" for number in range(3)}
    for name in (*owned, *(f"of-others-{number}" for number in range(6))):
        world.fleet.engage(name)
    async with world.publisher() as first:
        await settled(first)

    async def get(name: str) -> ClusterReport:
        reason = "" if name in owned else "ASSIGNED_ELSEWHERE"
        world.fleet.asked += 1
        if has_others and name not in owned:
            return ClusterReport(engagement=Engagement(reason=EngagementReason.UNASSIGNED, assigned_elsewhere=True))
        raise ClusterNotFound(name, code="NOT_FOUND", reason=reason)

    monkeypatch.setattr(world.fleet, "get", get)
    world.fleet.clusters.clear()
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: world.fleet.asked >= 9 * 5)
        await eventually(lambda: len(objects.clusters) == (6 if has_others else 9))


async def test_cluster_that_another_member_of_the_group_may_have_engaged_is_not_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    for name in ("a", "b", "c"):
        world.fleet.engage(name)
        world.fleet.put(name, f"in-{name}")
    async with world.publisher() as first:
        await settled(first)
    world.fleet.clusters.pop("b")
    world.fleet.not_found_reason = "ASSIGNED_ELSEWHERE"
    monkeypatch.setattr(publisher, "LOOK_EVERY_S", 0.1)
    async with world.publisher() as second, world.reader() as objects:
        await settled(second)
        await eventually(lambda: world.fleet.asked > 4)
        assert names(objects) == {"in-a", "in-b", "in-c"}


async def test_kind_that_is_no_longer_declared_is_withdrawn(world: World) -> None:
    kinds = (NAMESPACES, ROLES)
    world.fleet.engage("web", kinds=kinds)
    world.fleet.put("web", "default")
    world.fleet.put("web", "admin", kind=ROLES)
    async with world.publisher(kinds) as first:
        await settled(first)
    async with world.publisher(), world.reader(kinds) as objects:
        await eventually(lambda: names(objects, ROLES) == set() and names(objects) == {"default"})
    assert not [stored for stored in await world.stored() if "clusterroles._" in stored.subject]


async def test_withdrawn_kind_that_a_publisher_with_the_former_declaration_writes_is_withdrawn_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "LOOK_EVERY_S", 0.2)
    kinds = (NAMESPACES, ROLES)
    world.fleet.engage("web", kinds=kinds)
    world.fleet.put("web", "admin", kind=ROLES)
    new = Fleet()
    new.clusters, new.objects = world.fleet.clusters, world.fleet.objects
    async with world.publisher(fleet=new) as present, world.reader(kinds) as objects:
        async with world.publisher(kinds) as former:  # which is stopped only after a while
            await eventually(lambda: names(objects, ROLES) == {"admin"} or former.publication.is_settled)
        await settled(present)
        await eventually(lambda: objects.clusters and names(objects, ROLES) == set())
        await eventually(lambda: ROLES.resource not in {scope.resource for scope in objects.scopes("web")})


async def test_objects_of_an_ended_scope_whose_publisher_was_killed_are_purged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def killed(*_: object) -> None:
        ended.set()
        await asyncio.Event().wait()

    world.fleet.engage("web")
    world.fleet.put("web", "default")
    with monkeypatch.context() as patch:
        patch.setattr(NatsSession, "purge", killed)
        async with world.publisher() as first:
            await settled(first)
            world.fleet.end("web")
            await ended.wait()
    assert any(stored.subject.endswith(".default") for stored in await world.stored())
    async with world.publisher(), world.session() as session:
        for _ in range(100):
            if len(left := (await session.last_messages(["milo.clusters.>", "milo.objects.>"]))[0]) == 2:
                break
            await asyncio.sleep(0.1)
    assert {stored.headers["Milo-State"] for stored in left} == {"ENDED"}


async def test_deleted_stream_is_refused_with_the_remedy_and_written_again_when_it_exists(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "_HEARTBEAT_S", 0.2)
    world.fleet.engage("web")
    world.fleet.put("web", "default")
    async with world.publisher(new=NewStream()) as first:
        await settled(first)
    async with world.publisher(new=None) as publisher, world.reader() as objects:
        await eventually(lambda: names(objects) == {"default"})
        async with world.session() as session:
            await session.call("STREAM.DELETE.milo")
            world.fleet.put("web", "another")
            await eventually(lambda: any("--create-stream" in text for text in world.reports))
            assert isinstance(publisher.publication.connection, StreamAway)
            await session.stream(NewStream())
        await eventually(lambda: names(objects) == {"default", "another"} and objects.view("v1/namespaces").synced)


async def test_stream_that_is_created_again_between_two_heartbeats_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "_HEARTBEAT_S", 0.2)
    beating, beat = asyncio.Event(), NatsSession.beat

    async def held(self: NatsSession, heartbeat: Heartbeat) -> int:
        await beating.wait()
        return await beat(self, heartbeat)

    monkeypatch.setattr(NatsSession, "beat", held)
    world.fleet.engage("web")
    world.fleet.put("web", "default")
    async with world.publisher() as publisher, world.reader() as objects:
        await eventually(lambda: names(objects) == {"default"} and publisher.publication.is_settled)
        before = {stored.subject for stored in await world.stored()}
        async with world.session() as session:
            await session.call("STREAM.DELETE.milo")
            await session.stream(NewStream())
        beating.set()
        await eventually(lambda: "publishing continues" in world.reports)
        await settled(publisher)
        assert {stored.subject for stored in await world.stored()} == before


async def test_purged_stream_is_written_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "LOOK_EVERY_S", 0.1)
    world.fleet.engage("web")
    world.fleet.put("web", "default")
    async with world.publisher() as first:
        await settled(first)
        async with world.session() as session:
            await session.call("STREAM.PURGE.milo")
        async with world.reader() as objects:
            await eventually(lambda: names(objects) == {"default"})


async def test_reader_keeps_what_a_lost_stream_had_until_it_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "_HEARTBEAT_S", 0.2)
    for name in ("web", "db"):
        world.fleet.engage(name)
        world.fleet.put(name, f"of-{name}")
    async with world.reader() as objects:
        async with world.publisher() as first:
            await settled(first)
        await eventually(lambda: names(objects) == {"of-web", "of-db"} and isinstance(objects.fleet, Synced))
        async with world.session() as session:
            await session.call("STREAM.DELETE.milo")
            await session.stream(NewStream())
        await eventually(lambda: "until publishers have written it again" in objects.fleet.problem)
        assert names(objects) == {"of-web", "of-db"}
        async with world.publisher():
            await eventually(lambda: isinstance(objects.fleet, Synced))
            assert names(objects) == {"of-web", "of-db"}


async def test_reader_says_since_when_no_publisher_is_heard(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "_HEARTBEAT_S", 0.1)
    monkeypatch.setattr(publisher, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr(stream_reader, "SILENT_S", 1.0)
    world.fleet.engage("web")
    world.fleet.put("web", "default")
    async with world.reader() as objects:
        async with world.publisher() as first:
            await settled(first)
            await eventually(lambda: isinstance(objects.fleet, Synced) and names(objects) == {"default"})
            before = datetime.now(UTC)
        await eventually(lambda: "no publisher has been heard since" in objects.fleet.problem)
        assert abs((objects.fleet.since - before).total_seconds()) < 1.0
        assert objects.view("v1/namespaces").is_complete
        async with world.reader() as late:
            await eventually(lambda: "no publisher has been heard since" in late.fleet.problem)
        world.fleet.problems = {"": "its first list is not complete"}
        async with world.publisher() as second:  # such as one without a daemon
            await settled(second)
            assert "no publisher has been heard since" in objects.fleet.problem
            world.fleet.problems = {"": ""}
            await eventually(lambda: isinstance(objects.fleet, Synced))


async def test_dead_publisher_of_a_shard_group_is_not_hidden_by_another_member(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr(stream_reader, "SILENT_S", 1.0)
    fleets = {name: Fleet() for name in ("zero", "one")}
    for member, fleet in fleets.items():
        fleet.info = ServerInfo(sharding=Sharding(member=member))
        fleet.not_found_reason = "ASSIGNED_ELSEWHERE"
        fleet.engage(f"of-{member}")
        fleet.put(f"of-{member}", "default")

    async with world.reader() as objects, world.publisher(fleet=fleets["zero"]):
        async with world.publisher(fleet=fleets["one"]) as dying:
            await settled(dying)
            await eventually(lambda: objects.view("v1/namespaces").synced == 2 and isinstance(objects.fleet, Synced))
            await eventually(lambda: not objects.view("v1/namespaces").outdated)
        await eventually(lambda: set(objects.view("v1/namespaces").outdated) == {"of-one"})
        view = objects.view("v1/namespaces")
        assert "publisher one has not been heard since" in view.outdated["of-one"].problem
        assert isinstance(view.fleet, Stale)
        assert view.fleet.problem == view.outdated["of-one"].problem
        fleets["zero"].engage("of-one", incarnation="moved")
        await eventually(lambda: isinstance(objects.fleet, Synced) and not objects.view("v1/namespaces").outdated)


async def test_cluster_that_moves_to_a_member_without_a_publisher_is_stale(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: it was SYNCED for as long as its former publisher ran."""
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    fleets = {name: Fleet() for name in ("zero", "one")}
    for member, fleet in fleets.items():
        fleet.info = ServerInfo(sharding=Sharding(member=member))
        fleet.not_found_reason = "ASSIGNED_ELSEWHERE"
    async with world.reader() as objects, world.publisher(fleet=fleets["zero"]) as former:
        for name in ("web", "shop"):
            fleets["zero"].engage(name)
        await settled(former)
        await eventually(lambda: objects.view("v1/namespaces").synced == 2 and isinstance(objects.fleet, Synced))
        fleets["zero"].end("web", "MOVED")
        await eventually(lambda: set(objects.view("v1/namespaces").outdated) == {"web"})
        assert objects.view("v1/namespaces").outdated["web"].problem == "no publisher follows it"
        assert isinstance(objects.fleet, Synced)
        fleets["one"].engage("web", incarnation="moved")
        async with world.publisher(fleet=fleets["one"]):
            await eventually(lambda: not objects.view("v1/namespaces").outdated)


async def test_clusters_whose_ends_are_held_are_not_followed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a reader: they were SYNCED."""
    monkeypatch.setattr(publisher, "SILENT_S", 0.1)
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(publisher, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(stream_reader, "SILENT_S", 1.0)
    for name in ("a", "b", "c"):
        world.fleet.engage(name)
    async with world.publisher() as first:
        await settled(first)
    world.fleet.clusters.clear()
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: "lacks all 3 clusters" in "".join(world.reports))
        await eventually(lambda: set(objects.view("v1/namespaces").outdated) == {"a", "b", "c"})


async def test_followed_clusters_are_current_while_the_ends_of_others_are_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: all of the source were outdated without limit."""
    monkeypatch.setattr(publisher, "SILENT_S", 0.1)
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(publisher, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    monkeypatch.setattr(stream_reader, "SILENT_S", 1.0)
    for name in ("a", "b", "c", "d", "e"):
        world.fleet.engage(name)
    async with world.publisher() as first:
        await settled(first)
    for name in ("c", "d", "e"):
        world.fleet.clusters.pop(name)
    async with world.publisher(), world.reader() as objects:

        def problems() -> dict[str, str]:
            view = objects.view("v1/namespaces")
            return {name: getattr(state, "problem", "") for name, state in {**view.missing, **view.outdated}.items()}

        await eventually(lambda: "lacks 3 of 5 clusters" in "".join(world.reports))
        unfollowed = dict.fromkeys(("c", "d", "e"), "no publisher follows it")
        await eventually(lambda: isinstance(objects.fleet, Synced) and problems() == unfollowed)
        assert set(objects.clusters) == {"a", "b", "c", "d", "e"}


async def test_second_publisher_whose_ends_are_held_leaves_clusters_to_the_first_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: during a rollout they were STALE, because "no publisher follows it"."""
    for name, value in {"SECOND_LOOK_S": 0.1, "BEAT_EVERY_S": 0.1, "_RETRY_S": 0.1}.items():
        monkeypatch.setattr(publisher, name, value)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    for name in ("a", "b", "c", "d", "e"):
        world.fleet.engage(name)
    fleet = Fleet()
    fleet.clusters = {name: world.fleet.clusters[name] for name in ("a", "b")}

    def states() -> dict[str, str]:
        view = objects.view("v1/namespaces")
        return {name: getattr(state, "problem", "") for name, state in {**view.missing, **view.outdated}.items()}

    async with world.reader() as objects, AsyncExitStack() as second:
        async with world.publisher() as first:
            await settled(first)
            await eventually(lambda: objects.view("v1/namespaces").synced == 5 and isinstance(objects.fleet, Synced))
            await second.enter_async_context(world.publisher(fleet=fleet))
            await eventually(lambda: "lacks 3 of 5 clusters" in "".join(world.reports))
            asked = fleet.asked
            await eventually(lambda: fleet.asked > asked + 6)
            assert {stored.headers["Milo-State"] for stored in await world.stored()} == {"ENGAGED", "SYNCED"}
        monkeypatch.setattr(publisher, "SILENT_S", 0.1)
        unfollowed = dict.fromkeys(("c", "d", "e"), "no publisher follows it")
        await eventually(lambda: isinstance(objects.fleet, Synced) and states() == unfollowed)


async def test_cluster_that_the_daemon_has_left_for_an_unknown_reason_is_looked_for_soon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: it was SYNCED for five minutes more."""
    monkeypatch.setattr(publisher, "SECOND_LOOK_S", 0.1)
    monkeypatch.setattr("milo_discovery.removals.SECOND_LOOK_S", 0.1)
    async with world.publisher() as followed, world.reader() as objects:
        for name in ("a", "b", "c", "d"):
            world.fleet.engage(name)
        await settled(followed)
        await eventually(lambda: len(objects.clusters) == 4)
        world.fleet.end("b", "UNSPECIFIED")
        await eventually(lambda: set(objects.clusters) == {"a", "c", "d"})


@pytest.mark.parametrize(
    "error",
    [
        CallFailed("too many calls", code="RESOURCE_EXHAUSTED"),
        TimedOut("late", code="DEADLINE_EXCEEDED"),
        Unavailable("away", code="UNAVAILABLE"),
    ],
    ids=lambda error: error.code,
)
async def test_publisher_keeps_its_name_while_the_daemon_cannot_return_it(
    world: World, monkeypatch: pytest.MonkeyPatch, error: StatusError
) -> None:
    monkeypatch.setattr(publisher, "LOOK_EVERY_S", 0.05)
    world.fleet.info = error
    async with world.publisher() as member:
        await eventually(lambda: world.fleet.asked_info > 1)
        assert member.publication.publisher is None
        for info, name in (
            (ServerInfo(sharding=Sharding(member="one")), "one"),
            (Unimplemented("old", code="UNIMPLEMENTED"), ""),
            (ServerInfo(sharding=Sharding(member="two")), "two"),
            (ServerInfo(), ""),
            (ServerInfo(sharding=Sharding(member="three")), "three"),
        ):
            world.fleet.info = info
            await eventually(lambda name=name: member.publication.publisher == name)
        world.fleet.info, asked = error, world.fleet.asked_info
        await eventually(lambda: world.fleet.asked_info > asked + 1)
        assert member.publication.publisher == "three"


async def test_stale_source_is_stale_for_readers_and_silences_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr(stream_reader, "SILENT_S", 1.0)
    world.fleet.problems = {"a": "", "b": ""}
    for key in ("a#web", "b#web"):
        world.fleet.engage(key)
        world.fleet.put(key, "default")
    async with world.publisher(), world.reader() as objects:
        await eventually(lambda: objects.view("v1/namespaces").synced == 2 and isinstance(objects.fleet, Synced))
        world.fleet.problems = {"a": "", "b": "the source is stale: no answer"}
        await eventually(lambda: set(objects.view("v1/namespaces").outdated) == {"b#web"})
        assert objects.fleet.problem == "b: the source is stale: no answer"
        world.fleet.end("a#web")
        await eventually(lambda: set(objects.clusters) == {"b#web"})
        world.fleet.problems = {"a": "", "b": ""}
        await eventually(lambda: isinstance(objects.fleet, Synced) and not objects.view("v1/namespaces").outdated)


async def test_publisher_without_anything_to_write_notices_that_the_stream_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "BEAT_EVERY_S", 0.1)
    async with world.publisher() as first:
        await settled(first)
    async with world.publisher(new=None), world.session() as session:
        await session.call("STREAM.DELETE.milo")
        await eventually(lambda: any("--create-stream" in text for text in world.reports))


async def test_certificate_that_cannot_be_read_is_reported_as_a_lost_connection(world: World, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("half of a certificate")
    with pytest.raises(StreamLost, match=r"PEM|X509"):
        async with open_session(NatsOptions(servers=(world.server.url,), ca=tmp_path / "ca.crt"), "test"):
            pass


async def test_changed_stream_is_refused_with_the_remedy(world: World) -> None:
    async with world.publisher() as publisher:
        world.fleet.engage("web")
        await settled(publisher)
    async with world.session() as session:
        found = json.loads(await session.call("STREAM.INFO.milo"))
        await session.call("STREAM.UPDATE.milo", {**found["config"], "discard": "old"})
    source = ObjectPublisher(
        world.fleet, world.fleet, [NAMESPACES], world.options, NewStream(), report=world.reports.append
    )
    async with running(source.run()):
        await eventually(lambda: any("run: nats stream edit milo --discard=new" in text for text in world.reports))
        assert not isinstance(source.publication.connection, StreamConnected)


async def test_full_stream_refuses_new_objects_and_takes_them_once_it_is_larger(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_publication, "RETRY_S", 0.2)
    async with world.publisher(new=NewStream(max_bytes=64 << 10)) as publisher, world.reader() as objects:
        world.fleet.engage("web")
        for number in range(100):
            world.fleet.put("web", f"n{number}", {"status": {"phase": "x" * 1000}})
        await eventually(lambda: publisher.publication.refused > 0)
        known = names(objects)
        await eventually(lambda: "maximum bytes exceeded" in str(objects.view("v1/namespaces").missing.get("web")))
        world.fleet.delete("web", "n0")  # which needs no more space
        await eventually(lambda: "n0" not in names(objects))
        assert known - {"n0"} <= names(objects)
        async with world.session() as session:
            found = json.loads(await session.call("STREAM.INFO.milo"))
            await session.call("STREAM.UPDATE.milo", {**found["config"], "max_bytes": 1 << 20})
        await eventually(lambda: len(names(objects)) == 99 and objects.view("v1/namespaces").synced)


async def test_full_stream_takes_that_objects_and_clusters_are_gone(world: World) -> None:
    async with world.publisher(new=NewStream(max_bytes=64 << 10)) as publisher, world.reader() as objects:
        world.fleet.engage("old")
        for number in range(5):
            world.fleet.put("old", f"o{number}")
        await eventually(lambda: len(names(objects)) == 5)
        world.fleet.engage("web")
        for size in (150, 0):  # the small ones take what the others leave
            for number in range(400):
                world.fleet.put("web", f"n{number} {size}", {"status": {"phase": "x" * size}} if size else None)
            await eventually(lambda: publisher.publication.refused and not publisher.publication.pending)
        world.fleet.delete("old", "o0")
        await eventually(lambda: "o0" not in names(objects))
        world.fleet.put("web", "more")
        world.fleet.end("old")
        await eventually(lambda: set(objects.clusters) == {"web"})
        assert world.reports == []


async def test_account_that_has_its_limit_refuses_messages_and_ends_no_connection(tmp_path: Path) -> None:
    """Found by a reader: the publisher connected again for ever."""
    limited = {"jetstream": {"max_file": 64 << 10}, "users": [{"user": "u", "password": "p"}]}
    async with running_nats(tmp_path, {"accounts": {"A": limited}, "no_auth_user": "u"}) as server:
        world = World(server)
        async with world.publisher() as publisher:
            world.fleet.engage("web")
            for number in range(100):
                world.fleet.put("web", f"n{number}", {"status": {"phase": "x" * 1000}})
            await eventually(lambda: publisher.publication.refused > 0 and not publisher.publication.pending)
            assert not world.reports


@pytest.mark.parametrize("code", [10071, 10164])
async def test_write_that_another_one_forestalls_ends_no_connection(world: World, code: int) -> None:
    """Found with three servers: two publishers interrupted each other, since a stream with replicas answers 10164 while
    the other write is not stored yet."""
    answers: list[int | Exception] = []
    error = {"code": 400, "err_code": code, "description": "wrong last sequence"}
    async with world.session() as session:
        session._acknowledged(Msg(session._client, data=json.dumps({"error": error}).encode()), answers.append)
        assert not session._lost.done()
    assert [type(answer) for answer in answers] == [WriteConflict]


async def test_object_above_max_payload_is_named_and_delays_no_other(world: World) -> None:
    async with world.publisher() as publisher, world.reader() as objects:
        world.fleet.engage("web")
        world.fleet.put("web", "huge", {"status": {"phase": "x" * (3 << 19)}}, namespace="team")
        world.fleet.put("web", "n" * 3000)
        world.fleet.put("web", "small")
        await eventually(lambda: names(objects) == {"small"} and publisher.publication.refused == 2)
        await eventually(lambda: "web" in objects.view("v1/namespaces").missing)
        await eventually(lambda: publisher.publication.states() == {"OVER_BUDGET": 1})
        world.fleet.put("web", "huge", namespace="team")
        await eventually(lambda: publisher.publication.refused == 1)
        world.fleet.apply(
            ObjectGone(
                world.fleet.scope("web"),
                world.fleet.objects[world.fleet.scope("web")]["", "n" * 3000],
                Gone.OBJECT_DELETED,
            )
        )
        await eventually(lambda: objects.view("v1/namespaces").synced and names(objects) == {"small", "huge"})


async def test_names_with_every_legal_character_are_published(world: World) -> None:
    hostile = [chr(code) for code in [*range(32, 0x180), 0x2028, 0x1F600] if chr(code) not in "/%"]
    hostile += ["..a..", "system:a.b", ">", "*", "a b", "_", "state"]
    async with world.publisher((ROLES,)), world.reader((ROLES,)) as objects:
        world.fleet.engage("web", kinds=(ROLES,))
        for name in hostile:
            world.fleet.put("web", name, kind=ROLES)
        await eventually(lambda: names(objects, ROLES) == set(hostile))


async def test_reader_that_was_away_for_too_long_sweeps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (publication_records, cluster_publication, stream_commands):
        monkeypatch.setattr(module, "GONE_TTL_S", 1.0)
    monkeypatch.setattr(stream_reader, "RESUMABLE_S", -1.0)
    async with world.publisher() as publisher:
        for name in ("web", "db"):
            world.fleet.engage(name)
            world.fleet.put(name, f"old-{name}")
        await settled(publisher)
        back = asyncio.Event()
        back.set()
        sessions: list[NatsSession] = []

        @asynccontextmanager
        async def opened(*arguments: Any) -> AsyncIterator[NatsSession]:
            await back.wait()
            async with open_session(*arguments) as session:
                sessions.append(session)
                yield session

        monkeypatch.setattr(nats_source, "open_session", opened)
        async with world.reader() as objects:
            await eventually(lambda: names(objects) == {"old-web", "old-db"})
            back.clear()
            sessions[0].lose("cut")
            world.fleet.delete("web", "old-web")
            world.fleet.put("web", "new-web")
            world.fleet.end("db")
            await eventually(lambda: publisher.publication.is_settled and "db" not in publisher.publication.clusters)
            await expired(world)
            assert names(objects) == {"old-web", "old-db"}
            back.set()
            await eventually(lambda: names(objects) == {"new-web"} and set(objects.clusters) == {"web"})


async def expired(world: World) -> None:
    for _ in range(100):
        if not [stored for stored in await world.stored() if "Milo-Gone" in stored.headers]:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("gone-messages do not expire")
