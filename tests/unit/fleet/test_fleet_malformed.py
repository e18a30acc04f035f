"""Malformed objects are reported once each until they recover, however often they are written."""

from milo_discoveryd.model.observation import Malformed, Refused
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from tests.support.sources import new_source
from tests.unit.fleet.fleets import malformed, readable_log, ready


class Ledger(Journal):
    def __init__(self) -> None:
        super().__init__(Metrics().sources, Audit(Metrics().audit))
        self.refused: list[tuple[str, str]] = []

    def object_reported(self, observation: Malformed | Refused) -> None:
        self.refused.append((observation.name, observation.version))


def reported(*findings: SourceEvent) -> list[tuple[str, str]]:
    ledger = Ledger()
    source = new_source(ledger, readable_log())
    for finding in findings:
        for _ in source.apply(source.collections[0], [finding], 0.0):
            pass
    return ledger.refused


def test_malformed_objects_are_reported_from_lists_and_watches() -> None:
    listed, later = malformed("..", "1"), malformed("..%2e", "2")
    assert reported(ListStarted(), Listed(listed), ListEnded(), ObjectChanged(later)) == [("..", "1"), ("..%2e", "2")]


def test_malformed_object_is_reported_once() -> None:
    first = [ListStarted(), Listed(malformed("a", "1")), ListEnded()]
    again = [ListStarted(), Listed(malformed("a", "2")), ListEnded()]
    assert reported(*first, ObjectChanged(malformed("a", "2")), *again) == [("a", "1")]


def test_malformed_object_is_reported_again_after_recovery() -> None:
    first = [ListStarted(), Listed(malformed("a", "1")), ListEnded()]
    assert reported(*first, ObjectChanged(ready("a", "2")), ObjectChanged(malformed("a", "3"))) == [
        ("a", "1"),
        ("a", "3"),
    ]
