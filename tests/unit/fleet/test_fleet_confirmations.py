"""Confirmation reads that the API server refuses are logged once, and counted."""

from milo_discoveryd.objects.pending_deletions import Absent, ConfirmationResult, Inconclusive
from milo_kube.reflect.messages import DeletionReported, Listed, ListEnded, ListStarted
from tests.support.logs import capture_logs
from tests.support.sources import new_source
from tests.unit.fleet.fleets import readable_log, ready
from tests.unit.fleet.test_fleet_malformed import Ledger

NAMES = ("a", "b", "c")
REFUSED = Inconclusive("403: may not get", is_refusal=True)


class CountingLedger(Ledger):
    def __init__(self) -> None:
        super().__init__()
        self.results: list[str] = []

    def confirmed(self, result: str) -> None:
        self.results.append(result)


def logged(*answers: ConfirmationResult) -> tuple[list[str], list[str]]:
    """Answer each confirmation read; return the events logged and the results counted."""
    ledger, now = CountingLedger(), 0.0
    source = new_source(ledger, readable_log())
    reported = (DeletionReported(name, "u1") for name in NAMES)
    for _ in source.apply(
        source.collections[0], [ListStarted(), *(Listed(ready(name)) for name in NAMES), ListEnded(), *reported], now
    ):
        pass
    left = [*answers]
    with capture_logs() as logs:
        while left:
            now += 100.0
            for request in source.collections[0].pending_deletions.take_due(now):
                source.resolve(source.collections[0], request, left.pop(0) if left else Absent(), now)
    return [entry["event"] for entry in logs if "confirmed" in entry["event"]], ledger.results


def test_refused_deletion_confirmations_are_logged_once() -> None:
    events, results = logged(*[REFUSED] * 8)
    assert events == ["deletions cannot be confirmed"]
    assert results == ["refused"] * 8


def test_recovery_of_deletion_confirmations_is_logged_once() -> None:
    events, results = logged(*[REFUSED] * 5, Absent(), Absent(), Absent())
    assert events == ["deletions cannot be confirmed", "deletions can be confirmed again"]
    assert results[-3:] == ["not_found"] * 3


def test_inconclusive_confirmation_reads_are_not_logged_as_refused() -> None:
    assert logged(*[Inconclusive("timeout")] * 3) == ([], ["inconclusive"] * 3)
