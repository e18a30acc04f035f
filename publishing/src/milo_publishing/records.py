"""What is known about the object of one name, and what may be done about it. No I/O; time is an argument.

`decide` returns the next request. It alone returns `DeleteObject`, in one row, and `PublishedObjects.perform` sends it:

| the object       | cluster     | the evidence that it ended             | next request                              |
|------------------|-------------|----------------------------------------|-------------------------------------------|
| `AbsentObject`   | engaged     |                                        | `Create`                                  |
| `UnreadObject`   |             |                                        | `ReadObject`                              |
| `Present`        | engaged     |                                        | `Apply`, if it differs, or a deletion of  |
|                  |             |                                        | this version was sent: it may be late     |
| `Present`        | not engaged | `Unasked`, `Missing`                   | `Ask`, and again after 10 s               |
| `Present`        | not engaged | `Elsewhere`                            | none before the next list is due          |
| **`Present`**    | not engaged | **`EndedCluster`, for at most 10 s**   | **`DeleteObject`, while streaming**       |
| `Present`        | not engaged | `EndedCluster` before, or then changed | `Ask`; one answer makes it valid again,   |
|                  |             |                                        | unless removals are held, or a mass of    |
|                  |             |                                        | the other objects is in doubt             |
| `Finalizing`     |             |                                        | `ReadObject`, until finalizers are done   |
| `OfOtherRun`     |             |                                        | `Refuse`                                  |

"While streaming": while the source of its cluster is followed. All rows but the first and the last are about this
publisher's objects; others are never changed. A cluster is engaged if one with the UID in the object's annotation is;
an object without the annotation is that of its name.
So is one whose annotation another client has changed since it was seen with that of the engaged cluster: the UID is
written back. What was this publisher's object stays that, by its own UID, if another client changes its labels. If it
names a cluster that is not that of its name, it is that of the one that it named before; if that is not known, it is
left for the owner of its cluster, and reported.
`EndedCluster` comes from a live DISENGAGED event of the engagement that the object names, whose reason concerns the
cluster itself, or from two answers that it is `Missing`, if the guard against mass removal agrees. An engagement drops
it.

Each write and deletion requires the UID and resource version that were observed, so it fails if another client wrote
meanwhile, such as the replica that owns the cluster now. Then the object is read. If it names another engagement, the
evidence is dropped; otherwise the daemon is asked again. Both only once each member of a shard group must know what the
owner knows. Further changes do not void its answer: other clients may change an object every few seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from milo_discovery import removals
from milo_discovery.removals import Removal
from milo_publishing.objects import (
    CLUSTER,
    Document,
    IdentifyingLabels,
    ObservedObject,
    Owner,
    as_desired,
    changes,
    claim,
    is_valid_name,
    object_name,
)

if TYPE_CHECKING:
    from milo_discovery.kubeconfig_access import KubeconfigAccess
    from milo_discovery.model import Cluster
    from milo_publishing.objects import Identity
    from milo_publishing.rendering import Renderer

EVIDENCE_S = 10.0
"""How long an answer or event permits the deletion of an object."""
HELD_S = 60.0
"""How often the daemon is asked about a cluster that is missing while the guard against mass removal holds its object:
what it engages meanwhile is reported."""
CHECK_S = 1.0
"""How often an object waits for its source again: no event reports that a source is no longer stale."""
_MOST_HELD = 8 << 10
"""Maximum bytes of an object's content that may differ from what is desired: more than those of most kubeconfigs."""


_UNNAMED = (
    f"another client has changed its annotation {CLUSTER}: the publisher that has its cluster writes it back; delete "
    "it if the cluster has ended"
)


class AbsentObject(msgspec.Struct, frozen=True, gc=False):
    """The API server has no object of this publisher."""


class UnreadObject(msgspec.Struct, frozen=True, gc=False):
    """The outcome of the last write is unknown, or another client has changed the object."""

    observed: ObservedObject | None


class Present(msgspec.Struct, frozen=True, gc=False):
    observed: ObservedObject


class Finalizing(msgspec.Struct, frozen=True, gc=False):
    """The object's deletion was requested, and it waits for its finalizers."""

    observed: ObservedObject


class OfOtherRun(msgspec.Struct, frozen=True, gc=False):
    """A run of this publisher with another filter, or in another shard group, wrote the object."""

    observed: ObservedObject


class Unasked(msgspec.Struct, frozen=True, gc=False):
    """Nothing is known about the cluster's end."""

    ask_at: float = -math.inf
    is_changed: bool = False
    """Whether another client was seen to change the object: further changes delay no question."""


