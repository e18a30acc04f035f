"""Keeps the objects of all engaged clusters current: follows the daemon's stream, and performs the decided actions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

from milo_discovery._backoff import BackoffPolicy, StreamBackoff
from milo_discovery._removal_guard import ENDS, Removals, is_followed
from milo_discovery._task_groups import unwrap_single_error
from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.events import Connected, Event, StreamNotice, Synced
from milo_discovery.model import EventType
from milo_publishing.accesses import Accesses
from milo_publishing.api_server import PublishedObjects
from milo_publishing.decisions import Apply, Create, DeleteObject, Hold, Publication, Refuse
from milo_publishing.errors import TargetRefused, TargetUnavailable
from milo_publishing.fleet_objects import FleetObjects
from milo_publishing.removal_review import RemovalReview
from milo_publishing.rendering import Renderer
from milo_publishing.reports import ProblemReports, Report

if TYPE_CHECKING:
    from milo_discovery._convert import WatchOptions
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.watch import Watch

_RETRY = BackoffPolicy(initial=timedelta(milliseconds=500), maximum=timedelta(seconds=30))
_CHECK_INTERVAL_S = 1.0
"""How often held deletions and due reviews are reconsidered: no event reports that a source is no longer stale."""
_MAX_STEPS = 6
"""Maximum consecutive actions on one object, so that a server that changes each write is not written to forever."""


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
        self._resync_s = resync.total_seconds()
        self._notice = notice
        self._reports = ProblemReports(report)
        self._accesses = Accesses(client, lambda name: self._mark(self._fleet.render(name)), report)
        self._fleet = FleetObjects(publication, renderer, self._accesses, self._reports)
        self._review = RemovalReview(client, publication, removals, self._reports)
        self._has_view = False
        """Whether the engaged clusters are complete: False while a snapshot is being received."""
        self._dirty: set[str] = set()
        self._held: set[str] = set()
        self._changed = asyncio.Event()
        self._backoff = StreamBackoff(_RETRY)

    @property
    def problems(self) -> tuple[str, ...]:
        """The reported problems that have not been resolved."""
        return self._reports.problems

    async def run(self, options: WatchOptions, done: asyncio.Event, *, once: bool) -> None:
        """Publish until `done` is set. With `once`, set it when there is nothing left to write."""
        with unwrap_single_error():
            async with asyncio.TaskGroup() as group, self._client.watch(**options) as watch:
                tasks = [
                    group.create_task(self._follow(watch), name="follow"),
                    group.create_task(self._write(watch, done, once=once), name="write"),
                ]
                if not self._fleet.embeds_credentials:
                    tasks.append(group.create_task(self._accesses.run(), name="accesses"))
                await done.wait()
                for task in tasks:
                    task.cancel()

    async def _follow(self, watch: Watch) -> None:
        async with aclosing(watch.feed()) as feed:
            async for item in feed:
                match item:
                    case Event(type=EventType.DISENGAGED):
                        is_end = self._has_view and item.reason in ENDS
                        self._mark(self._fleet.withdraw(item, is_end=is_end))
                    case Event():
                        self._mark(self._fleet.engage(item))
                    case Connected(resumed=False):
                        self._has_view = False
                        self._notice(item)
                    case Synced():
                        self._has_view = True
                        self._review.due_at = asyncio.get_running_loop().time()
                        self._notice(item)
                        self._mark(self._publication.names())
                    case _:
                        self._notice(item)

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
                review_at = self._review.due_at
                if self._has_view and watch.connected and review_at is not None and loop.time() >= review_at:
                    await self._review_removals(watch, loop.time())
                await self._write_dirty(watch)
            except TargetUnavailable as error:
                delay = self._backoff.failed(ran=timedelta(), retry_after=error.retry_after)
                self._reports.add_problem("", f"publishing is interrupted: {error}; retrying")
                await asyncio.sleep(delay.total_seconds())
                continue
            self._reports.resolve("", "publishing continues")
            self._backoff = StreamBackoff(_RETRY)
            if once and self._is_done:
                done.set()
            await self._wait_for_work(resync_at - loop.time() if self._has_view else self._resync_s)

    @property
    def _is_done(self) -> bool:
        """Whether each object is written, deleted, held or refused, or nothing may be written."""
        if not self._has_view or self._review.is_foreign:
            return self._has_view
        return self._review.is_done and not self._dirty and self._publication.is_complete()

    async def _wait_for_work(self, until_resync_s: float) -> None:
        is_waiting = self._held or self._review.due_at is not None
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
        """List this publisher's objects, so that objects that other clients changed or deleted are written again."""
        try:
            objects = await self._server.list(self._publication.identity)
        except (TargetRefused, UnusableKubeconfig) as error:
            # Permissions, or the CustomResourceDefinition, may be added later.
            raise TargetUnavailable(str(error)) from error
        self._publication.observe_all(objects)
        self._review.objects_listed(asyncio.get_running_loop().time())
        self._mark(self._publication.names())
        self._fleet.request_accesses()

    async def _review_removals(self, watch: Watch, now: float) -> None:
        missing = await self._review.missing(watch)
        if self._has_view:  # Otherwise another snapshot is arriving, and will be reviewed.
            self._review.confirm(missing, now)
            self._mark(self._publication.names())

    async def _write_dirty(self, watch: Watch) -> None:
        if not self._has_view or not self._review.has_identity or self._review.is_foreign:
            return
        names, self._dirty = self._dirty, set()
        outcomes = await asyncio.gather(*(self._write_object(watch, name) for name in names), return_exceptions=True)
        failure: TargetUnavailable | None = None
        for name, outcome in zip(names, outcomes, strict=True):
            match outcome:
                case TargetUnavailable():
                    self._dirty.add(name)
                    failure = outcome
                case TargetRefused() | UnusableKubeconfig():
                    self._reports.add_problem(name, str(outcome))
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
                    self._reports.resolve(name, "resolved")
                    return
                case Hold():
                    self._held.add(name)
                    return
                case Refuse():
                    self._reports.add_problem(name, action.reason)
                    return
                case Create() | Apply() | DeleteObject():
                    try:
                        await self._perform(name, action)
                    except TargetRefused as error:
                        if error.status != HTTPStatus.CONFLICT:
                            raise
                        # Another client created or changed the object first: decide again from its current state.
                        self._publication.observe(name, found := await self._server.get(name))
                        self._review.require_own(found)
        self._reports.add_problem(
            name,
            f"the object still differs after {_MAX_STEPS} attempts; look for another controller or a mutating webhook "
            "that changes it",
        )

    async def _perform(self, name: str, action: Create | Apply | DeleteObject) -> None:
        match action:
            case Create(body):
                self._publication.observe(name, await self._server.create(body))
                self._reports.report(f"created {self._publication.described(name)}")
            case Apply(uid, body, status):
                if status is not None:
                    self._publication.observe(name, await self._server.apply(status, uid, subresource="/status"))
                if body is not None:
                    self._publication.observe(name, await self._server.apply(body, uid))
            case DeleteObject(uid, resource_version):
                await self._server.delete(name, uid, resource_version)
                self._publication.observe(name, None)
                self._reports.report(f"deleted {self._publication.described(name)}")
