"""`milo-discoveryd check`: looks at all that the settings point to, and says what is wrong and how to mend it."""

from milo_discoveryd.check.sequence import check
from milo_discoveryd.check.standing import caller, standing

__all__ = ["caller", "check", "standing"]