class Missing(msgspec.Struct, frozen=True, gc=False):
    """The daemon has answered that the cluster is not engaged, or does not match the filter."""

    since: float
    answered_at: float
    is_changed: bool = False
    """As in `Unasked`."""

    @property
    def is_confirmed(self) -> bool:
        return self.answered_at >= self.since + removals.SECOND_LOOK_S


class Elsewhere(msgspec.Struct, frozen=True, gc=False):
    """The cluster is engaged, or another member of the group is to engage it, as far as is known."""

    ask_at: float = math.inf
    is_lacked: bool = False
    """Whether the daemon knows of no such cluster that is ready, and only that member can say that it is missing."""
    answered_at: float = -math.inf


class EndedCluster(msgspec.Struct, frozen=True, gc=False):
    """This engagement of the cluster has ended."""

    cluster_uid: str
    incarnation: str
    """Empty without a shard group."""
    until: float
    """How long the object may be deleted."""
    ask_at: float = -math.inf
    """When to ask after another client was seen to change the object."""
    answered_at: float = -math.inf
    """When the daemon last answered that the cluster is missing, since the evidence was late."""
    is_inferred: bool = False
    """Whether no event has reported it, but two answers that the cluster is missing: the guard against mass removal
    judges it until the object is deleted."""

    @property
    def is_confirmed(self) -> bool:
        return self.answered_at >= self.until


class Received(msgspec.Struct, frozen=True):
    """The server and CA of a cluster, with a credential if the object embeds it; None to publish without them."""

    access: KubeconfigAccess | None
    expires_at: float = math.inf
    """When the credential expires, unless the daemon sends another one before."""


class Engaged(msgspec.Struct, frozen=True):
    cluster: Cluster
    received: Received | None
    endpoint: str = ""
    """That of the cluster when this was received."""

    @property
    def is_received(self) -> bool:
        """Whether its server and CA were received since its endpoint changed."""
        return self.received is not None and self.endpoint == self.cluster.endpoint


class ReadObject(msgspec.Struct, frozen=True):
    name: str


class Create(msgspec.Struct, frozen=True):
    """Create the object; fails if an object with its name exists."""

    body: Document


class Apply(msgspec.Struct, frozen=True):
    """Apply the object, its status, or both, if it is unchanged."""

    uid: str
    resource_version: str
    body: Document | None
    status: Document | None


class DeleteObject(msgspec.Struct, frozen=True):
    """Delete the object, if it is unchanged."""

    name: str
    uid: str
    resource_version: str
    until: float
    """When the permit ends: the request is not sent later, however long it waits for a credential or a connection."""


class Ask(msgspec.Struct, frozen=True):
    """Ask the daemon whether a cluster is engaged."""

    cluster: str
    uid: str


Request = ReadObject | Create | Apply | DeleteObject | Ask


class WaitUntilDue(msgspec.Struct, frozen=True):
    """Decide again at this time. `is_held`: it depends on the daemon alone."""

    until: float
    is_held: bool = False


class Refuse(msgspec.Struct, frozen=True):
    """Do not write the object. `is_awaited`: it is another publisher's, which may delete it soon."""

    reason: str
    is_awaited: bool = False


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """When the next request is due, or that one is being made."""

    due_at: float = math.inf
    ticket: int = 0
    """The number of the request that is queued or in flight; 0 if none is."""
    failures: int = 0
    is_question: bool = False
    """Whether the request is for the daemon, and changes nothing."""
    writes: int = 0
    """Consecutive writes that did not settle the object, since what is desired of it changed."""
    problem: str = ""
    is_held: bool = False
    """Whether it waits for the daemon, or for another publisher, alone."""

    def at(self, when: float) -> Attempt:
        """Make a request by this time; after a failure, not before its backoff ends."""
        if self.is_question:
            return Attempt(when)  # what is in flight is about a former state
        is_backoff = self.failures and not self.ticket and not self.is_held
        return self if is_backoff else replace(self, due_at=min(self.due_at, when))

    def restarted(self, when: float) -> Attempt:
        """Make a request by this time, since what is desired has changed: former writes do not count."""
        return replace(self, writes=0).at(when)


class Known(msgspec.Struct, frozen=True, gc=False):
    """What an object of this publisher was before another client changed its labels or annotations."""

    uid: str
    """That of the object, which was seen with this publisher's labels."""
    cluster: str
    """Empty if it has named no cluster of its name."""
    cluster_uid: str


