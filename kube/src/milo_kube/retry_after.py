"""How long to wait where a server states a delay, as in the header Retry-After. Pure.

One policy for all clients: not earlier than the server states, up to a limit, and with jitter, so that clients that
received the same time do not retry together.
"""

import re
from collections.abc import Mapping
from datetime import datetime

LONGEST_S = 300.0
"""Maximum delay that is accepted from a server, or from a proxy in front of it."""
_JITTER_S = 1.0


def delay_s(own_s: float, stated_s: float | None, *, at_most_s: float = LONGEST_S) -> float:
    """Return the delay before a retry. `own_s`: that of the client's own backoff, with its jitter."""
    if stated_s is None:
        return own_s
    return max(own_s, min(stated_s, at_most_s) + min(own_s, _JITTER_S))


def stated(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the delay that a response states, in seconds; None without a valid one. A past date means 0."""
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    # Imported here to save start-up time: API servers send seconds, only some proxies send dates.
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return None
