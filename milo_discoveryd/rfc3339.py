"""Timestamps in the format of RFC 3339, which Kubernetes uses."""

from datetime import UTC, datetime
from typing import Literal


def rfc3339(wall: float, timespec: Literal["seconds", "milliseconds", "microseconds"] = "seconds") -> str:
    """Format a Unix time in UTC."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