class Record(msgspec.Struct, frozen=True):
    """The object of one name."""

    name: str
    engaged: tuple[Engaged, ...] = ()
    """The engaged clusters of this object name. The first is published, and the others are reported."""
    object: AbsentObject | UnreadObject | Present | Finalizing | OfOtherRun = AbsentObject()
    end: Unasked | Missing | Elsewhere | EndedCluster = Unasked()
    answered_at: float = -math.inf
    """When a request about this object alone was last answered."""
    next: Attempt = Attempt()
    """The next request about the object."""
    access: Attempt = Attempt()
    """The next request for the server and CA of its cluster."""
    known: Known | None = None
    """What the object is, whatever another client makes of its labels and annotations."""
    deleting: tuple[str, str] | None = None
    """The version for which a deletion was sent last. Also if it failed, it may take effect until the object is
    written."""

    @property
    def wanted(self) -> Engaged | None:
        return self.engaged[0] if self.engaged else None

    @property
    def is_relevant(self) -> bool:
        """Whether there is an object, or is to be one."""
        return bool(self.engaged) or not isinstance(self.object, AbsentObject)

    @property
    def preferred(self) -> Engaged | None:
        """The engaged cluster that the object stands for, or else the one that is published."""
        of = ("", "") if self.observed is None else (self.observed.cluster, self.observed.cluster_uid)
        return next((one for one in self.engaged if (one.cluster.name, one.cluster.uid) == of), self.wanted)

    @property
    def observed(self) -> ObservedObject | None:
        """The object as last observed."""
        return None if isinstance(self.object, AbsentObject) else self.object.observed

    @property
    def version(self) -> tuple[str, str] | None:
        return None if self.observed is None else (self.observed.uid, self.observed.resource_version)

    @property
    def cluster(self) -> str:
        """The cluster of the object; empty if it is not known."""
        if self.observed is None or self.observed.cluster:
            return "" if self.observed is None else self.observed.cluster
        return self.wanted.cluster.name if self.wanted and self._is_of(self.wanted, self.observed) else ""

    def _is_of(self, wanted: Engaged, observed: ObservedObject) -> bool:
        # An object without a UID, or with that of another client, is written: this sets the annotation again.
        former = "" if self.known is None else self.known.cluster_uid
        return observed.cluster_uid == "" or wanted.cluster.uid in (observed.cluster_uid, former)

    def is_own(self, identity: Identity) -> bool:
        """Return whether the object is this publisher's, its cluster is known, and its deletion was not requested."""
        observed = None if isinstance(self.object, Finalizing | OfOtherRun) else self.observed
        return observed is not None and observed.owner(identity) is Owner.SELF and bool(self.cluster)

    @property
    def is_ended(self) -> bool:
        """Whether the object's cluster has ended, as an event has reported, and no other one has its name."""
        return isinstance(self.end, EndedCluster) and not self.end.is_inferred and self.wanted is None

    def lacks_cluster(self, identity: Identity) -> bool:
        """Return whether the object is this publisher's, and its cluster is not engaged."""
        return isinstance(self.object, Present) and self._may_lack_cluster(identity)

    def _may_lack_cluster(self, identity: Identity) -> bool:
        """The same, also of an object that is to be read."""
        if self.observed is None or not self.is_own(identity):
            return False
        return self.wanted is None or not self._is_of(self.wanted, self.observed)

    @property
    def is_lacked(self) -> bool:
        """Whether the daemon has answered that it lacks the cluster."""
        return isinstance(self.end, Missing | EndedCluster) or (isinstance(self.end, Elsewhere) and self.end.is_lacked)

    @property
    def may_be_lacked(self) -> bool:
        """Whether no engaged cluster has the object's name, as far as is known also of other members."""
        is_elsewhere = isinstance(self.end, Elsewhere) and self.end.answered_at > -math.inf and not self.is_lacked
        return self.wanted is None and not is_elsewhere

    @property
    def confirmed_since(self) -> float:
        """Since when the daemon, as it has confirmed, lacks the cluster, or the evidence of its end is late."""
        match self.end:
            case Missing(since, is_confirmed=True) | EndedCluster(until=since, is_confirmed=True):
                return since
        return -math.inf

    def is_doubted(self, identity: Identity, since: float, now: float) -> bool:
        """Return whether the daemon lacks the object's cluster, or may lack it, and has not reported its end. `since`:
        while the daemon is asked again about a cluster that it has, an answer from before this time does not count."""
        match self.end:
            case EndedCluster(is_inferred=False):
                return False
            case Elsewhere(ask_at, answered_at=answered_at) if not self.is_lacked:
                is_open = ask_at <= now or answered_at == -math.inf
                return is_open and answered_at < since and self._may_lack_cluster(identity)
        return self._may_lack_cluster(identity)

    def removal(self) -> Removal:
        """Return the object for the guard against mass removal."""
        assert self.observed is not None
        engagement = self.observed.cluster_uid + self.observed.incarnation
        return Removal(self.name, self.cluster, engagement, self.observed.uid)

    @property
    def has_problems(self) -> bool:
        return bool(self.next.problem or self.access.problem or self.engaged[1:])

    def problems(self) -> dict[str, str]:
        """Return the problems by their subject."""
        first = self.wanted.cluster.name if self.wanted else ""
        problems = {self.name: self.next.problem, f"cluster {first}": self.access.problem}
        for other in self.engaged[1:]:
            problems[f"cluster {other.cluster.name}"] = f"the object {self.name} belongs to cluster {first!r}"
        return {subject: problem for subject, problem in problems.items() if problem}


