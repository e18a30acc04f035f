"""Messages between the reflector and its driver: requests, their failures, and the resulting source events."""

from typing import Generic

import msgspec

from milo_kube.reflect.wire import Seen

# --- requests to the driver ---


class Wait(msgspec.Struct, frozen=True):
    until: float


class FetchPage(msgspec.Struct, frozen=True):
    continue_token: str
    limit: int
    """Maximum objects per page; 0 for the whole list in one response."""


class OpenWatch(msgspec.Struct, frozen=True):
    version: str
    """Empty for a streaming list: the watch begins with the list."""
    timeout_s: int


class ReadWatch(msgspec.Struct, frozen=True):
    until: float
    """When to call `Reflector.silent` if nothing arrives."""


Request = Wait | FetchPage | OpenWatch | ReadWatch


# --- failures from the driver ---

MALFORMED_RESPONSE = "MalformedResponse"
RESPONSE_TOO_LARGE = "ResponseTooLarge"
"""The response has more bytes than are read of one."""
UNRESPONSIVE = "Unresponsive"
"""The server did not answer liveness checks, or failed them."""
UNEXPECTED_ERROR = "UnexpectedError"
"""An unexpected exception ended the list or watch. It is in the log."""
VERY_SHORT_WATCH = "VeryShortWatch"
"""The server ended the watch in its first second."""


class Failure(msgspec.Struct, frozen=True):
    """The failure of a request, or of an open watch."""

    reason: str
    """One CamelCase word."""
    message: str
    status: int = 0
    """The HTTP status code, or the `code` of a Status object in the watch."""
    retry_after_s: float | None = None
    is_sent: bool = False
    """Whether the server ended an open watch with an error or at once, rather than that its connection was lost."""


# --- source events ---


class ListStarted(msgspec.Struct, frozen=True):
    """A list began. An earlier list that is incomplete is discarded."""


class Listed(msgspec.Struct, Generic[Seen], frozen=True):
    observation: Seen


class Unlisted(msgspec.Struct, frozen=True):
    """An object of an incomplete streaming list was deleted, or left the selector."""

    name: str
    namespace: str = ""


class ListEnded(msgspec.Struct, frozen=True):
    """The list is complete: objects that it does not contain do not exist within the selector."""

    version: str = ""
    """The list's resourceVersion; empty if the server returned none."""


class ObjectChanged(msgspec.Struct, Generic[Seen], frozen=True):
    observation: Seen


class DeletionReported(msgspec.Struct, Generic[Seen], frozen=True):
    """The watch reported a deletion. The object may also have left the selector, or the server may be wrong."""

    name: str
    uid: str
    namespace: str = ""
    version: str = ""
    """The resource version of the deletion; empty if the server sent none."""
    last: Seen | None = None
    """The object as it was last, if the decoder keeps it."""


class VersionReached(msgspec.Struct, frozen=True):
    """The watch has shown every change up to this resource version."""

    version: str


class Relisting(msgspec.Struct, frozen=True):
    reason: str
    """The reason, as a label value in metrics."""


class EventIgnored(msgspec.Struct, frozen=True):
    """A watch event that could not be used."""

    problem: str


SourceEvent = (
    ListStarted
    | Listed[Seen]
    | Unlisted
    | ListEnded
    | ObjectChanged[Seen]
    | DeletionReported[Seen]
    | VersionReached
    | Relisting
    | EventIgnored
)
