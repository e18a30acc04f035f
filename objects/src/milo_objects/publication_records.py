"""What is to be in the stream and what is there: a record for each subject, and what its write waits for. Pure."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from milo_kube.reflect.versions import is_older
from milo_objects.messages import Message, ObjectMessage
from milo_objects.subjects import Subject

GONE_TTL_S: Final = 3600.0
"""How long the stream keeps the message that an object is gone, or that a scope or a cluster has ended."""


class Idle(msgspec.Struct, frozen=True):
    """No write is on its way."""


class Queued(msgspec.Struct, frozen=True):
    """The record waits for its turn."""


class InFlight(msgspec.Struct, frozen=True):
    """A write was sent, and its acknowledgment has not arrived."""

    ticket: int


class Deferred(msgspec.Struct, frozen=True):
    """The record is considered again at a time."""

    until: float
    problem: str = ""
    """Why the last write was refused; empty if none was."""
    then_writes: bool = False
    """Whether it is written then, whatever the version in the stream."""


class RefusedMessage(msgspec.Struct, frozen=True):
    """What is desired cannot be written. Nothing is sent until something else is desired."""

    problem: str


Attempt: TypeAlias = Idle | Queued | InFlight | Deferred | RefusedMessage
IDLE: Final = Idle()
QUEUED: Final = Queued()


class SubjectRecord(msgspec.Struct, frozen=True, gc=False):
    """The last message of a subject, as it is to be and as it is."""

    subject: Subject
    desired: Message | None = None
    """None if the source has not said."""
    published: Message | None = None
    sequence: int = 0
    """The sequence of the subject's last message, which the next write expects; 0 if there is none."""
    attempt: Attempt = IDLE
    is_unsure: bool = False
    """Whether a write with an unknown outcome may be stored yet. Another one is sent, which makes that impossible."""

    @property
    def is_pending(self) -> bool:
        """Whether the stream does not have what is desired."""
        if self.desired is None:
            return False
        if self.published is None:
            return self.is_unsure or not is_gone(self.desired)
        return self.is_unsure or self.desired.differs(self.published)  # type: ignore[arg-type]

    @property
    def is_behind(self) -> bool:
        """Whether the stream has a newer state of the object, which another publisher wrote."""
        desired, published = self.desired, self.published
        if self.is_unsure or not isinstance(desired, ObjectMessage) or not isinstance(published, ObjectMessage):
            return False
        is_same_scope = desired.epoch == published.epoch
        return is_same_scope and is_older(desired.object.version, published.object.version)

    @property
    def is_unproven(self) -> bool:
        """Whether the stream has an object of which the source has said nothing."""
        return self.desired is None and self.published is not None and not is_gone(self.published)

    def compact(self) -> SubjectRecord:
        """Return the record with at most one object in memory: of what the stream has, it can be compared whether that
        is desired."""
        desired, published = self.desired, self.published
        if desired is published or not isinstance(published, ObjectMessage):
            return self
        if (
            isinstance(desired, ObjectMessage)
            and not desired.differs(published)
            and not is_older(desired.object.version, published.object.version)
        ):
            return replace(self, published=desired)
        return replace(self, published=replace(published, object=published.object.digested()))

    @property
    def is_done(self) -> bool:
        """Whether nothing is known of the subject that is worth a record."""
        is_wanted = self.desired is not None and not is_gone(self.desired)
        return not is_wanted and self.published is None and not self.is_unsure and not is_sent(self.attempt)

    @property
    def problem(self) -> str:
        return self.attempt.problem if isinstance(self.attempt, Deferred | RefusedMessage) else ""


def is_gone(message: Message) -> bool:
    return isinstance(message, ObjectMessage) and bool(message.gone)


def is_sent(attempt: Attempt) -> bool:
    return isinstance(attempt, InFlight)