def held(record: Record, found: ObservedObject, renderer: Renderer, identity: Identity) -> ObservedObject:
    """Return an object with the content that is held: not what other clients have added to it, if that is much."""
    if found.content is None or len(found.content) <= _MOST_HELD:
        return found
    wanted, content = record.wanted, None
    if wanted is not None and wanted.received is not None:
        content = renderer.render(wanted.cluster, wanted.received.access)
    if wanted is None or content is None:
        return found.without_content()  # it is read again before it is compared
    return as_desired(renderer.resource, identity, wanted.cluster, content, found)


def observe(
    record: Record,
    found: ObservedObject | None,
    renderer: Renderer,
    identity: Identity,
    now: float,
    *,
    by_us: bool,
    accepts: bool,
) -> Record:
    """Return the record with the object as the API server has it. `by_us`: as our write has left it. `accepts`: whether
    objects of other runs are taken over."""
    if found is None:
        return replace(record, object=AbsentObject(), end=Unasked())
    found = _recognized(record, found, renderer, identity)
    before, end = record.observed, record.end
    is_same = record.version == (found.uid, found.resource_version)
    is_other = before is None or before.incarnation != found.incarnation
    is_own = found.owner(identity) is Owner.SELF
    record = replace(record, known=_known(record, found) if is_own else None)
    ask_at = now + removals.SECOND_LOOK_S
    match end:
        case EndedCluster(uid) if uid != found.cluster_uid:
            end = Unasked()
        case EndedCluster(_, incarnation) if not by_us and not is_same:
            if incarnation != found.incarnation:
                # Its owner has written another engagement: nothing is known about the end of that.
                end = Unasked(ask_at)
            elif end.ask_at <= now and (now >= end.until or end.ask_at == -math.inf):
                end = replace(end, until=now, ask_at=ask_at)
        case Elsewhere(planned_at) if not by_us and not is_same and (is_other or planned_at == math.inf):
            end = replace(end, ask_at=ask_at)
        case Unasked(is_changed=is_changed) | Missing(is_changed=is_changed) if not by_us and not is_same:
            if before is not None and (is_other or not is_changed):
                end = Unasked(ask_at, is_changed=True)
    if is_own and not accepts and found.difference(identity):
        return replace(record, object=OfOtherRun(found), end=end)
    return replace(
        record, object=Finalizing(found) if is_own and found.finalizers is not None else Present(found), end=end
    )


def _recognized(record: Record, found: ObservedObject, renderer: Renderer, identity: Identity) -> ObservedObject:
    """Return an object without what another client has changed of the labels and the cluster that identify it. It is
    compared with what is to be written by its document, which stays as it is."""
    known = record.known if record.known is not None and record.known.uid == found.uid else None
    labels, cluster = found.labels, found.cluster
    if known is not None:
        labels = labels if found.owner(identity) is Owner.SELF else IdentifyingLabels.of(identity)
        if known.cluster and known.cluster_uid == found.cluster_uid:  # each UID is of one cluster
            cluster = known.cluster
    if object_name(cluster, renderer.suffix) != found.name:
        cluster = "" if known is None else known.cluster
    if labels is found.labels and cluster == found.cluster:
        return found
    return replace(found, labels=labels, annotations=replace(found.annotations, cluster=cluster))


