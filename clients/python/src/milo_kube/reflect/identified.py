"""The fields of an object that list and watch read: all others are up to the decoder that made it."""

from typing import Protocol, TypeVar


class Identified(Protocol):
    """An object as a decoder returns it."""

    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str:
        """Empty if it could not be read."""

    @property
    def version(self) -> str:
        """The resource version."""


Seen = TypeVar("Seen", bound=Identified)
