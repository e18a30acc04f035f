"""The objects of one publisher: a record for each, and the requests that are due. No I/O; time is an argument.

Events of the daemon's stream and answers change the record that they are about, and no other. `due` returns the tasks
whose time has come, and `request` what to send for a task, as decided when it is sent. An answer belongs to a task by
its ticket: if the record no longer has that, the answer is about a former state.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from milo_discovery import DisengageReason, removals
from milo_discovery.errors import CallFailed, DiscoveryError, StatusError, TimedOut, Unavailable
from milo_discovery.removals import ENDS, Removals, is_followed
from milo_kube.reflect.backoff import Backoff
from milo_kube.retry_after import delay_s
from milo_kube.tenants import tenant_of
from milo_publishing import records
from milo_publishing.errors import PermitEnded, PublishedByAnother, TargetRefused, TargetUnavailable
from milo_publishing.objects import ObservedObject, Owner, object_name
from milo_publishing.records import (
    Attempt,
    Elsewhere,
    EndedCluster,
    Engaged,
    Finalizing,
    Missing,
    Received,
    Record,
    Unasked,
)

if TYPE_CHECKING:
    from milo_discovery.events import Event
    from milo_discovery.model import Cluster
    from milo_discovery.watch import Watch
    from milo_kube.tenants import Tenant
    from milo_publishing.objects import Identity
    from milo_publishing.rendering import Renderer

_BACKOFF = Backoff(first_s=0.25, cap_s=15.0)
_TAKEN = Backoff(first_s=1.0, cap_s=60.0)
"""When an object is read again whose name another publisher has."""
_REVIEW_S = 0.1
"""How long a review of missing clusters waits for further answers."""
_REVIEW_OF_EACH_S = 30e-6
"""How much longer for each object, of which it looks at all: several times what that takes."""
_UNISSUED_S = 10.0
"""How long the daemon's stream may lack the credential of a cluster before the daemon is asked for it."""
_LATE_S = 60.0
"""When the objects are listed after a creation that was not answered: it may take effect once its cluster has ended."""
_MAX_WRITES = 6
"""Maximum consecutive writes of one object until something else is desired, so that a server that changes each write is
not written to forever."""
_MOST_DUE = 100
"""Maximum number of tasks that are taken at once, so that the event loop does other work in between."""
_FORMER = 8
"""How many times are queued for each object, on average, before those that its attempts no longer have are dropped."""

Report = Callable[[str], None]


class Lane(Enum):
    """The kinds of requests. Of each there is at most one about an object, and none waits for another."""

    OBJECT = ""
    ACCESS = "cannot get its server and CA: "
    LIST = "cannot list the published objects: "
    IDENTIFY = "cannot get the daemon's server info: "


class RequestKind(Enum):
    """What receives a request. Requests of one kind that hang delay none of another."""

    API_SERVER = auto()
    DAEMON = auto()
    GROUP = auto()
    """The daemon, about its shard group: nothing is written before the answer."""
    LOOKUP = auto()
    """The daemon, about the cluster of an object."""


class Task(msgspec.Struct, frozen=True):
    """A request that is due, about an object; `name` is empty if it is about all of them."""

    name: str
    lane: Lane
    ticket: int
    is_retry: bool


class ObjectLists(msgspec.Struct, frozen=True):
    """The lists of the objects so far."""

    sent_at: float = -math.inf
    """When the last one that was answered was sent."""
    asked_at: float = math.inf
    """When the daemon was last asked about the clusters of other members; infinite before the first list."""


class ViewPhase(Enum):
    """What is known about the view of the engaged clusters."""

    INCOMPLETE = auto()
    """A snapshot is being received."""
    UNIDENTIFIED = auto()
    """The daemon's shard group is not known."""
    UNREVIEWED = auto()
    """It may belong to another fleet: perhaps it lacks all published clusters."""
    REVIEWED = auto()


