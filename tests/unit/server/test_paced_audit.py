"""The rate limit for audit lines about calls."""

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.paced_audit import RATE, PacedAudit

BURST = int(RATE.burst)
JUNK, TOKEN = "CONNECTION_REFUSED", "TOKEN_REJECTED"


class Audit:
    def __init__(self) -> None:
        self.lines: list[tuple[str, object]] = []
        self.counted: list[str] = []

    def noted(self, caller: Caller, rule: str, event: str, **about: object) -> None:
        self.lines.append((event, about.get("suppressed")))

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None:
        self.lines.append((reason, about.get("suppressed")))

    def suppressed(self, reason: str) -> None:
        self.counted.append(reason)


class Pacing:
    def __init__(self) -> None:
        self.now = 0.0
        self.audit = Audit()
        self.paced = PacedAudit(self.audit, lambda: self.now)

    def deny(self, reason: str, times: int = 1, *, uid: int = 0, port: int = 1) -> None:
        for _ in range(times):
            self.paced.refused(Caller(listener="net", uid=uid, peer=f"ipv4:192.0.2.1:{port}"), "", reason)


def test_rate_limited_audit_suppresses_excess_denials_and_counts_them() -> None:
    there = Pacing()
    there.deny(JUNK, 1000)
    assert there.audit.lines == [(JUNK, None)] * BURST
    assert there.audit.counted == [JUNK] * (1000 - BURST)
    there.now = 1.0
    there.deny(JUNK)
    assert there.audit.lines[BURST:] == [(JUNK, 1000 - BURST)]


def test_rate_limited_audit_reports_suppressed_denials_even_if_no_denial_follows() -> None:
    there = Pacing()
    there.deny(JUNK, BURST + 5)
    there.paced.flush()
    there.paced.flush()
    assert there.audit.lines[BURST:] == [(JUNK, 5)]


def test_rate_limited_audit_has_a_budget_per_reason_and_caller() -> None:
    there = Pacing()
    there.deny(JUNK, 60)
    there.deny(TOKEN, BURST)
    there.deny(JUNK, 1, uid=1)
    assert there.audit.lines[BURST:] == [(TOKEN, None)] * BURST + [(JUNK, None)]


def test_rate_limited_audit_budget_is_not_per_port() -> None:
    there = Pacing()
    for port in range(100):
        there.deny(JUNK, port=port)
    assert len(there.audit.lines) == BURST


def test_audit_rate_limit_applies_to_successful_calls_and_counts_suppressed_ones_by_event() -> None:
    there = Pacing()
    for _ in range(BURST + 3):
        there.paced.noted_at_rate(Caller(listener="net"), "", "subscription ended")
    there.paced.flush()
    assert there.audit.lines[BURST:] == [("subscription ended", 3)]
    assert not there.audit.counted, "successful calls are not counted as denials"


def test_rate_limited_audit_does_not_limit_release_events() -> None:
    there = Pacing()
    for _ in range(BURST + 3):
        there.paced.noted(Caller(listener="net"), "", "cluster released")
    assert there.audit.lines == [("cluster released", None)] * (BURST + 3)
