"""The Retry-After header: seconds, or a date."""

import re
from datetime import datetime


def seconds(text: str, now: datetime) -> float | None:
    """Return None if the header is neither, as if it were absent. The result of a past date is negative."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    # API servers send seconds. The email package, which every start would pay for, is for proxies that send dates.
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        return (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return None
