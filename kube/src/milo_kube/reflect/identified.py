"""The fields of an object that list and watch read. The decoder decides which others it keeps."""

from typing import Protocol, TypeVar


class Identified(Protocol):
    """An object as a decoder returns it."""

    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str:
        """The UID; empty if it could not be read."""

    @property
    def version(self) -> str:
        """The resource version."""


Seen = TypeVar("Seen", bound=Identified)
