"""Times as Kubernetes writes them."""

from datetime import UTC, datetime, timedelta, timezone

from milo_kube.rfc3339 import rfc3339


def test_rfc3339_time_is_in_utc_with_the_requested_precision() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, timezone(timedelta(hours=2)))
    assert rfc3339(at) == "2026-01-02T01:04:05Z"
    assert rfc3339(at, "milliseconds") == "2026-01-02T01:04:05.678Z"
    assert rfc3339(at.astimezone(UTC), "microseconds") == "2026-01-02T01:04:05.678000Z"


def test_rfc3339_formats_unix_time() -> None:
    assert rfc3339(0.5, "milliseconds") == "1970-01-01T00:00:00.500Z"
