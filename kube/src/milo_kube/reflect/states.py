"""The states of a reflector, each with only the data that is valid in that state, and what the reflector has recorded
about the server."""

import math

import msgspec

from milo_kube.list_pages import ListPages, PageSize


class ServerTrust(msgspec.Struct):
    """Evidence that the responding server is still the one that all data came from."""

    sends_bookmarks: bool = False
    is_known: bool = False
    """Whether, since the last disconnect, the server has sent a list or shown that it has the last version."""

    @property
    def expects_bookmarks(self) -> bool:
        """Whether a watch that receives no bookmarks counts as failed.

        It does if the server has sent bookmarks before. It also does if the server may have been replaced: if the new
        server does not have the version from which the watch starts, the watch never receives anything.
        """
        return self.sends_bookmarks or not self.is_known


class ListMethod(msgspec.Struct):
    """The way in which lists are requested: streaming, in pages, or in one response."""

    streaming: bool
    page_size: PageSize
    paged_next: bool = False
    """Whether the next list is requested in pages although the server may support streaming lists."""
    unpaged_next: bool = False
    pages_expired: bool = False
    """Whether the version of the last list was compacted before all its pages were read."""

    @property
    def is_streaming(self) -> bool:
        return self.streaming and not self.paged_next

    @property
    def limit(self) -> int:
        return 0 if self.unpaged_next else self.page_size.objects

    def pages_outlived_version(self) -> None:
        """Handle the compaction of the version of a paged list: request pages again or, after two such lists in a row,
        the whole list in one response."""
        self.unpaged_next, self.pages_expired, self.paged_next = self.pages_expired, True, True

    def ask_for_less(self) -> bool:
        """Request smaller pages, because one was too large; return whether that is possible."""
        return not self.unpaged_next and self.page_size.shrink()

    def pages_restarted(self) -> None:
        """Request pages again, because the whole list is too large for one response."""
        self.unpaged_next = self.pages_expired = False

    def pages_ended(self) -> None:
        self.paged_next = self.unpaged_next = False


class Waiting(msgspec.Struct, frozen=True):
    until: float
    version: str
    """The version to watch from; empty if a list is to be requested instead."""


class ListingPages(msgspec.Struct, frozen=True):
    continue_token: str = ""
    read: ListPages | None = None
    """None until a page was read."""


class Opening(msgspec.Struct, frozen=True):
    version: str
    timeout_s: int


class Filling(msgspec.Struct, frozen=True):
    """A streaming list is being read. `heard_at` is updated by each chunk."""

    begun_at: float
    heard_at: float
    line_due_at: float = math.inf
    """Deadline for the rest of a partly received line."""


class Watching(msgspec.Struct, frozen=True):
    version: str
    opened_at: float
    heard_at: float
    timeout_s: int
    proven: bool = False
    """Whether an event arrived, which shows that the server has the version that the watch was opened from."""
    line_due_at: float = math.inf


ReflectorState = Waiting | ListingPages | Opening | Filling | Watching
