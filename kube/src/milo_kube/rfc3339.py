"""Times in the format of RFC 3339, as Kubernetes writes them: in UTC, with a fixed number of digits."""

from datetime import UTC, datetime
from typing import Literal


def rfc3339(moment: datetime | float, timespec: Literal["seconds", "milliseconds", "microseconds"] = "seconds") -> str:
    """Format a time, or a Unix time; metav1.Time has seconds, metav1.MicroTime microseconds."""
    at = datetime.fromtimestamp(moment, UTC) if isinstance(moment, float | int) else moment.astimezone(UTC)
    return at.isoformat(timespec=timespec).replace("+00:00", "Z")
