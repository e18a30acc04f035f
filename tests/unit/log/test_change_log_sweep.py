"""Sweeping of superseded log entries while readers have received only part of the log."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from milo_discoveryd.log.change_log import LogEntry, PastState, Retention
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import Event
from milo_discoveryd.log.filter import EVERYTHING
from milo_discoveryd.model.cluster import Cluster, DisengageReason, Target
from tests.unit.fleet.fleets import NamedLog


def cluster(name: str, incarnation: int, step: int = 0) -> Cluster:
    target = Target(name=name, uid=name, place=("https://c.test",), deletion_message=str(step))
    return Cluster(target=target, source_version="1", engaged_at=0.0, incarnation=incarnation)


def words(event: Event) -> bytes:
    return f"{event.type.value} {event.cluster.target.name};".encode()


@pytest.fixture
def log() -> NamedLog:
    """Return a log that sweeps at almost every step, with parts of one or two frames."""
    return NamedLog(words, Retention(), batch_bytes=1, stale_slots=1)


def read_on(log: NamedLog, revision: int) -> list[str]:
    received: list[str] = []
    while revision < log.head:
        part = log.since(revision, EVERYTHING)
        received += part.slice.data.decode().split(";")[:-1]
        revision = part.revision
    return received


def test_log_sweep_keeps_the_engagement_of_a_cluster_before_its_updates(log: NamedLog) -> None:
    log.engage(log.entry("alpha"), lambda revision: cluster("alpha", revision))
    log.engage(log.entry("beta"), lambda revision: cluster("beta", revision))
    for step in range(1, 10):
        log.update(log.entry("alpha"), cluster("alpha", 1, step), 0.0)
    received = [event for event in read_on(log, 0) if "alpha" in event]
    assert received[0] == "ENGAGED alpha"
    assert set(received[1:]) <= {"UPDATED alpha"}


def test_log_sweep_keeps_the_disengagement_of_a_cluster_before_its_reengagement(log: NamedLog) -> None:
    log.engage(log.entry("alpha"), lambda revision: cluster("alpha", revision))
    log.engage(log.entry("beta"), lambda revision: cluster("beta", revision))
    seen = log.head
    log.disengage(log.entry("alpha"), DisengageReason.DELETED, "", 0.0)
    for step in range(1, 10):
        log.update(log.entry("beta"), cluster("beta", 2, step), 0.0)
    log.engage(log.entry("alpha"), lambda revision: cluster("alpha", revision))
    for step in range(1, 10):
        log.update(log.entry("beta"), cluster("beta", 2, step), 0.0)
    received = [event for event in read_on(log, seen) if "alpha" in event]
    assert received == ["DISENGAGED alpha", "ENGAGED alpha"]


def test_cluster_engaged_and_replaced_while_reader_was_behind_is_sent_in_order_of_its_first_engagement(
    log: NamedLog,
) -> None:
    log.engage(log.entry("alpha"), lambda revision: cluster("alpha", revision))
    seen = log.head
    log.engage(log.entry("beta"), lambda revision: cluster("beta", revision))
    log.engage(log.entry("gamma"), lambda revision: cluster("gamma", revision))
    log.replace(log.entry("beta"), "", lambda revision: cluster("beta", revision), 0.0)
    for step in range(1, 10):
        log.update(log.entry("gamma"), cluster("gamma", 3, step), 0.0)
    reader = Cursor(log, EVERYTHING, seen)
    first = reader.next_batch()
    assert first is not None
    assert (first.slice.data, first.revision) == (b"ENGAGED beta;", 2)


def test_log_sweep_bounds_log_size_independently_of_history(log: NamedLog) -> None:
    log.engage(log.entry("alpha"), lambda revision: cluster("alpha", revision))
    for step in range(1000):
        log.update(log.entry("alpha"), cluster("alpha", 1, step), 0.0)
    assert len(log._slots.entries) <= 5


class CountingHistory(tuple[PastState, ...]):
    """A history that counts how many past states are looked at."""

    looked_at = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.looked_at += len(found) if isinstance(found, tuple) else 1
        return found

    def __iter__(self) -> Iterator[PastState]:
        for past in super().__iter__():
            self.looked_at += 1
            yield past


def test_few_past_states_are_looked_at_of_a_cluster_that_changed_thousands_of_times() -> None:
    past = [PastState(cluster("a", at), at, at + 1, DisengageReason.NOT_READY, "") for at in range(10, 100_010, 10)]
    history = CountingHistory(past)
    entry = LogEntry(None, revision=100_001, same_view_since=100_001, history=history)
    for revision in (5, 10, 50_000, 50_001, 50_005, 100_001, 200_000):
        in_history = revision % 10 == 0 and revision <= 100_000
        known = entry.known_at(revision)
        assert (known is not None and known.incarnation) == (in_history and revision)
        assert entry.needs_slot(revision) == (in_history or revision in (50_001, 100_001))
        end = entry.end_of(cluster("a", 50_000), revision)
        assert end == (past[4_999] if revision > 50_000 else None)
    assert history.looked_at < 7 * 60


def test_log_sweep_keeps_every_cluster_and_bounds_log_size(log: NamedLog) -> None:
    names = [f"cluster-{number}" for number in range(10)]
    for name in names:
        log.engage(log.entry(name), partial(cluster, name))
    for step in range(100):
        name = names[step * step % len(names)]
        incarnation = names.index(name) + 1
        log.update(log.entry(name), cluster(name, incarnation, step), 0.0)
        assert len(log._slots.entries) <= 2 * len(names)
        assert {each.target.name for each in log.clusters()} == set(names)
    received = read_on(log, 0)
    assert [event for event in received if "ENGAGED" in event] == [f"ENGAGED {name}" for name in names]


def test_log_of_growing_fleet_is_not_swept(log: NamedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log._slots, "_compact", None)
    for name in ("alpha", "beta", "gamma"):
        log.engage(log.entry(name), partial(cluster, name))
    assert len(log._slots.entries) == 3


def test_cluster_sent_with_its_latest_state_is_not_sent_again_after_log_sweep(log: NamedLog) -> None:
    log.engage(log.entry("alpha"), lambda revision: cluster("alpha", revision))
    log.engage(log.entry("beta"), lambda revision: cluster("beta", revision))
    log.engage(log.entry("gamma"), lambda revision: cluster("gamma", revision))
    log.update(log.entry("alpha"), cluster("alpha", 1, 1), 0.0)
    reader = Cursor(log, EVERYTHING, 0)
    received = [batch.slice.data.decode() for batch in iter(reader.next_batch, None)]
    assert "".join(received) == "ENGAGED alpha;ENGAGED beta;ENGAGED gamma;"


def test_change_during_partial_read_is_sent_after_log_sweep(log: NamedLog) -> None:
    for name in ("alpha", "beta", "gamma"):
        log.engage(log.entry(name), partial(cluster, name))
    log.update(log.entry("alpha"), cluster("alpha", 1, 1), 0.0)
    reader = Cursor(log, EVERYTHING, 0)
    first = reader.next_batch()
    log.update(log.entry("alpha"), cluster("alpha", 1, 2), 0.0)
    received = [batch.slice.data.decode() for batch in (first, *iter(reader.next_batch, None))]
    assert "".join(received) == "ENGAGED alpha;ENGAGED beta;ENGAGED gamma;UPDATED alpha;"
