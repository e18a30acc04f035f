"""The publisher, with a scripted watch and an API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from milo_discovery import Cluster, DisengageReason, EventType, SourceState
from milo_discovery.events import Event, Synced
from milo_discovery.model import SourceStatus
from milo_discovery.publishing.decisions import Publication
from milo_discovery.publishing.objects import Identity, ObservedObject
from milo_discovery.publishing.publisher import Publisher
from milo_discovery.publishing.rendering import FluxKubeconfigs

from .eventually import eventually
from .kubeconfigs import text, value
from .test_publishing_decisions import ModelServer

FLUX = FluxKubeconfigs()


class Daemon:
    """A client whose only watch yields the events that the test sends."""

    connected = True
    source = SourceStatus(state=SourceState.STREAMING)

    def __init__(self) -> None:
        self.sent = asyncio.Queue()

    @asynccontextmanager
    async def watch(self):
        yield self

    async def feed(self):
        while True:
            yield await self.sent.get()

    def engage(self, name: str, *, server: str = "https://milo.test") -> None:
        issued = value(text(server, token="t"), now=datetime.now(UTC), age=timedelta(), life=timedelta(minutes=10))
        cluster = Cluster(name=name, uid=f"uid-{name}", engaged_at=datetime.now(UTC))
        self.sent.put_nowait(Event(type=EventType.ENGAGED, cluster=cluster, kubeconfig=replace(issued, cluster=name)))

    def disengage(self, name: str, reason: DisengageReason = DisengageReason.DELETED) -> None:
        cluster = Cluster(name=name, uid=f"uid-{name}")
        self.sent.put_nowait(Event(type=EventType.DISENGAGED, cluster=cluster, reason=reason))


class Server(ModelServer):
    """The API server, with the methods of `ApiServer`."""

    async def list(self, identity):
        return [ObservedObject.of(each) for each in self.objects.values()]

    async def get(self, name):
        return self.observed(name)

    async def create(self, body):
        self.put(body)
        return self.observed(body["metadata"]["name"])

    async def apply(self, body, uid, *, subresource=""):
        self.put({**body, "metadata": {**body["metadata"], "uid": uid}})
        return self.observed(body["metadata"]["name"])

    async def delete(self, name, uid, resource_version):
        del self.objects[name]

    @property
    def clusters(self) -> dict[str, str]:
        return {name: ObservedObject.of(each).cluster_uid for name, each in self.objects.items()}


class Publishing:
    def __init__(self) -> None:
        self.daemon, self.server = Daemon(), Server()
        self.reports: list[str] = []
        publication = Publication(FLUX.resource, Identity(publication=FLUX.publication, publisher="milo"))
        self.publisher = Publisher(
            self.daemon,
            self.server,
            publication,
            FLUX,
            resync=timedelta(hours=1),
            report=self.reports.append,
            notice=lambda _: None,
        )


@pytest.fixture
async def publishing() -> AsyncIterator[Publishing]:
    made, done = Publishing(), asyncio.Event()
    running = asyncio.create_task(made.publisher.run({}, done, once=False))
    made.daemon.sent.put_nowait(Synced(clusters=0))
    yield made
    done.set()
    await running


async def test_usable_kubeconfig_clears_the_problem_of_an_unusable_one(publishing):
    publishing.daemon.engage("alpha", server="not a URL")
    await eventually(lambda: publishing.publisher.problems)
    publishing.daemon.engage("alpha")
    await eventually(lambda: publishing.server.clusters == {"alpha-kubeconfig": "uid-alpha"})
    assert publishing.publisher.problems == ()


async def test_disengagement_clears_the_problems_of_a_cluster(publishing):
    publishing.daemon.engage("alpha", server="not a URL")
    publishing.daemon.engage("Not.An.Object")
    await eventually(lambda: len(publishing.publisher.problems) == 2)
    publishing.daemon.disengage("alpha")
    publishing.daemon.disengage("Not.An.Object")
    await eventually(lambda: publishing.publisher.problems == ())


async def test_object_of_disengaged_cluster_goes_to_the_other_cluster_with_its_name(publishing):
    publishing.daemon.engage("eu#alpha")
    publishing.daemon.engage("eu.alpha")
    await eventually(lambda: publishing.server.clusters == {"eu.alpha-kubeconfig": "uid-eu#alpha"})
    assert publishing.publisher.problems == ("the object eu.alpha-kubeconfig belongs to cluster 'eu#alpha'",)
    publishing.daemon.disengage("eu#alpha")
    await eventually(lambda: publishing.server.clusters == {"eu.alpha-kubeconfig": "uid-eu.alpha"})
    assert publishing.publisher.problems == ()


async def test_object_of_moved_cluster_is_left_to_its_new_publisher(publishing):
    publishing.daemon.engage("eu#alpha")
    publishing.daemon.engage("eu.alpha")
    await eventually(lambda: publishing.publisher.problems and publishing.server.clusters)
    publishing.daemon.disengage("eu#alpha", DisengageReason.MOVED)
    publishing.daemon.engage("beta")
    await eventually(lambda: "beta-kubeconfig" in publishing.server.clusters)
    assert publishing.server.clusters["eu.alpha-kubeconfig"] == "uid-eu#alpha"
