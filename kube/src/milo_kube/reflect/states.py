"""The states of a reflector, each with only the data that is valid in it."""

import math

import msgspec


class Waiting(msgspec.Struct, frozen=True):
    until: float
    version: str
    """The version to watch from; empty to list."""


class ListingPages(msgspec.Struct, frozen=True):
    continue_token: str = ""


class Opening(msgspec.Struct, frozen=True):
    version: str
    timeout_s: int


class Filling(msgspec.Struct, frozen=True):
    """A streaming list is being read. `heard_at` is updated by each chunk."""

    heard_at: float
    line_due_at: float = math.inf
    """Deadline for the rest of a partly received line."""


class Watching(msgspec.Struct, frozen=True):
    version: str
    opened_at: float
    heard_at: float
    timeout_s: int
    proven: bool = False
    """Whether an event arrived, which shows that the server knows the version that the watch was opened from."""
    line_due_at: float = math.inf


ReflectorState = Waiting | ListingPages | Opening | Filling | Watching