class Publication:
    """The records of one publisher, and when something is to be done about each."""

    def __init__(
        self,
        renderer: Renderer,
        identity: Identity,
        removals: Removals,
        *,
        resync_s: float,
        report: Report,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.renderer = renderer
        self.identity = identity
        self.records: dict[str, Record] = {}
        self.view = ViewPhase.INCOMPLETE
        self._removals = removals
        self._resync_s = resync_s
        self._report = report
        self._draw = draw
        self._common = {Lane.LIST: Attempt(), Lane.IDENTIFY: Attempt()}
        self._lists = ObjectLists()
        self._outage = Attempt(-math.inf)
        """When requests are sent to the API server again, if it could not be reached."""
        self._review_at = math.inf
        self._due: list[tuple[float, int, str, Lane]] = []
        """A heap of (time, number, name, lane). An entry is skipped if it no longer is the time of the attempt."""
        self._number = 0

    @property
    def _is_listed(self) -> bool:
        return self._lists.asked_at < math.inf

    # --- the daemon's stream ---

    def snapshot_begins(self) -> None:
        self.view = ViewPhase.INCOMPLETE

    def resumed(self, now: float) -> None:
        """Continue with the last complete view, also if a snapshot broke off since, such as that of another daemon."""
        if self.view is ViewPhase.INCOMPLETE:
            self.snapshot_ends(now)

    def snapshot_ends(self, now: float) -> None:
        self.view = ViewPhase.UNIDENTIFIED
        self._set("", Lane.IDENTIFY, self._common[Lane.IDENTIFY].at(now))
        for record in [*self.records.values()]:
            end = Unasked() if isinstance(record.end, Missing | Elsewhere) else record.end
            self._put(replace(record, end=end, next=record.next.at(now)))

    def engage(self, cluster: Cluster, received: Received | None, now: float, *, problem: str = "") -> None:
        """Publish an engaged cluster. `received`: its access, if the event has it, or `problem`: why it is unusable."""
        record = self._record(object_name(cluster.name, self.renderer.suffix))
        before = next((one for one in record.engaged if one.cluster.name == cluster.name), None)
        new = Engaged(cluster, received, cluster.endpoint)
        if received is None and before is not None and before.cluster.uid == cluster.uid:
            new = replace(before, cluster=cluster)
        engaged = tuple(new if one is before else one for one in record.engaged)
        record = self._preferring(replace(record, engaged=engaged if before else (*engaged, new)), now)
        if record.wanted is new:
            if not self._is_about_former(record, cluster):
                record = replace(record, end=Unasked())
            if self.renderer.embeds_credentials:
                record = replace(record, access=self._credential_access(record, before, new, problem, now))
            elif (before and _address(before.cluster)) != _address(cluster):
                record = replace(record, access=Attempt(now))  # an answer in flight is about the former address
            if self._removals.problem or self.view is ViewPhase.UNREVIEWED:
                self._review_soon(now)
        self._put(replace(record, next=record.next.restarted(now)))

    def _is_about_former(self, record: Record, cluster: Cluster) -> bool:
        """Return whether what is known of an end is about a former cluster of the name, whose object is to go first."""
        if isinstance(record.end, EndedCluster):
            return record.end.cluster_uid != cluster.uid
        is_of = record.observed is None or record.observed.cluster_uid in ("", cluster.uid)
        return isinstance(record.end, Missing) and not is_of

    def _credential_access(
        self, record: Record, before: Engaged | None, new: Engaged, problem: str, now: float
    ) -> Attempt:
        """Return when to ask the daemon for a credential, which the stream delivers too if there is one."""
        if problem:
            return Attempt(problem=problem)
        if new.received is not None:
            if before is None or before.received is not new.received:
                return Attempt(_renewal_at(new.received, now))
            has_moved = before.is_received and not new.is_received
            return Attempt(now + _UNISSUED_S) if has_moved else record.access
        is_known = before is not None and before.cluster.incarnation == new.cluster.incarnation
        return record.access if is_known else Attempt(now + _UNISSUED_S)

    def withdraw(self, event: Event, now: float) -> None:
        """Stop publishing a disengaged cluster. Its object is deleted if the event says that the cluster has ended."""
        cluster = event.cluster
        record = self._record(object_name(cluster.name, self.renderer.suffix))
        is_published = record.wanted is not None and record.wanted.cluster.name == cluster.name
        record = replace(record, engaged=tuple(one for one in record.engaged if one.cluster.name != cluster.name))
        if is_published:
            if record.observed is None or record.observed.cluster_uid == cluster.uid:
                is_end = self.view is not ViewPhase.INCOMPLETE and event.reason in ENDS
                incarnation = cluster.incarnation if self.identity.group else ""
                answered_at = now if event.reason is DisengageReason.MOVED else -math.inf
                end: Unasked | Elsewhere | EndedCluster = Elsewhere(answered_at=answered_at)
                if is_end and record.observed is not None and record.observed.incarnation != incarnation:
                    # Perhaps its next owner has engaged it: this event says nothing about the end of that engagement.
                    end = Unasked(now + removals.SECOND_LOOK_S)
                elif is_end:
                    end = EndedCluster(cluster.uid, incarnation, now + records.EVIDENCE_S)
                if not is_end:
                    self._removals.note_lacking(True)
                record = replace(record, end=end)
            record = replace(record, access=Attempt(self._access_due(record, now)))
        self._put(replace(record, next=record.next.restarted(now)))

    def _access_due(self, record: Record, now: float) -> float:
        """Return when to ask the daemon for the access of a cluster that is published from now on."""
        if record.wanted is None:
            return math.inf
        if not self.renderer.embeds_credentials:
            return now
        return now + _UNISSUED_S if record.wanted.received is None else _renewal_at(record.wanted.received, now)

    # --- requests ---

    def due(self, now: float, watch: Watch) -> list[Task]:
        """Return tasks whose time has come. Pass each to `request`."""
        if self._review_at <= now:
            self._review(now, watch)
        tasks: list[Task] = []
        while self._due and self._due[0][0] <= now and len(tasks) < _MOST_DUE:
            at, _, name, lane = heapq.heappop(self._due)
            attempt = self._attempt(name, lane)
            if attempt.due_at == at and not attempt.ticket:
                self._number += 1
                self._set(name, lane, replace(attempt, due_at=math.inf, ticket=self._number))
                tasks.append(Task(name, lane, self._number, attempt.failures > 0))
        return tasks

    @property
    def next_at(self) -> float:
        """When `due` may return something, if nothing happens before."""
        return min(self._review_at, self._due[0][0] if self._due else math.inf)

    def tenant(self, task: Task) -> Tenant:
        """Return the tenant of the cluster that a task is about; empty if none is engaged."""
        record = self.records.get(task.name)
        return () if record is None or record.wanted is None else tenant_of(record.wanted.cluster)

    def request_kind(self, task: Task) -> RequestKind:
        """Return the kind of the request of a task, as far as is known before it is decided."""
        if task.lane is not Lane.OBJECT:
            of_lane = {Lane.LIST: RequestKind.API_SERVER, Lane.IDENTIFY: RequestKind.GROUP}
            return of_lane.get(task.lane, RequestKind.DAEMON)
        record = self._record(task.name)
        is_lookup = record.lacks_cluster(self.identity) and not isinstance(record.end, EndedCluster)
        return RequestKind.LOOKUP if is_lookup else RequestKind.API_SERVER

    def request(self, task: Task, now: float, watch: Watch) -> records.Request | Engaged | Lane | None:
        """Return what to send for a task: a request about the object, the cluster whose server and CA to get, or the
        lane of a request about all objects. None if there is nothing to send."""
        attempt = self._attempt(task.name, task.lane)
        if attempt.ticket != task.ticket:
            return None
        is_late = task.is_retry or bool(self._outage.problem)
        if task.lane is Lane.LIST and is_late and now > self._lists.asked_at + self._resync_s / 2:
            self._ask_elsewhere(now)  # now, since this one may fail, too, and the next retry be late
        match request := self._decide(task, attempt, now, watch):
            case None:
                self._set(task.name, task.lane, Attempt(attempt.due_at))
            case records.WaitUntilDue(until, is_held):
                self._set(task.name, task.lane, Attempt(min(attempt.due_at, until), is_held=is_held))
            case records.Refuse(problem, is_awaited=True):
                self._await_name(self.records[task.name], problem, now)
            case records.Refuse(problem):
                self._set(task.name, task.lane, Attempt(attempt.due_at, problem=problem))
            case records.Ask():
                self._set(task.name, task.lane, replace(attempt, is_question=True))
                return request
            case Engaged() | Lane.IDENTIFY:
                return request
            case _ if now >= self._outage.due_at:
                return request
            case _:
                self._set(task.name, task.lane, replace(attempt, ticket=0, due_at=self._outage.due_at))
        return None

    def _decide(
        self, task: Task, attempt: Attempt, now: float, watch: Watch
    ) -> records.Request | Engaged | Lane | records.WaitUntilDue | records.Refuse | None:
        if task.lane in self._common:
            return task.lane
        record = self.records[task.name]
        if task.lane is Lane.ACCESS:
            check_s = _UNISSUED_S if self.renderer.embeds_credentials else records.CHECK_S
            return record.wanted if watch.connected else records.WaitUntilDue(now + check_s)
        follows = record.observed is not None and is_followed(watch, record.cluster)
        request = records.decide(
            record,
            self.renderer,
            self.identity,
            now,
            is_connected=watch.connected,
            is_followed=follows,
            is_held=bool(self._removals.problem) or self._removals.is_new(now),
        )
        is_question = isinstance(request, records.Ask | records.WaitUntilDue) and self.view is not ViewPhase.INCOMPLETE
        if not is_question and (self.view is not ViewPhase.REVIEWED or self._removals.is_foreign):
            # Objects are written after the review, when all are due.
            return records.Refuse(attempt.problem) if attempt.problem else None
        if attempt.writes >= _MAX_WRITES and isinstance(request, records.Create | records.Apply | records.DeleteObject):
            return records.Refuse(
                f"the object still differs after {_MAX_WRITES} attempts; look for another controller or a mutating "
                "webhook that changes it"
            )
        return request

    def _await_name(self, record: Record, problem: str, now: float) -> None:
        """Read another publisher's object again later: a change of labels may have moved its cluster here."""
        failures = record.next.failures + 1
        due_at = min(record.next.due_at, now + _TAKEN.delay(failures, self._draw))
        attempt = Attempt(due_at, failures=failures, problem=problem, is_held=True)
        self._put(replace(record, object=records.UnreadObject(record.observed), next=attempt))

    def require_permit(self, task: Task, request: records.Request, now: float, watch: Watch) -> None:
        """Raise PermitEnded if an object must not be deleted anymore. Called when a request is about to be sent."""
        if isinstance(request, records.DeleteObject):
            decided = self._decide(task, self._attempt(task.name, task.lane), now, watch)
            if not isinstance(decided, records.DeleteObject):
                raise PermitEnded(f"{task.name} is not to be deleted anymore")
            self._put(replace(self.records[task.name], deleting=(request.uid, request.resource_version)))

    # --- answers ---

    def is_wanted(self, name: str) -> bool:
        """Return whether the object of this name is compared: its cluster is engaged."""
        return name in self.records and bool(self.records[name].engaged)

    def observed(self, name: str) -> ObservedObject | None:
        """Return the object of this name as last observed."""
        return self.records[name].observed if name in self.records else None

    def listed(self, sent_at: float, objects: Iterable[ObservedObject], now: float) -> None:
        """Receive all objects of this publisher, so that those that other clients changed or deleted are written again.

        A list says nothing about what was requested, or answered, while it was read. Raises PublishedByAnother if most
        objects are of another run.
        """
        self._contacted()
        self._lists = replace(self._lists, sent_at=sent_at)
        found = {observed.name: observed for observed in objects}
        self._require_own(found.values())
        for name in [*self.records, *(name for name in found if name not in self.records)]:
            record = self._record(name)
            before = record.version
            if (not record.next.ticket or record.next.is_question) and record.answered_at < sent_at:
                record = self._find(record, found.get(name), now)
            if record.engaged and not self.renderer.embeds_credentials and not record.access.ticket:
                record = replace(record, access=record.access.at(now))
            is_read = not isinstance(record.object, records.UnreadObject) and record.version == before
            is_settled = record.next == Attempt() and is_read and not record.lacks_cluster(self.identity)
            self._put(record if is_settled else replace(record, next=record.next.at(now)))
        self._ask_elsewhere(now)
        self._set("", Lane.LIST, Attempt(min(self._common[Lane.LIST].due_at, now + self._resync_s)))
        self._review_by(now)

    def _ask_elsewhere(self, now: float) -> None:
        """Have the daemon asked about all clusters of other members at once: many of them are a mass only together."""
        self._lists = replace(self._lists, asked_at=now)
        for record in [*self.records.values()]:
            if isinstance(record.end, Elsewhere) and record.end.ask_at == math.inf:
                self._put(replace(record, end=replace(record.end, ask_at=now), next=record.next.at(now)))

    def _find(self, record: Record, found: ObservedObject | None, now: float) -> Record:
        """Return the record with the object that a list has. One that it lacks may be there even so: another client may
        have changed a label by which objects are listed."""
        if found is None and isinstance(record.object, Finalizing):
            return record  # it is read until it is gone
        before = record.observed
        if found is not None or before is None or not before.cluster:
            return self._observe(record, found, now)
        is_elsewhere = isinstance(record.end, Elsewhere)
        if record.wanted is None and is_elsewhere and before.owner(self.identity) is not Owner.FOREIGN:
            return self._observe(record, None, now)
        return replace(record, object=records.UnreadObject(before))

    def _require_own(self, objects: Iterable[ObservedObject]) -> None:
        own = [observed for observed in objects if self._is_of_a_fleet(observed)]
        others = [observed for observed in own if observed.difference(self.identity)]
        if others and 2 * len(others) > len(own) and not self._removals.accepts:
            problem = records.of_other_run(others[0], self.identity)
            raise PublishedByAnother(f"{self.renderer.resource.kind} {others[0].name}: {problem}")

    def _is_of_a_fleet(self, observed: ObservedObject) -> bool:
        """Return whether an object has the labels of this publisher, and names a cluster of its name."""
        is_named = object_name(observed.cluster, self.renderer.suffix) == observed.name
        return is_named and observed.owner(self.identity) is Owner.SELF

    def identified(self, group: str, now: float) -> None:
        """Receive the daemon's shard group. Raises PublishedByAnother if it changed during this run."""
        due_at = self._common[Lane.IDENTIFY].due_at
        self._set("", Lane.IDENTIFY, Attempt(due_at))
        if due_at < math.inf:
            return  # the stream began again meanwhile, perhaps at another daemon
        if self._is_listed and group != self.identity.group:
            raise PublishedByAnother(
                f"the daemon's shard group changed from {self.identity.group or 'none'} to {group or 'none'}: check "
                "the daemon's address and its `sharding.group`"
            )
        self.identity = replace(self.identity, group=group)
        if self.view is ViewPhase.UNIDENTIFIED:
            self.view = ViewPhase.UNREVIEWED
        if not self._is_listed:
            self._set("", Lane.LIST, self._common[Lane.LIST].at(now))
        self._review_by(now)

    def read(self, task: Task, request: records.Request, found: ObservedObject | None, now: float) -> None:
        """Receive the object as a request has found or left it; None if it does not exist."""
        self._contacted()
        record, is_read = self.records[task.name], isinstance(request, records.ReadObject)
        if isinstance(request, records.Create):
            self._report(f"created {self.renderer.resource.kind} {task.name}")
        attempt = Attempt(now, writes=record.next.writes + 1)
        if is_read:
            attempt = replace(record.next, due_at=now, ticket=0, is_held=False)
        record = replace(record, next=attempt, answered_at=now)
        if isinstance(request, records.DeleteObject) and record.observed is not None:
            record = replace(record, object=Finalizing(record.observed))
        record = self._observe(record, found, now, by_us=not is_read)
        if isinstance(record.object, Finalizing):
            names = record.object.observed.finalizers or "none"
            record = replace(
                record,
                next=Attempt(
                    now + _BACKOFF.delay(attempt.failures + 1, self._draw),
                    failures=attempt.failures + 1,
                    problem=f"its deletion was requested, and waits for its finalizers: {names}",
                ),
            )
        self._put(record)

    def asked(self, task: Task, *, is_missing: bool, is_elsewhere: bool, now: float) -> None:
        """Receive whether the cluster of an object is missing, as far as the daemon knows: with `is_elsewhere`, only
        another member of the group can say that."""
        record = self._record(task.name)
        if record.next.ticket == task.ticket:
            due_at = now
            match record.end:
                case _ if is_elsewhere or not is_missing:
                    end: Unasked | Missing | Elsewhere | EndedCluster = Elsewhere(is_lacked=is_missing, answered_at=now)
                case EndedCluster() as ended:
                    end, due_at = replace(ended, answered_at=now), now + removals.SECOND_LOOK_S  # or the review
                case Missing() as missing:
                    end = replace(missing, answered_at=now)
                case former:
                    end = Missing(now, now, isinstance(former, Unasked) and former.is_changed)
            self._put(replace(record, end=end, next=Attempt(due_at)))
            self._review_soon(now)

    def received(self, task: Task, received: Received, now: float) -> None:
        """Receive the server and CA of a cluster."""
        record = self._record(task.name)
        if record.wanted is not None and record.access.ticket == task.ticket:
            wanted = replace(record.wanted, received=received, endpoint=record.wanted.cluster.endpoint)
            engaged = wanted, *record.engaged[1:]
            self._put(
                replace(
                    record, engaged=engaged, access=Attempt(_renewal_at(received, now)), next=record.next.restarted(now)
                )
            )

    def failed(self, task: Task, error: Exception, now: float) -> None:
        """Receive why a request failed. Only the next request about the same waits."""
        is_unsent = isinstance(error, TargetUnavailable) and error.is_unsent
        if isinstance(error, TargetRefused) or (isinstance(error, TargetUnavailable) and error.is_answer):
            self._contacted()
        attempt, record = self._attempt(task.name, task.lane), self._record(task.name)
        if attempt.ticket != task.ticket:
            return
        if is_unsent and (task.lane in self._common or record.is_relevant):  # otherwise there is nothing to retry
            self._interrupted(error, now)
        if is_unsent or isinstance(error, PermitEnded):
            due_at = self._outage.due_at if is_unsent else now
            self._set(task.name, task.lane, replace(attempt, ticket=0, due_at=due_at))
            return
        status = error.status if isinstance(error, TargetRefused) else None
        is_conflict, is_absent = status == HTTPStatus.CONFLICT, isinstance(record.object, records.AbsentObject)
        is_lost = status == HTTPStatus.NOT_FOUND and isinstance(record.object, records.Present)
        # A creation that conflicts although no object was found does so in the namespace's quota: that is a failure.
        has_changed = is_lost or (is_conflict and not (is_absent and attempt.writes))
        is_final = _is_final(error) and not is_lost and not is_conflict and task.lane not in self._common
        is_write = task.lane is Lane.OBJECT and not attempt.is_question
        if is_write and is_absent and isinstance(error, TargetUnavailable):  # late, perhaps, and after a 504 too
            self._set("", Lane.LIST, self._common[Lane.LIST].at(now + _LATE_S))
        if is_write and not is_final and not isinstance(record.object, Finalizing):
            self._put(replace(record, object=records.UnreadObject(record.observed)))
        if has_changed:
            self._set(task.name, task.lane, replace(attempt, ticket=0, due_at=now, writes=attempt.writes + 1))
            return
        failures, retry_after = attempt.failures + 1, getattr(error, "retry_after", None)
        stated_s = None if retry_after is None else retry_after.total_seconds()
        due_at = now + delay_s(_BACKOFF.delay(failures, self._draw), stated_s)
        if is_final:  # until the cluster changes, or the next list: permissions, for example, may be added later
            failures, due_at = 0, attempt.due_at
        text = str(error) if isinstance(error, DiscoveryError) else f"{type(error).__name__}: {error}"
        problem = f"{'cannot look up its cluster: ' if attempt.is_question else task.lane.value}{text}"
        if task.lane is Lane.ACCESS and self.renderer.embeds_credentials:
            # The daemon issues a few credentials at a time: that one is late is no problem yet.
            problem = attempt.problem if isinstance(error, TimedOut) else f"cannot get its credential: {text}"
        elif task.lane is Lane.ACCESS and record.wanted is not None and record.wanted.is_received:
            problem = ""  # the last answer stays published
        self._set(task.name, task.lane, Attempt(due_at, failures=failures, problem=problem))
        if attempt.is_question:
            record = self._record(task.name)
            if isinstance(record.end, Elsewhere):
                self._put(replace(record, end=Unasked()))
            self._review_soon(now)

    # --- what there is to report ---

    @property
    def problems(self) -> tuple[str, ...]:
        """The reported problems that have not been resolved."""
        common = [
            self._outage.problem,
            self._removals.problem,
            self._removals.unknown,
            *(one.problem for one in self._common.values()),
        ]
        affected = (record for record in self.records.values() if record.has_problems)
        own = (problem for record in affected for problem in record.problems().values())
        return (*filter(None, common), *own)

    @property
    def is_done(self) -> bool:
        """Whether each object is written, deleted, held or refused, or nothing may be written."""
        if self._removals.unknown and self.view is ViewPhase.UNREVIEWED:
            return True
        if self.view is not ViewPhase.REVIEWED or not self._is_listed:
            return False
        is_reviewed = self._review_at == math.inf
        return self._removals.is_foreign or (is_reviewed and all(map(self._is_settled, self.records.values())))

    def _is_settled(self, record: Record) -> bool:
        is_held = record.next.is_held or (isinstance(record.end, Missing) and bool(self._removals.problem))
        if record.next.ticket or (record.next.due_at < math.inf and not is_held):
            return False
        return record.wanted is None or record.wanted.received is not None or bool(record.access.problem)

    @property
    def unfinished(self) -> str:
        """What is left to do when the publication is done, as a message; empty if nothing is."""
        if self.problems:
            return f"unresolved problems: {len(self.problems)}; see the messages above"
        if names := [record.name for record in self.records.values() if record.next.is_held]:
            what = f"{len(names)} objects wait, such as {names[0]}," if names[1:] else f"the object {names[0]} waits"
            return f"not finished: {what} until the daemon is connected and follows the source of the cluster"
        return ""

    # --- the guard against mass removal ---

    def _review(self, now: float, watch: Watch) -> None:
        """Let the guard judge the missing clusters, once the daemon was asked about each that may be missing.

        One that cannot be looked up delays no others.
        """
        self._review_at = math.inf
        if not self._is_listed or self.view in {ViewPhase.INCOMPLETE, ViewPhase.UNIDENTIFIED}:
            return
        all_own = [record for record in self.records.values() if record.is_own(self.identity)]
        since = max((record.confirmed_since for record in all_own), default=-math.inf)
        # Without those of clusters whose end was reported: these are about to be deleted.
        own = [record for record in all_own if not record.is_ended]
        doubted = [record for record in own if record.is_doubted(self.identity, since, now)]
        followed = [record for record in doubted if is_followed(watch, record.removal().cluster)]
        was_foreign, was_problem = self._removals.is_foreign, self._removals.problem
        unasked = [record for record in followed if not record.is_lacked]
        is_asking = any(not record.next.problem for record in unasked)
        known = len(followed) - len(unasked)
        published = [record.name for record in own]
        is_mass = self._removals.may_be_mass([record.name for record in doubted], published, now)
        self._removals.note_lacking(bool(doubted) or any(record.may_be_lacked for record in own))
        if is_mass and is_asking:
            inferred = [record for record in own if isinstance(record.end, EndedCluster) and record.end.is_inferred]
            self._conclude([(record, False) for record in inferred], now)
        else:
            self._renew(now, is_held=is_mass or bool(was_problem))
        may_be_foreign = own and len(doubted) == len(own) and known < len(own)
        is_accepted = self._removals.accepts and known and not is_asking
        is_unknown = may_be_foreign and not is_accepted and not is_asking
        was_unknown = self._removals.unknown
        self._removals.note_unknown(len(own), len(doubted) - len(followed) if is_unknown else 0)
        self._tell({"removals": was_unknown}, {"removals": self._removals.unknown})
        if may_be_foreign and not is_accepted:
            return  # the view may be of another fleet, whose source is not streaming yet
        if not is_asking:
            missing = {
                record.removal(): record for record in followed if isinstance(record.end, Missing | EndedCluster)
            }
            is_taken_over = not any(record.observed and record.observed.difference(self.identity) for record in own)
            are_all_known = known == len(doubted) and is_taken_over
            others = {record.name for record in doubted} - {removal.name for removal in missing}
            confirmed = self._removals.review(
                missing.keys(), published, now, others=others, are_all_known=are_all_known
            )
            self._tell({"removals": was_problem}, {"removals": self._removals.problem}, "no longer held")
            self._conclude([(record, removal in confirmed) for removal, record in missing.items()], now)
        if self.view is ViewPhase.UNREVIEWED or was_foreign:
            self.view = ViewPhase.REVIEWED
            for record in [*self.records.values()]:
                self._put(replace(record, next=record.next.at(now)))

    def _conclude(self, judged: Iterable[tuple[Record, bool]], now: float) -> None:
        """Permit the deletion of what the guard has confirmed, and of nothing else. It has judged what all members of a
        shard group lack only if the objects were listed since the cluster is missing."""
        is_unlisted = False
        for record, is_confirmed in judged:
            match record.end, record.observed:
                case EndedCluster(answered_at=at) as ended, _ if not is_confirmed:
                    self._put(replace(record, end=_doubted(ended), next=record.next.at(now)))
                case Missing(since), _ if since > self._lists.sent_at:
                    is_unlisted = True
                case Missing(answered_at=at, is_confirmed=True), ObservedObject() as observed if is_confirmed:
                    until = at + records.EVIDENCE_S
                    end = EndedCluster(
                        observed.cluster_uid, observed.incarnation, until, answered_at=at, is_inferred=True
                    )
                    self._put(replace(record, end=end, next=record.next.at(now)))
        if is_unlisted:
            self._set("", Lane.LIST, self._common[Lane.LIST].at(now))

    def _renew(self, now: float, *, is_held: bool) -> None:
        """Make evidence that was late valid again, if the daemon has confirmed it. While a mass of the other objects is
        in doubt, the daemon may lack this cluster, too, although it has been engaged again: then it is missing."""
        for record in [*self.records.values()]:
            match record.end:
                case EndedCluster(answered_at=at, is_confirmed=True) as ended:
                    end = _doubted(ended) if is_held else replace(ended, until=at + records.EVIDENCE_S)
                    self._put(replace(record, end=end, next=record.next.at(now)))

    def _review_soon(self, now: float) -> None:
        self._review_by(now + _REVIEW_S + _REVIEW_OF_EACH_S * len(self.records))

    def _review_by(self, at: float) -> None:
        self._review_at = min(self._review_at, at)

    # --- records and attempts ---

    def _record(self, name: str) -> Record:
        known = self.records.get(name)
        return known or Record(name, object=records.AbsentObject() if self._is_listed else records.UnreadObject(None))

    def _observe(self, record: Record, found: ObservedObject | None, now: float, *, by_us: bool = False) -> Record:
        if found is None and isinstance(record.object, Finalizing):
            self._report(f"deleted {self.renderer.resource.kind} {record.name}")
            record = replace(record, next=Attempt(now))
        if found is not None and not record.engaged:
            found = found.without_content()
        elif found is not None and found.content is None and record.version == (found.uid, found.resource_version):
            found = replace(found, content=record.observed and record.observed.content)
        if found is not None:
            found = records.held(record, found, self.renderer, self.identity)
        before, accepts = record, self._removals.accepts
        record = records.observe(record, found, self.renderer, self.identity, now, by_us=by_us, accepts=accepts)
        if found is not None and before.observed is None:
            self._removals.restored(record.name)
            if by_us:
                self._removals.created(record.name)
        is_gone = isinstance(record.object, records.AbsentObject | Finalizing)
        # `EndedCluster` was reported by an event, or judged by this publisher.
        is_unexplained = before.wanted is None and not isinstance(before.end, EndedCluster)
        if is_gone and is_unexplained and before.is_own(self.identity):
            self._removals.removed_by_another(record.name, now)
        return self._preferring(record, now)

    def _preferring(self, record: Record, now: float) -> Record:
        """Return the record with the cluster first that the object stands for, if several clusters have its name."""
        preferred = record.preferred
        if preferred is record.wanted or preferred is None:
            return record
        others = (one for one in record.engaged if one is not preferred)
        record = replace(record, engaged=(preferred, *others), end=Unasked())
        return replace(record, access=Attempt(self._access_due(record, now)))

    def _interrupted(self, error: Exception, now: float) -> None:
        """Send nothing to the API server for a while, because it cannot be reached."""
        before = self._outage
        if now >= before.due_at:
            problem, failures = f"publishing is interrupted: {error}; retrying", before.failures + 1
            self._outage = Attempt(now + _BACKOFF.delay(failures, self._draw), failures=failures, problem=problem)
            self._tell({"": before.problem}, {"": problem})

    def _contacted(self) -> None:
        self._tell({"": self._outage.problem}, {"": ""}, "publishing continues")
        self._outage = Attempt(-math.inf)

    def _attempt(self, name: str, lane: Lane) -> Attempt:
        record = self._record(name)
        return self._common.get(lane) or (record.access if lane is Lane.ACCESS else record.next)

    def _set(self, name: str, lane: Lane, attempt: Attempt) -> None:
        if lane in self._common:
            self._tell({"": self._common[lane].problem}, {"": attempt.problem})
            before, self._common[lane] = self._common[lane], attempt
            self._push(name, lane, attempt, before)
        elif lane is Lane.ACCESS:
            self._put(replace(self._record(name), access=attempt))
        else:
            self._put(replace(self._record(name), next=attempt))

    def _put(self, record: Record) -> None:
        """Replace a record: report what is a problem now, or no longer is, and schedule its attempts. The guard against
        mass removal learns of each cluster that is published from now on."""
        before = self._record(record.name)
        is_kept = record.is_relevant or bool(record.next.ticket)
        if record.wanted is not None and record.wanted is not before.wanted:
            cluster = record.wanted.cluster
            self._removals.engaged(record.name, cluster.uid + (cluster.incarnation if self.identity.group else ""))
        if before.has_problems or record.has_problems:
            self._tell(before.problems(), record.problems() if is_kept else {})
        if is_kept:
            self.records[record.name] = record
            if record.next is not before.next:
                self._push(record.name, Lane.OBJECT, record.next, before.next)
            if record.access is not before.access:
                self._push(record.name, Lane.ACCESS, record.access, before.access)
        else:
            self.records.pop(record.name, None)

    def _push(self, name: str, lane: Lane, attempt: Attempt, before: Attempt) -> None:
        is_queued = attempt.due_at == before.due_at and not before.ticket
        if attempt.due_at < math.inf and not attempt.ticket and not is_queued:
            self._number += 1
            heapq.heappush(self._due, (attempt.due_at, self._number, name, lane))
            if len(self._due) > _FORMER * (len(self.records) + _FORMER):
                self._drop_former_times()

    def _drop_former_times(self) -> None:
        """Drop times that attempts no longer have: those of credentials are hours away, and replaced often."""
        present = {entry[2:]: entry for entry in self._due if self._attempt(*entry[2:]).due_at == entry[0]}
        self._due = [*present.values()]
        heapq.heapify(self._due)

    def _tell(self, before: Mapping[str, str], after: Mapping[str, str], resolved: str = "resolved") -> None:
        for subject in {**before, **after}:
            message = after.get(subject, "")
            if message != before.get(subject, ""):
                self._report(f"{subject}: {message or resolved}" if subject else message or resolved)


def _renewal_at(received: Received, now: float) -> float:
    """Return when to ask the daemon for another credential, if its stream has not delivered one."""
    return max(received.expires_at, now + _UNISSUED_S)


def _doubted(ended: EndedCluster) -> Missing:
    """Return what is left of evidence that the guard against mass removal does not accept."""
    return Missing(ended.answered_at, ended.answered_at, is_changed=ended.ask_at > -math.inf)


def _address(cluster: Cluster) -> tuple[str, str]:
    return cluster.uid, cluster.endpoint


def _is_final(error: Exception) -> bool:
    """Return whether a retry would fail too, unless something else changes."""
    if isinstance(error, StatusError):
        return not isinstance(error, Unavailable | TimedOut | CallFailed) and error.retry_after is None
    return isinstance(error, DiscoveryError) and not isinstance(error, TargetUnavailable)
