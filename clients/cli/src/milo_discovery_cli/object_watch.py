"""Prints the objects of all selected clusters, and then their changes. Follows engagements and disengagements."""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from milo_discovery.cluster_api import ClusterApi
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import DiscoveryError, TimedOut
from milo_discovery.events import Event, Refreshed, Synced
from milo_discovery.model import EventType
from milo_discovery_cli.cluster_objects import KnownResources, Unanswered
from milo_discovery_cli.exit_status import CommandFailure, ExitStatus, print_message
from milo_discovery_cli.fleet_objects import AT_ONCE, USER_AGENT, naming_options, suggested
from milo_discovery_cli.names import why_not_selected
from milo_discovery_cli.object_changes import KnownObjects, ObservationDecoder, TooManyObjectsError
from milo_discovery_cli.object_output import Form, Line
from milo_discovery_cli.object_request import ObjectScope, Query, Wanted
from milo_discovery_cli.options import ConnectionOptions
from milo_discovery_cli.served_resources import ServedResource
from milo_discovery_cli.watch import StreamMessages, exit_with_reader
from milo_kube.api_request import Answer, Stream
from milo_kube.api_server import CONNECT_TIMEOUT_S, Pools
from milo_kube.list_watch import ListWatch
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.messages import EventIgnored, ListEnded
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.view_status import ViewState
from milo_kube.task_groups import unwrap_single_error

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.options import FilterOptions, WatchOptions

_POLICY = ReflectorPolicy(streaming_lists=False, page_size=500)
_PENDING_BATCHES = 64
_AT_ONCE_LINES = 500
_RETRY = Backoff(first_s=1.0, cap_s=30.0)


_FLEET = ""
"""Stands among clusters for the list of clusters itself."""
_NOT_SERVED_S = 300.0
"""How long to wait until a cluster that does not serve the resource is asked again."""


class _NotServedError(Exception):
    """A cluster does not serve the resource."""


class _NeverServed(CommandFailure):
    """No cluster serves the resource."""

    exit_code = ExitStatus.NOT_FOUND


class _Collection(NamedTuple):
    """What to list and watch."""

    path: str
    parameters: Query

    @property
    def query(self) -> list[tuple[str, str]]:
        return [*self.parameters]


class _Requests:
    """The requests to one cluster. Lists take turns with those of other clusters."""

    def __init__(self, api: ClusterApi, accept: str, turns: asyncio.Semaphore) -> None:
        self._api = api
        self._accept = accept
        self._turns = turns

    async def get(self, path: str, query: Any = (), *, timeout_s: float, accept: str = "") -> Answer:
        async with self._turns:
            accepted = accept or self._accept
            return await self._api.get(path, query, timeout_s=timeout_s, accept=accepted)

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]:
        return self._api.stream(
            path, query, connect_timeout_s=connect_timeout_s, silence_s=silence_s, accept=self._accept
        )


