"""The Retry-After header: seconds, or a date."""

import re
from datetime import datetime


def seconds(text: str, now: datetime) -> float | None:
    """Parse the header; None if it is invalid. The result for a past date is negative."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    # Imported here to save start-up time: API servers send seconds, only some proxies send dates.
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        return (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return None
