"""`milo-discoveryd check`: looks at all that the settings point to, and says what is wrong and how to mend it."""

from milo_discoveryd.check.sequence import check

__all__ = ["check"]
