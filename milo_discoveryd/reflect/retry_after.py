"""When a server says it is to be asked again: `Retry-After`, as seconds or as a date."""

import re
from datetime import datetime
from email.utils import parsedate_to_datetime


def seconds(text: str, now: datetime) -> float | None:
    """None where it says neither, as if it weren't there. A date may be in the past."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError):  # the latter for a date without a zone
        return None
