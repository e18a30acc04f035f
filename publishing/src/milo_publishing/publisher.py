"""Performs the requests of a publication: the daemon's stream is its input, and each due request a task."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from milo_discovery.errors import ClusterNotFound, PreconditionFailed, UnusableKubeconfig
from milo_discovery.events import Connected, Event, Refreshed, StreamNotice, Synced
from milo_discovery.kubeconfig_access import read_access, read_exec_access
from milo_discovery.model import EngagementReason, EventType, KubeconfigFormat
from milo_discovery.removals import ENDS, filter_matches
from milo_kube.task_groups import unwrap_single_error
from milo_kube.tenants import TenantTurns
from milo_publishing.errors import PublishedByAnother
from milo_publishing.publication import Lane, Publication, Report, RequestKind, Task
from milo_publishing.records import Apply, Ask, Create, DeleteObject, Engaged, ReadObject, Received, Request
from milo_publishing.rendering import FluxConfigMaps

if TYPE_CHECKING:
    from datetime import timedelta

    from milo_discovery.client import DiscoveryClient
    from milo_discovery.model import Cluster, Kubeconfig
    from milo_discovery.options import FilterOptions, WatchOptions
    from milo_discovery.watch import Watch
    from milo_kube.tenants import Tenant
    from milo_publishing.api_server import PublishedObjects

_HANGING_S = 0.25
"""How long a request occupies its slot: those that hang delay no others."""


class Slots:
    """Limits concurrent requests: `quick` at a time, and `total` together with those that hang."""

    def __init__(self, quick: int, total: int, tenant: Callable[[Task], Tenant]) -> None:
        """`tenant` returns that of a task's cluster: the tenants take turns."""
        self.waiting = TenantTurns(tenant)
        """These are no tasks of asyncio, each of which takes some 2 KiB: all objects may wait."""
        self._quick = quick
        self._total = total

    def take(self) -> Task | None:
        """Return the next task, if there is a slot for it: its request occupies that in `slot`."""
        if not (self.waiting and self._quick and self._total):
            return None
        self._quick -= 1
        self._total -= 1
        return self.waiting.pop()

    @contextmanager
    def slot(self, freed: Callable[[], None]) -> Iterator[None]:
        """Perform a task that was taken. `freed` is called if another one can be taken although it still hangs."""

        is_hanging = False

        def hang() -> None:
            nonlocal is_hanging
            is_hanging = True
            self._quick += 1
            freed()

        timer = asyncio.get_running_loop().call_later(_HANGING_S, hang)
        try:
            yield
        finally:
            timer.cancel()
            self._quick += not is_hanging
            self._total += 1