class FleetWatch:
    """The wanted objects of all selected clusters, and their changes."""

    def __init__(
        self, connection: ConnectionOptions, scope: ObjectScope, wanted: tuple[Wanted, ...], form: Form
    ) -> None:
        assert connection.timeout is not None
        self._connection = connection
        self._timeout_s = connection.timeout.total_seconds()
        self._scope = scope
        self._name = wanted[0].resources[0]
        self._names = wanted[0].names
        self._form = form
        self._known = KnownResources(self._timeout_s)
        self._lines: asyncio.Queue[list[Line] | CommandFailure] = asyncio.Queue(_PENDING_BATCHES)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._following: dict[str, tuple[EngagedCluster, asyncio.Task[None]]] = {}
        self._unlisted = {_FLEET}
        """Clusters whose objects were not listed yet, and which have not failed."""
        self._not_served: set[str] = set()
        self._refused: set[str] = set()
        """Clusters that answer the request with 400, as to an unknown field in a selector."""
        self._empty: str | None = ""
        """The full name of the resource, once some cluster has listed its objects; None if there were any."""

    async def print(self, client: DiscoveryClient, only: FilterOptions) -> ExitStatus:
        """Print until the task is canceled. Raises CommandFailure if no cluster serves the resource."""
        exit_with_reader(asyncio.get_running_loop())
        options = cast("WatchOptions", {**only, "include_kubeconfigs": True})
        pools = Pools(user_agent=USER_AGENT)
        try:
            with unwrap_single_error(), naming_options():
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._follow_fleet(client, options, pools, tasks), name="follow clusters")
                    while True:
                        await self._print_lines()
        finally:
            await pools.aclose()

    async def _print_lines(self) -> None:
        lines: list[Line] = []
        while not lines or (len(lines) < _AT_ONCE_LINES and not self._lines.empty()):
            found = await self._lines.get()
            if isinstance(found, CommandFailure):
                raise found
            lines += found
        # In a thread, since a reader that waits must not end the watches.
        await asyncio.to_thread(click.echo, self._form.text(lines), nl=False)

    async def _follow_fleet(
        self, client: DiscoveryClient, options: WatchOptions, pools: Pools, tasks: asyncio.TaskGroup
    ) -> None:
        messages = StreamMessages(self._connection)
        is_synced = False
        async with client.watch(**options) as watch, aclosing(watch.feed()) as feed:
            try:
                async with asyncio.timeout(self._timeout_s) as sync_timeout:
                    async for item in feed:
                        match item:
                            case Event(type=EventType.ENGAGED):
                                if is_synced:
                                    print_message(f"{item.cluster.name}: engaged")
                                cluster = EngagedCluster(item.cluster, item.kubeconfig, client.api_clients)
                                self._engage(cluster, pools, tasks)
                            case Event(type=EventType.DISENGAGED):
                                self._disengage(item)
                            case Event() | Refreshed():
                                kubeconfig = item.kubeconfig if isinstance(item, Event) else None
                                self._following[item.cluster.name][0].refresh(item.cluster, kubeconfig)
                            case _:
                                messages.print(item)
                                if isinstance(item, Synced):
                                    is_synced = True
                                    sync_timeout.reschedule(None)
                                    await self._listed(_FLEET)
                                    for name in sorted({*options["names"]} - self._following.keys()):
                                        print_message(f"{name}: {await why_not_selected(client, name)}")
            except TimeoutError:
                timed_out = TimedOut(
                    f"no complete view from {self._connection.address} within --timeout", code="DEADLINE_EXCEEDED"
                )
                raise messages.last_error or timed_out from None

    def _engage(self, cluster: EngagedCluster, pools: Pools, tasks: asyncio.TaskGroup) -> None:
        self._unlisted.add(cluster.name)
        task = tasks.create_task(self._follow(cluster, pools), name=f"cluster {cluster.name}")
        self._following[cluster.name] = cluster, task

    def _disengage(self, event: Event) -> None:
        name = event.cluster.name
        cluster, task = self._following.pop(name)
        cluster.disengage(event.reason)
        task.cancel()
        self._unlisted.discard(name)
        self._not_served.discard(name)
        self._refused.discard(name)
        reason = event.reason.name if event.reason.value else ""
        print_message(": ".join(filter(None, (name, "disengaged", reason, event.message))))

    async def _follow(self, cluster: EngagedCluster, pools: Pools) -> None:
        """Follow one cluster until it is disengaged. Its failures are printed, and end nothing."""
        changes, failures, last = KnownObjects(), 0, ""
        while True:
            try:
                await self._follow_once(cluster, pools, changes)
            except _NotServedError:
                self._not_served.add(cluster.name)
                await self._listed(cluster.name)
                await asyncio.sleep(_NOT_SERVED_S)
                continue
            except (Unanswered, DiscoveryError, TooManyObjectsError) as error:
                last = await self._print_failure(cluster.name, str(error), last)
            except Exception as error:  # noqa: BLE001  (what one cluster sends must not affect the others)
                last = await self._print_failure(cluster.name, f"{type(error).__name__}: {error}", last)
            failures += 1
            await asyncio.sleep(_RETRY.delay(failures, random.random))

    async def _follow_once(self, cluster: EngagedCluster, pools: Pools, changes: KnownObjects) -> None:
        async with cluster.credentials() as credentials:
            api = ClusterApi(cluster.name, credentials, pools)
            requests = _Requests(api, self._form.accept, self._turns)
            try:
                resources = await self._known.find(self._name, requests)
                if len(resources) > 1:
                    several = f"--watch takes one kind, but {self._name!r} stands for {len(resources)}"
                    await self._lines.put(CommandFailure(several))
                for resource in resources[:1]:
                    await self._follow_resource(requests, cluster.name, resource, changes)
                    # The cluster does not serve it: another one does, or this one in another version.
                    for other in await self._known.find_in(self._name, requests):
                        await self._follow_resource(requests, cluster.name, other, changes)
                raise _NotServedError
            finally:
                await api.aclose()

    async def _follow_resource(
        self, requests: _Requests, name: str, resource: ServedResource, changes: KnownObjects
    ) -> None:
        """Follow the objects of one resource; return if the cluster does not serve it."""
        read, loop = self._scope.collection(resource, self._names), asyncio.get_running_loop()
        list_watch = ListWatch(
            requests,
            _Collection(read.path, read.query),
            decoder=ObservationDecoder(resource, name, self._form.accept),
            reflector=Reflector(_POLICY, random.random, loop.time()),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            request_timeout_s=self._timeout_s,
        )
        problem = ""
        async with aclosing(list_watch.batches()) as batches:
            async for source_events in batches:
                lines: list[Line] = []
                for event in source_events:
                    if isinstance(event, EventIgnored):
                        print_message(f"{name}: {event.problem}")
                    for kind, observed in changes.apply(event):
                        lines += self._form.lines(observed.page, resource, name, event=kind)
                if lines:
                    self._empty = None
                    await self._lines.put(lines)
                if any(isinstance(event, ListEnded) for event in source_events):
                    if self._empty is not None:
                        self._empty = resource.full_name
                    await self._listed(name)
                status = list_watch.status
                if status.state is ViewState.STALE:
                    if status.message.startswith("404"):
                        return
                    problem = await self._print_failure(name, status.message, problem)
                    if status.message.startswith("400"):
                        await self._note_refused(name, problem)
                elif status.state is ViewState.STREAMING and problem:
                    problem = ""
                    self._refused.discard(name)
                    print_message(f"{name}: answers again")

    async def _print_failure(self, name: str, problem: str, last: str) -> str:
        """Print why a cluster does not answer, unless that was printed last. Return what was printed last."""
        if problem != last:
            print_message(f"{name}: {problem}; retrying")
        await self._listed(name)
        return problem

    async def _note_refused(self, name: str, problem: str) -> None:
        """Note that a cluster refuses the request; end the command if all clusters that serve the resource do."""
        self._refused.add(name)
        if not self._unlisted and self._refused >= self._following.keys() - self._not_served:
            await self._lines.put(CommandFailure(f"no cluster accepts the request: {problem}"))

    async def _listed(self, name: str) -> None:
        """Note that a cluster has answered or failed; after the last one, print what was not found."""
        if name not in self._unlisted:
            return
        self._unlisted.discard(name)
        if self._unlisted:
            return
        if self._not_served:
            if len(self._not_served) == len(self._following):
                await self._lines.put(_NeverServed(suggested(self._name, self._known)))
                return
            print_message(f"{len(self._not_served)} of {len(self._following)} clusters do not serve {self._name}")
        if self._names and self._empty:
            print_message(f"no cluster has {self._empty}/{self._names[0]} yet")
