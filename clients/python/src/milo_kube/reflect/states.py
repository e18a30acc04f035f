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
    """Reading a streaming list. `heard_at` moves with each chunk."""

    heard_at: float
    line_due_at: float = math.inf
    """When a line that has begun must be complete."""


class Watching(msgspec.Struct, frozen=True):
    version: str
    opened_at: float
    heard_at: float
    timeout_s: int
    proven: bool = False
    """Something arrived: the server knows the version that the watch was opened from."""
    line_due_at: float = math.inf


ReflectorState = Waiting | ListingPages | Opening | Filling | Watching
