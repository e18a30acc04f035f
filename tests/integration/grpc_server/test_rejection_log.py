"""Those who were turned away are written down, and can't flood what they are written in."""

import pytest

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.connections import rejection_log

SOMEBODY = Caller(listener="net", peer="ipv4:192.0.2.1:5")


class Written:
    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None:
        self.lines.append({"caller": caller, "reason": reason, **about})


def test_what_is_not_written_of_a_flood_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(rejection_log.time, "monotonic", lambda: now)
    audit = Written()
    turned_away = rejection_log.RejectionLog(audit)
    for _ in range(1000):
        turned_away.tell(SOMEBODY, "CONNECTION_REFUSED", "no certificate")
    assert audit.lines == [{"caller": SOMEBODY, "reason": "CONNECTION_REFUSED", "problem": "no certificate"}] * 10
    now += 10
    turned_away.tell(SOMEBODY, "CONNECTION_REFUSED", "no certificate")
    turned_away.tell(SOMEBODY, "CONNECTION_REFUSED", "no certificate")
    assert [line.get("untold_before") for line in audit.lines[10:]] == [990, None]
