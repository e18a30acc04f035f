"""The bounds of a list that is read in pages: a faulty or hostile server may continue it forever. Pure."""

from typing import Final, Self

import msgspec

MAX_PAGES: Final = 2_000
MAX_S: Final = 600.0
"""API servers keep the version of a list for five to ten minutes."""
LONGEST_TOKEN: Final = 4 << 10
"""Maximum characters of the token of the next page: it is sent in a URL, and to escape some MiB takes seconds."""


class EndlessListError(ValueError):
    """A list did not end within the bounds, or cannot be continued."""


class ListPages(msgspec.Struct, frozen=True):
    """The pages of a list that were read so far."""

    began_at: float
    count: int = 0

    def next(self, token: object, now: float) -> Self:
        """Count a page that another one follows, with this token. Raises EndlessListError."""
        if not isinstance(token, str) or len(token) > LONGEST_TOKEN:
            raise EndlessListError(f"the `continue` of the list is not a string of at most {LONGEST_TOKEN} characters")
        count = self.count + 1
        if count >= MAX_PAGES or now - self.began_at >= MAX_S:
            raise EndlessListError(
                f"the list did not end in {count} pages and {now - self.began_at:.0f} s "
                f"(at most {MAX_PAGES} pages, {MAX_S:.0f} s): the server is faulty, or the pages are too small"
            )
        return msgspec.structs.replace(self, count=count)


def smaller(size: int) -> int:
    """Return how many objects to ask for, of which `size` are more bytes than are read of a response."""
    return max(1, size // 5)


_PAGES_THAT_FIT = 5
"""Number of pages in a row that were not too large, after which larger ones are requested again: a few large objects
must not divide all others into more pages than are read."""


class PageSize(msgspec.Struct):
    """How many objects to ask for: fewer than `most` while pages of that many are too large."""

    most: int
    fewer: int | None = None
    fitted: int = 0
    """Number of pages that were read with this size."""

    @property
    def objects(self) -> int:
        return self.fewer or self.most

    def shrink(self) -> bool:
        """Ask for less, because a page was too large; return whether that is possible."""
        if self.objects == 1:
            return False
        self.fewer, self.fitted = smaller(self.objects), 0
        return True

    def page_fitted(self) -> None:
        """Ask for more again after some pages that were not too large."""
        self.fitted += 1
        if self.fewer is not None and self.fitted >= _PAGES_THAT_FIT:
            more, self.fitted = self.fewer * 5, 0
            self.fewer = more if more < self.most else None