class Publisher:
    """The publisher of one kind of objects in one namespace, from one subscription."""

    def __init__(
        self,
        client: DiscoveryClient,
        server: PublishedObjects,
        publication: Publication,
        *,
        report: Report,
        notice: Callable[[StreamNotice], None],
    ) -> None:
        self._client = client
        self._server = server
        self._publication = publication
        self._report = report
        self._notice = notice
        self._noted = ""
        self._only: FilterOptions = {}
        self._ttl: timedelta | None = None
        self._changed = asyncio.Event()
        self._running = 0
        # By the kind of a request, and whether it is a retry: retries do not delay other requests. The daemon
        # permits 100 calls of a caller at a time; in a shard group, each list is followed by thousands of look-ups.
        tenant = publication.tenant
        self._slots = {
            (RequestKind.API_SERVER, False): Slots(16, 64, tenant),
            (RequestKind.API_SERVER, True): Slots(4, 16, tenant),
            (RequestKind.DAEMON, False): Slots(8, 48, tenant),
            (RequestKind.DAEMON, True): Slots(2, 16, tenant),
            (RequestKind.GROUP, False): Slots(1, 1, tenant),
            (RequestKind.GROUP, True): Slots(1, 1, tenant),
            (RequestKind.LOOKUP, False): Slots(8, 16, tenant),
            (RequestKind.LOOKUP, True): Slots(2, 8, tenant),
        }

    async def run(self, options: WatchOptions, done: asyncio.Event, *, once: bool) -> None:
        """Publish until `done` is set. With `once`, set it when there is nothing left to write."""
        self._only, self._ttl = options, options.get("kubeconfig_ttl")
        with unwrap_single_error():
            async with asyncio.TaskGroup() as group, self._client.watch(**options) as watch:
                tasks = [
                    group.create_task(self._follow(watch), name="follow"),
                    group.create_task(self._work(watch, done, once=once), name="work"),
                ]
                await done.wait()
                for task in tasks:
                    task.cancel()

    async def _follow(self, watch: Watch) -> None:
        publication, clock = self._publication, asyncio.get_running_loop().time
        async with aclosing(watch.feed()) as feed:
            async for item in feed:
                match item:
                    case Event(type=EventType.DISENGAGED):
                        publication.withdraw(item, clock())
                    case Event():
                        self._engage(item, clock())
                    case Refreshed():
                        publication.engage(item.cluster, None, clock())
                    case Connected(resumed=False):
                        publication.snapshot_begins()
                    case Connected():
                        publication.resumed(clock())
                    case Synced():
                        publication.snapshot_ends(clock())
                if not isinstance(item, Event):
                    self._notice(item)
                self._changed.set()

    def _engage(self, event: Event, now: float) -> None:
        received, problem = None, ""
        if event.kubeconfig is not None and self._publication.renderer.embeds_credentials:
            try:
                received = self._credential(event.kubeconfig, now)
            except UnusableKubeconfig as error:
                problem = f"its kubeconfig is unusable: {error}"
        self._publication.engage(event.cluster, received, now, problem=problem)

    async def _work(self, watch: Watch, done: asyncio.Event, *, once: bool) -> None:
        """Perform what is due. No request is waited for, and none ends this loop."""
        clock = asyncio.get_running_loop().time
        with unwrap_single_error():
            async with asyncio.TaskGroup() as group:
                while True:
                    for task in self._publication.due(clock(), watch):
                        self._running += 1
                        self._slots[self._publication.request_kind(task), task.is_retry].waiting.add(task)
                    for slots in self._slots.values():
                        while (next_task := slots.take()) is not None:
                            name = f"{next_task.lane.name} {next_task.name}"
                            group.create_task(self._serve(next_task, slots, watch), name=name)
                    if once and not self._running and self._publication.is_done:
                        done.set()
                    if self._publication.next_at <= clock():
                        await asyncio.sleep(0)
                        continue
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(self._publication.next_at - clock(), 3600.0)):
                            await self._changed.wait()
                    self._changed.clear()

    async def _serve(self, task: Task, slots: Slots, watch: Watch) -> None:
        publication, clock = self._publication, asyncio.get_running_loop().time
        try:
            with slots.slot(self._changed.set):
                request = publication.request(task, clock(), watch)
                if request is not None:
                    await self._perform(task, request, watch)
        except PublishedByAnother:
            raise
        except Exception as error:  # noqa: BLE001  (it is of one object, and must not end or delay the others)
            publication.failed(task, error, clock())
        finally:
            self._running -= 1
            self._changed.set()

    async def _perform(self, task: Task, request: Request | Engaged | Lane, watch: Watch) -> None:
        publication, server, clock = self._publication, self._server, asyncio.get_running_loop().time
        match request:
            case Ask():
                is_missing, is_elsewhere = await self._look_up(request)
                publication.asked(task, is_missing=is_missing, is_elsewhere=is_elsewhere, now=clock())
            case Engaged(cluster):
                publication.received(task, await self._received(cluster), clock())
            case ReadObject() | Create() | Apply() | DeleteObject():
                found = await server.perform(request, lambda: publication.require_permit(task, request, clock(), watch))
                publication.read(task, request, found, clock())
            case Lane.LIST:
                sent_at = clock()
                listed = await server.list(publication.identity, publication.is_wanted, publication.observed)
                publication.listed(sent_at, listed, clock())
            case _:
                sharding = (await self._client.server_info()).sharding
                publication.identified("" if sharding is None else sharding.group, clock())

    async def _look_up(self, request: Ask) -> tuple[bool, bool]:
        """Return whether a cluster is not engaged as far as the daemon knows, or does not match the filter; and whether
        another member of the shard group owns it, which may have it engaged even so, for example for a grace period."""
        try:
            report = await self._client.get(request.cluster)
        except ClusterNotFound as error:
            return True, error.assigned_elsewhere
        engagement, cluster = report.engagement, report.cluster
        if engagement.assigned_elsewhere:
            return not engagement.engaged and engagement.reason is not EngagementReason.UNASSIGNED, True
        if not engagement.engaged or cluster is None or cluster.uid != request.uid:
            return True, False
        if cluster.draining is not None and cluster.draining.reason in ENDS:
            return True, False  # as its event says when the drain begins: none follows when that ends
        return not filter_matches(self._only, cluster), False  # one that matches is engaged, and its event may be late

    async def _received(self, cluster: Cluster) -> Received:
        if self._publication.renderer.embeds_credentials:
            issued = await self._client.issue_kubeconfig(cluster.name, ttl=self._ttl, incarnation=cluster.incarnation)
            return self._credential(issued, asyncio.get_running_loop().time())
        try:
            issued = await self._client.issue_kubeconfig(cluster.name, kubeconfig_format=KubeconfigFormat.EXEC)
        except PreconditionFailed as error:
            return self._without_access(str(error))
        access = read_exec_access(issued.kubeconfig, cluster.name)
        if access.act_as is not None:
            # Readers of the objects run the plugin themselves, and would use its credential without impersonation.
            return self._without_access(
                "the rule for this publisher sets `as`, and a plugin cannot return an impersonated user"
            )
        if access.tls_server_name is not None and isinstance(self._publication.renderer, FluxConfigMaps):
            self._report_once(
                f"ConfigMaps for Flux cannot name the TLS server, such as {access.tls_server_name}: the server's "
                "certificate must have the host of its URL"
            )
        return Received(access)

    @staticmethod
    def _credential(issued: Kubeconfig, now: float) -> Received:
        left_s = math.inf
        if issued.expires_at is not None:
            left_s = (issued.expires_at - datetime.now(UTC)).total_seconds()
            if left_s <= 0 and issued.issued_at is not None:  # by this machine's clock: the daemon issues valid ones
                left_s = (issued.expires_at - issued.issued_at).total_seconds()
        return Received(read_access(issued.kubeconfig), now + left_s)

    def _without_access(self, reason: str) -> Received:
        self._report_once(f"no server and CA to publish: {reason}")
        return Received(None)

    def _report_once(self, problem: str) -> None:
        """Report a problem that is the same for many clusters."""
        if problem != self._noted:
            self._noted = problem
            self._report(problem)
