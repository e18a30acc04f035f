"""The messages of the stream: headers and JSON of a cluster, of a scope's state, and of an object. Pure.

What a reader compares is in headers, so that it need not decode the body.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from milo_objects.kinds import Kind
from milo_objects.projection import ProjectedObject
from milo_objects.scope import FleetCluster, Gone, OverBudget, ScopeState, Synced
from milo_objects.subjects import ClusterSubject, ScopeSubject, Subject, parse

STATE: Final = "Milo-State"
REASON: Final = "Milo-Reason"
GONE: Final = "Milo-Gone"
UID: Final = "Milo-Uid"
VERSION: Final = "Milo-Version"
INCARNATION: Final = "Milo-Incarnation"
EPOCH: Final = "Milo-Epoch"

LONGEST_PROBLEM: Final = 240
"""Maximum length of a problem, in bytes of the message."""
_STATE_BYTES: Final = 768
"""What the message of a SYNCED scope takes besides its cluster and its publisher."""
_SHORTER: Final = 64
"""A full stream takes a message that is shorter than the one it replaces. What says that something has ended, or is no
longer so, is shorter by this, which is more than Milo-Reason, Nats-TTL and a longer expected sequence take."""
_SHORTENED: Final = 192
"""That of a cluster and of an object, whose identity may have grown: by the time of its deletion, for example."""

T = TypeVar("T")


class Encoded(NamedTuple):
    """A message as NATS sends it."""

    headers: dict[str, str]
    body: bytes


class StoredMessage(NamedTuple):
    """A message as the stream has it."""

    subject: str
    sequence: int
    headers: Mapping[str, str]
    body: bytes
    at: float = 0.0
    """When it was stored, by the server's clock."""


class ScopeIsOver(msgspec.Struct, frozen=True, tag_field="state", tag="ENDED"):
    """The scope has ended, and with it all of its objects."""

    reason: str
    """The reason for which the cluster ended, or WITHDRAWN if its kind is no longer declared."""


class ClusterMessage(msgspec.Struct, frozen=True):
    """A cluster is engaged, or has ended for a reason."""

    cluster: FleetCluster
    ended: str = ""

    def encode(self) -> Encoded:
        headers = {
            STATE: "ENDED" if self.ended else "ENGAGED",
            UID: self.cluster.uid,
            INCARNATION: self.cluster.incarnation,
            **({REASON: self.ended} if self.ended else {}),
        }
        body = msgspec.json.encode(self.cluster)
        return Encoded(headers, body if self.ended else body.ljust(len(body) + _SHORTENED))

    def differs(self, published: ClusterMessage) -> bool:
        return self != published

    @classmethod
    def decode(cls, stored: StoredMessage) -> ClusterMessage:
        """Raises ValueError."""
        cluster = _decode(stored, _CLUSTERS)
        return cls(cluster, stored.headers.get(REASON, "UNSPECIFIED") if stored.headers.get(STATE) == "ENDED" else "")


class ScopeMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a scope. It has the cluster, for readers that may read one kind only."""

    cluster: FleetCluster
    state: ScopeState | ScopeIsOver
    epoch: int
    """Which of the scopes of this kind in this cluster: it grows with each."""
    publisher: str = ""
    """The publisher that has read the scope, as its heartbeats name it; empty if any may have."""

    @property
    def ends_cluster(self) -> bool:
        """Whether the cluster has ended, and not the scope alone."""
        return isinstance(self.state, ScopeIsOver) and self.state.reason != Gone.WITHDRAWN.value

    @property
    def _rank(self) -> int:
        """The states that a full stream takes after this one have a higher rank."""
        if isinstance(self.state, Synced):
            return 0
        return 3 if isinstance(self.state, ScopeIsOver) else 2 if isinstance(self.state, OverBudget) else 1

    def encode(self) -> Encoded:
        headers = {STATE: str(self.state.__struct_config__.tag), UID: self.cluster.uid, EPOCH: str(self.epoch)}
        if isinstance(self.state, ScopeIsOver):
            headers[REASON] = self.state.reason
        size = len(msgspec.json.encode(self.cluster)) + _STATE_BYTES - sum(map(len, (*headers, *headers.values())))
        size += len(msgspec.json.encode(self.publisher)) - _SHORTER * self._rank
        return Encoded(headers, msgspec.json.encode(self).ljust(size))

    def differs(self, published: ScopeMessage) -> bool:
        """Return whether it differs in more than the time of the state, and the engagement by a restarted daemon."""
        cluster = replace(self.cluster, incarnation=published.cluster.incarnation)
        state: ScopeState | ScopeIsOver = self.state
        if not isinstance(state, ScopeIsOver) and not isinstance(published.state, ScopeIsOver):
            state = replace(state, since=published.state.since)
        return ScopeMessage(cluster, state, self.epoch, self.publisher) != published

    def within(self, published: Message | None) -> ScopeMessage:
        """Return what a full stream takes of this first: the state alone, as the rest may be longer."""
        if not isinstance(published, ScopeMessage) or isinstance(self.state, ScopeIsOver):
            return self
        first = replace(self, cluster=published.cluster, publisher=published.publisher)
        is_same = (published.epoch, published.cluster.uid) == (self.epoch, self.cluster.uid)
        return first if is_same and first.differs(published) else self

    @classmethod
    def decode(cls, stored: StoredMessage) -> ScopeMessage:
        """Raises ValueError."""
        found = _decode(stored, _SCOPES)
        if not isinstance(found.state, ScopeIsOver) and found.state.since.tzinfo is None:
            raise _unusable(stored, "the time of its state has no time zone")  # times of scopes are compared
        return found


class ObjectMessage(msgspec.Struct, frozen=True, gc=False):
    """An object as it was last sent; with `gone`, what identifies it, and why it is no longer there."""

    object: ProjectedObject
    epoch: int
    """That of its scope. An object of an earlier one is no longer there."""
    gone: str = ""

    def __post_init__(self) -> None:
        if self.gone and self.object.content != b"{}":
            # Without its fields, so that it is shorter, and because it is remembered for an hour.
            msgspec.structs.force_setattr(self, "object", replace(self.object, content=b"{}"))

    def encode(self) -> Encoded:
        headers = {UID: self.object.uid, VERSION: self.object.version, EPOCH: str(self.epoch)}
        if self.gone:
            headers[GONE] = self.gone
        body = encode_object(self.object)
        lacks = 0 if self.gone else _SHORTENED - len(self.object.content)
        return Encoded(headers, body.ljust(len(body) + lacks) if lacks > 0 else body)

    def differs(self, published: ObjectMessage) -> bool:
        if self.gone or published.gone or self.epoch != published.epoch:
            return (self.gone, self.epoch) != (published.gone, published.epoch)
        return not self.object.equals(published.object)

    @classmethod
    def decode(cls, stored: StoredMessage) -> ObjectMessage:
        """Raises ValueError."""
        return cls(decode_object(stored), _epoch(stored), stored.headers.get(GONE, ""))

    @classmethod
    def decode_kept(cls, stored: StoredMessage, kind: Kind) -> ObjectMessage:
        """Decode what a reader's kind keeps of an object: gone if it does not select it. Raises ValueError."""
        if GONE in stored.headers:
            return cls.decode(stored)
        seen = kind.decoder.object(stored.body)
        if seen is None or seen.problem:
            raise _unusable(stored, "no object with a name" if seen is None else seen.problem)
        if seen.projected is None:
            found = ProjectedObject(seen.namespace, seen.name, seen.uid)
            return cls(found, _epoch(stored), Gone.OUT_OF_SELECTOR.value)
        return cls(seen.projected, _epoch(stored))


class Heartbeat(msgspec.Struct, frozen=True):
    """A publisher runs, and follows clusters. That of an earlier version has no body, and stands for all clusters."""

    publisher: str
    """The member of a shard group whose clusters it follows; empty outside of a group."""
    sources: dict[str, str]
    """Why it does not follow all clusters of a source, by the name of the source; empty if it does."""

    @property
    def is_useful(self) -> bool:
        """Whether it follows all clusters of any source. Readers of an earlier version believe it for all sources."""
        return not all(self.sources.values())

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, stored: StoredMessage) -> Heartbeat | None:
        """Return None for that of an earlier version. Raises ValueError."""
        return _decode(stored, _HEARTBEATS) if stored.body else None


Message: TypeAlias = ClusterMessage | ScopeMessage | ObjectMessage


