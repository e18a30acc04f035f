"""The difference between this machine's clock and an API server's, from the Date header of its responses. Pure."""

from datetime import UTC, datetime

TOLERATED_S = 60.0
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def seconds_ahead(date: str | None, sent_at: float, received_at: float) -> float:
    """Return how far the server's clock is ahead of this machine's, negative if it is behind; 0 without a valid date.

    The server wrote the date between the two times, both in seconds since the epoch.
    """
    try:
        # Parsed without email.utils, which the daemon would load at its start only for this purpose.
        _, day, month, year, time, zone = (date or "").split()
        hour, minute, second = map(int, time.split(":"))
        stated = datetime(int(year), _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
    if zone != "GMT":
        return 0.0
    return max(0.0, stated - received_at) + min(0.0, stated - sent_at)
