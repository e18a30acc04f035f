"""Keeps the objects of all engaged clusters: follows the daemon's stream, and carries out what `decisions` returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

from milo_discovery._backoff import BackoffPolicy, StreamBackoff
from milo_discovery._kubeconfig_access import read_access
from milo_discovery._removal_guard import ENDS, Removal, Removals, is_followed
from milo_discovery._task_groups import unwrap_single_error
from milo_discovery.errors import ClusterNotFound, StatusError, UnusableKubeconfig
from milo_discovery.events import Connected, Event, StreamNotice, Synced
from milo_discovery.model import Cluster, ClusterReport, EngagementReason, EventType
from milo_publishing.accesses import Accesses
from milo_publishing.api_server import PublishedObjects
from milo_publishing.decisions import Apply, Create, DeleteObject, Hold, Publication, Refuse
from milo_publishing.errors import PublishedByAnother, TargetRefused, TargetUnavailable
from milo_publishing.objects import DesiredObject, ObservedObject, Owner, object_name
from milo_publishing.rendering import Renderer

if TYPE_CHECKING:
    from milo_discovery._convert import WatchOptions
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.watch import Watch

_RETRY = BackoffPolicy(initial=timedelta(milliseconds=500), maximum=timedelta(seconds=30))
_CHECK_INTERVAL_S = 1.0
"""How often held deletions and due reviews are reconsidered: no event is sent when the source is followed again."""
_LOOKUPS = 8
"""Maximum number of concurrent requests to the daemon about missing clusters."""
_MAX_STEPS = 6
"""Maximum consecutive actions on one object, so that a server that changes each write is not written to forever."""

Report = Callable[[str], None]


class Publisher:
    """The publisher of one kind of objects in one namespace, from one subscription."""

    def __init__(
        self,
        client: DiscoveryClient,
        server: PublishedObjects,
        publication: Publication,
        renderer: Renderer,
        *,
        resync: timedelta,
        report: Report,
        notice: Callable[[StreamNotice], None],
        removals: Removals,
    ) -> None:
        self._client = client
        self._server = server
        self._publication = publication
        self._renderer = renderer
        self._resync_s = resync.total_seconds()
        self._report = report
        self._notice = notice
        self._removals = removals
        self._accesses = Accesses(client, self._render, report)
        self._clusters: dict[str, Cluster] = {}
        self._without_object: dict[str, set[str]] = {}
        """Clusters without an object, by the name of the object: it belongs to another cluster."""
        self._has_view = False
        """Whether `_clusters` is a complete view, and not a snapshot that is arriving."""
        self._review_at: float | None = None
        self._elsewhere: set[Removal] = set()
        """Objects of clusters that other members of the shard group own, as of the last list."""
        self._has_identity = False
        self._dirty: set[str] = set()
        self._held: set[str] = set()
        self._changed = asyncio.Event()
        self._reported: dict[str, str] = {}
        self._backoff = StreamBackoff(_RETRY)

    @property
    def problems(self) -> tuple[str, ...]:
        """The reported problems that have not been resolved."""
        return tuple(self._reported.values())

    async def run(self, options: WatchOptions, done: asyncio.Event, *, once: bool) -> None:
        """Publish until `done` is set, or with `once` until each engaged cluster has its object."""
        with unwrap_single_error():
            async with asyncio.TaskGroup() as group, self._client.watch(**options) as watch:
                tasks = [
                    group.create_task(self._follow(watch), name="follow"),
                    group.create_task(self._write(watch, done, once=once), name="write"),
                ]
                if not self._renderer.embeds_credentials:
                    tasks.append(group.create_task(self._accesses.run(), name="accesses"))
                await done.wait()
                for task in tasks:
                    task.cancel()

    async def _follow(self, watch: Watch) -> None:
        async with aclosing(watch.feed()) as feed:
            async for item in feed:
                match item:
                    case Event(type=EventType.DISENGAGED):
                        self._withdraw(item)
                    case Event():
                        self._engage(item)
                    case Connected(resumed=False):
                        self._has_view = False
                        self._notice(item)
                    case Synced():
                        self._has_view = True
                        self._review_at = asyncio.get_running_loop().time()
                        self._notice(item)
                        self._mark(self._publication.names())
                    case _:
                        self._notice(item)

    def _engage(self, event: Event) -> None:
        name, before = event.cluster.name, self._clusters.get(event.cluster.name)
        self._clusters[name] = event.cluster
        if before is not None and before.uid != event.cluster.uid:
            self._accesses.forget(name)
        if self._renderer.embeds_credentials:
            if event.kubeconfig is not None:
                self._receive_kubeconfig(name, event.kubeconfig.kubeconfig)
        elif before is None or (before.uid, before.endpoint) != (event.cluster.uid, event.cluster.endpoint):
            self._accesses.request(name)
        self._render(name)

    def _receive_kubeconfig(self, name: str, kubeconfig: bytes) -> None:
        try:
            self._accesses.set(name, read_access(kubeconfig))
        except UnusableKubeconfig as error:
            self._report_once(f"kubeconfig of {name}", str(error))
        else:
            self._clear_report(f"kubeconfig of {name}", "usable")

    def _withdraw(self, event: Event) -> None:
        name = event.cluster.name
        self._clusters.pop(name, None)
        self._accesses.forget(name)
        for subject in (f"kubeconfig of {name}", f"cluster {name}"):
            self._clear_report(subject, "disengaged")
        of_object = object_name(name, self._renderer.suffix)
        desired = None if of_object is None else self._publication.desired(of_object)
        if of_object is not None and (desired is None or desired.cluster == name):
            self._publication.withdraw(of_object)
            if self._has_view and event.reason in ENDS:
                self._publication.end(of_object, event.cluster.uid)
            self._mark([of_object])
            for other in self._without_object.pop(of_object, ()):
                self._render(other)

    def _render(self, name: str) -> None:
        """Make the desired object of a cluster from its current state."""
        cluster = self._clusters.get(name)
        if cluster is None:
            return
        of_object = object_name(name, self._renderer.suffix)
        if of_object is None:
            self._report_once(f"cluster {name}", "its name cannot be converted to a valid object name")
            return
        other = self._publication.desired(of_object)
        if other is not None and other.cluster != name:
            self._without_object.setdefault(of_object, set()).add(name)
            self._report_once(f"cluster {name}", f"the object {of_object} belongs to cluster {other.cluster!r}")
            return
        self._clear_report(f"cluster {name}", f"the object {of_object} belongs to it now")
        content = None
        if self._accesses.is_known(name):
            content = self._renderer.render(cluster, self._accesses.get(name))
        desired = DesiredObject(name=of_object, cluster=name, cluster_uid=cluster.uid, content=content)
        if desired != other:
            self._publication.desire(desired)
            self._mark([of_object])

    def _mark(self, names: Iterable[str]) -> None:
        self._dirty.update(names)
        self._changed.set()

    async def _write(self, watch: Watch, done: asyncio.Event, *, once: bool) -> None:
        loop = asyncio.get_running_loop()
        resync_at = loop.time()
        while True:
            try:
                if self._has_view and loop.time() >= resync_at:
                    await self._list()
                    resync_at = loop.time() + self._resync_s
                if (
                    self._has_view
                    and watch.connected
                    and self._review_at is not None
                    and loop.time() >= self._review_at
                ):
                    await self._review(watch, loop.time())
                await self._write_dirty(watch)
            except TargetUnavailable as error:
                delay = self._backoff.failed(ran=timedelta(), retry_after=error.retry_after)
                self._report_once("", f"cannot write: {error}; retrying")
                await asyncio.sleep(delay.total_seconds())
                continue
            self._clear_report("", "writing again")
            self._backoff = StreamBackoff(_RETRY)
            if once and self._is_done:
                done.set()
            await self._wait_for_work(resync_at - loop.time() if self._has_view else self._resync_s)

    @property
    def _is_done(self) -> bool:
        """Whether each engaged cluster has its object, and all others are deleted or held."""
        if not self._has_view or self._removals.is_foreign:
            return self._has_view
        has_reviewed = self._review_at is None or bool(self._removals.problem)
        return has_reviewed and not self._dirty and self._publication.is_complete()

    async def _wait_for_work(self, until_resync_s: float) -> None:
        is_waiting = self._held or self._review_at is not None
        limit = min(until_resync_s, _CHECK_INTERVAL_S) if is_waiting else until_resync_s
        try:
            async with asyncio.timeout(max(limit, 0)):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()
        self._dirty |= self._held
        self._held = set()

    async def _list(self) -> None:
        """List all own objects, so that those which others changed or deleted are written again."""
        try:
            objects = await self._server.list(self._publication.identity)
        except (TargetRefused, UnusableKubeconfig) as error:
            # Permissions, or the definition of the resource, may be added while this runs.
            raise TargetUnavailable(str(error)) from error
        self._publication.observe_all(objects)
        self._elsewhere.clear()
        self._review_at = asyncio.get_running_loop().time()
        self._mark(self._publication.names())
        self._accesses.request_all(self._clusters if not self._renderer.embeds_credentials else ())

    async def _review(self, watch: Watch, now: float) -> None:
        """Look for the clusters that the view lacks, and record the end of those that are confirmed."""
        await self._identify()
        for name in self._publication.names():
            self._require_own(self._publication.observed(name))
        candidates = [
            each
            for each in self._publication.removals()
            if each not in self._elsewhere and is_followed(watch, each.cluster)
        ]
        lookups = asyncio.Semaphore(_LOOKUPS)
        missing = await asyncio.gather(*(self._is_missing(each, lookups) for each in candidates))
        if not self._has_view:
            return  # another snapshot arrives, and is reviewed
        confirmed = self._removals.review(
            [each for each, is_missing in zip(candidates, missing, strict=True) if is_missing],
            self._publication.published,
            now,
        )
        self._review_at = self._removals.next_look_at(now)
        if self._removals.problem:
            self._report_once("removals", self._removals.problem)
        else:
            self._clear_report("removals", "not held any more")
        for each in confirmed:
            self._publication.end(each.name, each.cluster_uid)
        self._mark(self._publication.names())

    async def _identify(self) -> None:
        """Find out which group the daemon is of. Raises PublishedByAnother if it is not that of this run."""
        try:
            sharding = (await self._client.server_info()).sharding
        except StatusError as error:
            raise TargetUnavailable(f"the daemon does not describe itself: {error}", error.retry_after) from error
        identity = replace(self._publication.identity, group="" if sharding is None else sharding.group)
        if self._has_identity and identity != self._publication.identity:
            raise PublishedByAnother(
                f"the daemon is another one: of shard group {identity.group!r}, and not "
                f"{self._publication.identity.group!r}"
            )
        self._publication.identity, self._has_identity = identity, True

    def _require_own(self, observed: ObservedObject | None) -> None:
        """Raise PublishedByAnother if an own object was written for another group or filter."""
        identity = self._publication.identity
        if observed is None or self._removals.accepts or observed.owner(identity) is not Owner.SELF:
            return
        if difference := observed.difference(identity):
            raise PublishedByAnother(
                f"{self._described(observed.name)} of publisher {identity.publisher!r} {difference}: check the "
                "daemon's address and the filter, choose another --publisher, or take the objects over with "
                "--accept-removals"
            )

    async def _is_missing(self, removal: Removal, lookups: asyncio.Semaphore) -> bool:
        """Return whether the daemon confirms that a cluster is not engaged."""
        try:
            async with lookups:
                report = await self._client.get(removal.cluster)
        except ClusterNotFound:
            return True
        except StatusError as error:
            self._report_once(f"lookup of {removal.cluster}", f"cannot be looked up: {error}")
            return False
        self._clear_report(f"lookup of {removal.cluster}", "done")
        if report.engagement.reason is EngagementReason.UNASSIGNED:
            self._elsewhere.add(removal)
            return False
        return not _is_engaged(report, removal) or bool(self._publication.identity.filter)

    async def _write_dirty(self, watch: Watch) -> None:
        if not self._has_view or not self._has_identity or self._removals.is_foreign:
            return
        names, self._dirty = self._dirty, set()
        outcomes = await asyncio.gather(*(self._write_object(watch, each) for each in names), return_exceptions=True)
        failure: TargetUnavailable | None = None
        for name, outcome in zip(names, outcomes, strict=True):
            match outcome:
                case TargetUnavailable():
                    self._dirty.add(name)
                    failure = outcome
                case TargetRefused() | UnusableKubeconfig():
                    self._report_once(name, str(outcome))
                case BaseException():
                    raise outcome
        if failure is not None:
            raise failure

    async def _write_object(self, watch: Watch, name: str) -> None:
        for _ in range(_MAX_STEPS):
            if not self._has_view:
                self._dirty.add(name)
                return
            observed = self._publication.observed(name)
            may_delete = observed is not None and is_followed(watch, observed.cluster)
            match action := self._publication.decide(name, may_delete=may_delete):
                case None:
                    self._clear_report(name, "published")
                    return
                case Hold():
                    self._held.add(name)
                    return
                case Refuse():
                    self._report_once(name, action.reason)
                    return
                case Create() | Apply() | DeleteObject():
                    try:
                        await self._perform(name, action)
                    except TargetRefused as error:
                        if error.status != HTTPStatus.CONFLICT:
                            raise
                        # Another writer was first: the next decision is made from what is there now.
                        self._publication.observe(name, found := await self._server.get(name))
                        self._require_own(found)
        self._report_once(
            name,
            "the object keeps being changed back after each write; look for another controller or a mutating webhook "
            "that changes it",
        )

    async def _perform(self, name: str, action: Create | Apply | DeleteObject) -> None:
        match action:
            case Create(body):
                self._publication.observe(name, await self._server.create(body))
                self._report(f"created {self._described(name)}")
            case Apply(uid, body, status):
                if status is not None:
                    self._publication.observe(name, await self._server.apply(status, uid, subresource="/status"))
                if body is not None:
                    self._publication.observe(name, await self._server.apply(body, uid))
            case DeleteObject(uid, resource_version):
                await self._server.delete(name, uid, resource_version)
                self._publication.observe(name, None)
                self._report(f"deleted {self._described(name)}")

    def _described(self, name: str) -> str:
        return f"{self._publication.resource.kind} {name}"

    def _report_once(self, subject: str, message: str) -> None:
        if self._reported.get(subject) != message:
            self._reported[subject] = message
            self._report(f"{subject}: {message}" if subject else message)

    def _clear_report(self, subject: str, message: str) -> None:
        if self._reported.pop(subject, None) is not None:
            self._report(f"{subject}: {message}" if subject else message)


def _is_engaged(report: ClusterReport, removal: Removal) -> bool:
    return report.engagement.engaged and report.cluster is not None and report.cluster.uid == removal.cluster_uid