class _Identity(msgspec.Struct, omit_defaults=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class _Identified(msgspec.Struct):
    metadata: _Identity


_Raws: TypeAlias = dict[str, msgspec.Raw]
_RAWS: msgspec.json.Decoder[_Raws] = msgspec.json.Decoder(_Raws)
_IDENTIFIED = msgspec.json.Decoder(_Identified)
_CLUSTERS = msgspec.json.Decoder(FleetCluster)
_SCOPES = msgspec.json.Decoder(ScopeMessage)
_HEARTBEATS = msgspec.json.Decoder(Heartbeat)
_IDENTITY_FIELDS: Final = frozenset(field.encode_name for field in msgspec.structs.fields(_Identity))
# msgspec raises UnicodeError for invalid text and RecursionError for deep nesting.
_UNDECODABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


def encode_object(projected: ProjectedObject) -> bytes:
    """Return the object as JSON, with its identity in `metadata`, as Kubernetes has it."""
    identity = msgspec.json.encode(
        _Identity(
            *(projected.name, projected.namespace, projected.uid, projected.version, projected.generation),
            *(projected.created_at, projected.deletion_requested_at),
        )
    )
    if projected.content == b"{}":
        return b'{"metadata":' + identity + b"}"
    fields = _RAWS.decode(projected.content)
    if "metadata" in fields:
        identity = msgspec.json.encode({**_RAWS.decode(identity), **_RAWS.decode(fields["metadata"])})
    return msgspec.json.encode({**fields, "metadata": msgspec.Raw(identity)})


def decode_object(stored: StoredMessage) -> ProjectedObject:
    """Raises ValueError."""
    try:
        identity = _IDENTIFIED.decode(stored.body).metadata
        fields = _RAWS.decode(stored.body)
        metadata = {
            name: value for name, value in _RAWS.decode(fields["metadata"]).items() if name not in _IDENTITY_FIELDS
        }
        if metadata:
            fields["metadata"] = msgspec.Raw(msgspec.json.encode(metadata))
        else:
            del fields["metadata"]
        content = msgspec.json.encode(fields)
        msgspec.json.decode(content)  # which readers do later, of objects of all clusters
    except _UNDECODABLE as error:
        raise _unusable(stored, error) from error
    return ProjectedObject(
        namespace=identity.namespace,
        name=identity.name,
        uid=identity.uid,
        content=content,
        version=identity.resource_version,
        generation=identity.generation,
        created_at=identity.creation_timestamp,
        deletion_requested_at=identity.deletion_timestamp,
    )


def decode(stored: StoredMessage) -> tuple[Subject, Message]:
    """Return what a message is about, and the message. Raises ValueError, also for a message about something else than
    its subject: NATS' permissions limit who writes which subjects."""
    message: Message
    match subject := parse(stored.subject):
        case ClusterSubject():
            message = ClusterMessage.decode(stored)
            is_about_it = message.cluster.name == subject.cluster
        case ScopeSubject():
            message = ScopeMessage.decode(stored)
            is_about_it = message.cluster.name == subject.cluster
        case _:
            message = ObjectMessage.decode(stored)
            is_about_it = message.object.place == (subject.namespace, subject.name)
    if not is_about_it:
        raise _unusable(stored, "it is about something else than its subject")
    return subject, message


Stored: TypeAlias = Mapping[Subject, tuple[Message | None, int]]
"""The message of each subject of a stream, and its sequence. One that cannot be decoded is there to be overwritten."""


def decoded(stored: Iterable[StoredMessage]) -> Stored:
    found: dict[Subject, tuple[Message | None, int]] = {}
    for each in stored:
        try:
            subject, message = decode(each)
        except ValueError:
            try:
                subject, message = parse(each.subject), None
            except ValueError:
                continue
        found[subject] = message, each.sequence
    return found


def _epoch(stored: StoredMessage) -> int:
    epoch = stored.headers.get(EPOCH, "")
    if not (epoch.isascii() and epoch.isdecimal()):
        raise _unusable(stored, f"no {EPOCH}")
    return int(epoch)


def _decode(stored: StoredMessage, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(stored.body)
    except _UNDECODABLE as error:
        raise _unusable(stored, error) from error


def _unusable(stored: StoredMessage, problem: object) -> ValueError:
    return ValueError(f"{stored.subject}, sequence {stored.sequence}: not a message of milo-objects: {problem}")