def _known(record: Record, found: ObservedObject) -> Known:
    """Return what an object of this publisher is. `found`: as it is recognized."""
    known, before = record.known, record.observed
    if known is None or known.uid != found.uid or known.cluster != found.cluster:
        known = Known(found.uid, found.cluster, found.cluster_uid)
    former = before.cluster_uid if before is not None and before.uid == found.uid else ""
    engaged = record.wanted.cluster.uid if record.wanted else ""
    return replace(known, cluster_uid=engaged) if engaged in {former, found.cluster_uid} - {""} else known


def decide(  # noqa: PLR0911  (a table)
    record: Record,
    renderer: Renderer,
    identity: Identity,
    now: float,
    *,
    is_connected: bool,
    is_followed: bool,
    is_held: bool,
) -> Request | WaitUntilDue | Refuse | None:
    """Return the next request about an object; None if there is nothing to do.

    `is_followed`: whether the daemon is connected, and the source of the object's cluster is streaming. `is_held`:
    whether the guard against mass removal holds removals.
    """
    match record.object:
        case UnreadObject() | Finalizing():
            return ReadObject(record.name)
        case OfOtherRun(observed):
            return Refuse(of_other_run(observed, identity))
        case Present(observed) if record.is_own(identity) and record.lacks_cluster(identity):
            # Also if its cluster was replaced: readers must not apply cached data of the former cluster to the new one.
            return _end(record, observed, now, is_followed=is_followed, is_held=is_held)
        case Present(observed) if not record.cluster and observed.owner(identity) is Owner.SELF:
            return Refuse(_UNNAMED)
        case Present(observed) if not record.is_own(identity) and _is_reported(record, observed, identity):
            # Even if the object has the UID of this cluster: tenants of another fleet may choose that UID.
            if observed.owner(identity) is Owner.OTHER_PUBLISHER:
                return Refuse(f"the object of this name belongs to publisher {observed.publisher!r}", is_awaited=True)
            return Refuse(
                "an object with this name exists, and was not created by this command; delete it, or choose another "
                "--namespace"
            )
    received = None if record.wanted is None else record.wanted.received
    if record.wanted is None or received is None or received.expires_at <= now:
        return None  # one that has expired, too: another replica may have written a valid one
    if not is_valid_name(record.name):
        return Refuse("the name of its cluster cannot be converted to a valid object name")
    cluster = record.wanted.cluster
    content = renderer.render(cluster, received.access)
    if content is None:
        return Refuse("the daemon provides no server and CA for its cluster")
    if not isinstance(record.object, Present):
        return Create(claim(renderer.resource, identity, record.name, cluster, content))
    observed = record.object.observed
    if identity.group and observed.incarnation != cluster.incarnation and not is_connected:
        return WaitUntilDue(now + CHECK_S, is_held=True)  # perhaps it has moved, and its next owner has written it
    if observed.content is None:  # its cluster was not engaged when the object was read
        return ReadObject(record.name)
    must_write = record.version == record.deleting
    body, status = changes(renderer.resource, identity, cluster, content, observed, must_write=must_write)
    return None if body is status is None else Apply(observed.uid, observed.resource_version, body, status)


def _is_reported(record: Record, observed: ObservedObject, identity: Identity) -> bool:
    """Return whether an object that is not this publisher's is reported: that of an engaged cluster, and one that names
    a cluster without the labels of any publisher. Perhaps another client has changed them while no publisher saw it."""
    return record.wanted is not None or (bool(observed.cluster) and observed.owner(identity) is Owner.FOREIGN)


def _end(
    record: Record, observed: ObservedObject, now: float, *, is_followed: bool, is_held: bool
) -> DeleteObject | Ask | WaitUntilDue | None:
    match record.end:
        case Elsewhere(math.inf):
            return None
        case _ if not is_followed:
            return WaitUntilDue(now + CHECK_S, is_held=True)
        case EndedCluster(until=until) if now < until:
            return DeleteObject(record.name, observed.uid, observed.resource_version, until)
        case Missing(answered_at=answered_at) as missing:
            ask_at = answered_at + (HELD_S if is_held and missing.is_confirmed else removals.SECOND_LOOK_S)
        case EndedCluster(ask_at=ask_at) | Unasked(ask_at) | Elsewhere(ask_at):
            pass
    return Ask(observed.cluster, observed.cluster_uid) if ask_at <= now else WaitUntilDue(ask_at)


def of_other_run(observed: ObservedObject, identity: Identity) -> str:
    return (
        f"the object of publisher {identity.publisher!r} {observed.difference(identity)}: check the daemon's address "
        "and the filter, choose another --publisher, or take the objects over with --accept-removals"
    )
