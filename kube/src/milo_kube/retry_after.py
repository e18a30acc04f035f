"""Retry delays that respect the header Retry-After. Pure.

One policy for all clients: not earlier than the server requests, up to a limit, and with jitter, so that clients that
received the same time do not retry together.
"""

import re
from collections.abc import Mapping
from datetime import datetime

LONGEST_S = 300.0
"""Maximum delay that is accepted from a server, or from a proxy in front of it."""
_JITTER_S = 1.0


def delay_s(own_s: float, stated_s: float | None, *, at_most_s: float = LONGEST_S) -> float:
    """Return the delay before a retry. `own_s`: the client's backoff, with jitter. `stated_s`: the server's
    Retry-After."""
    if stated_s is None:
        return own_s
    return max(own_s, min(stated_s, at_most_s) + min(own_s, _JITTER_S))


def stated(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return a response's Retry-After in seconds; None if it is missing or invalid. A past date means 0."""
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    # Imported here because it is rarely needed: API servers send seconds, and only some proxies send dates.
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
        return None
