"""What a publication asks of the stream and of its source. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from milo_objects.messages import ClusterMessage, Encoded, Message, ObjectMessage, ScopeIsOver, ScopeMessage
from milo_objects.publication_records import GONE_TTL_S
from milo_objects.subjects import LONGEST_SUBJECT, ScopeSubject, Subject

_FRAME_BYTES: Final = 512
"""What the headers of a message take at most, besides its subject."""


class ReadCluster(NamedTuple):
    """Read the last messages of a cluster's subjects."""

    cluster: str
    ticket: int


class WriteMessage(NamedTuple):
    """Write the message of a subject whose last message has the sequence `expected`."""

    subject: Subject
    message: Message
    encoded: Encoded
    expected: int
    ttl_s: float | None
    ticket: int


class Purge(NamedTuple):
    """Delete the messages of a scope's objects with a lower sequence."""

    scope: ScopeSubject
    below: int
    ticket: int


class Relist(NamedTuple):
    """List a scope again."""

    scope: ScopeSubject


Command: TypeAlias = ReadCluster | WriteMessage | Purge | Relist


def ttl_s(message: Message) -> float | None:
    """Return how long the stream keeps the message; None if until the next one of its subject."""
    match message:
        case ObjectMessage(gone=reason) if reason:
            return GONE_TTL_S
        case ClusterMessage(ended=reason) if reason:
            return GONE_TTL_S
        case ScopeMessage(state=ScopeIsOver()):
            return GONE_TTL_S
    return None


def problem_of(subject: Subject, encoded: Encoded, limit: int) -> str:
    """Return why a message cannot be sent; empty if it can."""
    headers = sum(len(value.encode()) for value in encoded.headers.values())
    length, size = len(str(subject)), len(encoded.body) + _FRAME_BYTES + headers
    if length > LONGEST_SUBJECT:
        return f"its name makes a subject of {length} bytes, and at most {LONGEST_SUBJECT} are possible"
    if size > limit:
        return f"it takes {size} bytes, more than the {limit} of max_payload; name fewer fields of the kind"
    return ""
