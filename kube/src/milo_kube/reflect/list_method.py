"""The way in which lists are requested, as far as the server supports it."""

import msgspec


class ListMethod(msgspec.Struct):
    """The way in which lists are requested: streaming, in pages, or in one response."""

    streaming: bool
    page_size: int
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
        return 0 if self.unpaged_next else self.page_size

    def pages_outlived_version(self) -> None:
        """Request pages again or, after the second time in a row, the whole list in one response."""
        self.unpaged_next, self.pages_expired, self.paged_next = self.pages_expired, True, True

    def pages_ended(self) -> None:
        self.paged_next = self.unpaged_next = False
