"""Times in the format of RFC 3339, as Kubernetes writes them: in UTC, with a fixed number of digits."""

from datetime import UTC, datetime
from typing import Literal


def rfc3339(moment: datetime, timespec: Literal["seconds", "milliseconds", "microseconds"] = "seconds") -> str:
    """Format a time; metav1.Time has seconds, metav1.MicroTime microseconds."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
