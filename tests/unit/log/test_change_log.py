"""What the change log caches and retains, and for how long."""

import gc
import tracemalloc

import msgspec
import pytest

from milo_discoveryd.log import change_log
from milo_discoveryd.log.change_log import Retention
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import Event
from milo_discoveryd.log.filter import EVERYTHING, Filter
from milo_discoveryd.model.cluster import Cluster, DisengageReason
from tests.unit.fleet.fleets import NamedLog, cluster, readable_log

DELETED = DisengageReason.DELETED


def engage(log: NamedLog, name: str) -> Cluster:
    return log.engage(log.entry(name), lambda revision: cluster(name, revision))


def update_all(log: NamedLog) -> None:
    for each in list(log.clusters()):
        log.update(log.entry(each.target.name), msgspec.structs.replace(each, source_version="2"), 0.0)


class Counting:
    def __init__(self) -> None:
        self.encoded = 0

    def __call__(self, event: Event) -> bytes:
        self.encoded += 1
        return msgspec.json.encode(event)


def test_engaged_frame_is_encoded_once_for_all_readers() -> None:
    encode = Counting()
    log = NamedLog(encode, Retention())
    for name in "abc":
        engage(log, name)
    for _ in range(5):
        Cursor(log, EVERYTHING, None).next_batch()
        Cursor(log, EVERYTHING, 0).next_batch()
    assert encode.encoded == 3


def test_readers_at_one_revision_share_the_next_batch() -> None:
    encode = Counting()
    log = NamedLog(encode, Retention())
    a = engage(log, "a")
    log.update(log.entry(a.target.name), msgspec.structs.replace(a, source_version="2"), 0.0)
    for _ in range(5):
        Cursor(log, EVERYTHING, 1).next_batch()
    assert encode.encoded == 1


def test_readers_of_one_snapshot_share_the_encoded_data_of_its_parts() -> None:
    log = NamedLog(Counting(), Retention(), batch_bytes=1)
    for name in "abc":
        engage(log, name)
    readers = [Cursor(log, EVERYTHING, None) for _ in range(2)]
    for _ in "abc":
        one, other = (reader.next_batch() for reader in readers)
        assert one is not None
        assert other is not None
        assert one.slice.data is other.slice.data


def test_snapshot_part_cache_is_bounded() -> None:
    log = NamedLog(Counting(), Retention(), batch_bytes=1)
    for number in range(100):
        engage(log, f"a{number}")
    ahead, behind = (Cursor(log, EVERYTHING, None) for _ in range(2))
    seen = [batch.slice.frames for batch in iter(ahead.next_batch, None)]
    again = [batch.slice.frames for batch in iter(behind.next_batch, None)]
    assert again == seen
    assert again[0] is not seen[0]


def test_readers_that_keep_their_snapshots_keep_none_of_their_parts() -> None:
    log = NamedLog(lambda _: b"a" * 1000, Retention(), batch_bytes=1)
    for number in range(100):
        engage(log, f"a{number}")
    tracemalloc.start()
    try:
        kept = []
        for number in range(20):
            for _ in range(5):
                engage(log, f"b{number}")
            kept.append(Cursor(log, EVERYTHING, None))
            for _ in range(30):
                assert kept[-1].next_batch() is not None
        gc.collect()
        assert len({cursor.revision for cursor in kept}) == 20
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()


def test_readers_begin_with_an_older_snapshot_while_many_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "MAX_SNAPSHOT_ENTRIES", 1000)
    log = readable_log()
    for number in range(100):
        engage(log, f"a{number}")

    def reader() -> Cursor:
        for number in range(5):
            engage(log, f"b{number}")
        return Cursor(log, EVERYTHING, None)

    readers = [reader() for _ in range(50)]
    assert len({cursor.revision for cursor in readers}) == 10
    batches = [*iter(readers[-1].next_batch, None)]
    assert sum(len(batch.slice.frames) for batch in batches) == 105
    del readers
    gc.collect()
    assert reader().revision == log.head


def test_readers_with_different_filters_get_different_snapshots() -> None:
    log = readable_log()
    for name in "ab":
        engage(log, name)
    all_of_it, only_a = Cursor(log, EVERYTHING, None), Cursor(log, Filter(names=frozenset("a")), None)
    batches = [reader.next_batch() for reader in (all_of_it, only_a)]
    assert [len(batch.slice.frames) for batch in batches if batch] == [2, 1]


def test_update_batches_respect_the_size_limit() -> None:
    log = readable_log(batch_bytes=1)
    for name in "abc":
        engage(log, name)
    update_all(log)
    reader = Cursor(log, EVERYTHING, 3)
    assert [(batch.revision, len(batch.slice.frames)) for batch in iter(reader.next_batch, None)] == [
        (4, 1),
        (5, 1),
        (6, 1),
    ]


def test_batches_of_many_readers_are_small() -> None:
    """Also the batch that a reader of large ones has left in the cache."""
    log = NamedLog(lambda _: b"x" * 1024, Retention())
    for number in range(500):
        engage(log, f"a{number}")
    update_all(log)

    def sizes() -> list[int]:
        batches = (Cursor(log, EVERYTHING, resume).next_batch() for resume in (None, 500))
        return [len(batch.slice.data) // 1024 for batch in batches if batch]

    few = sizes()
    log.shared_by(33)
    many = sizes()
    log.shared_by(32)
    assert (few, many, sizes()) == ([256, 256], [64, 64], [256, 256])


@pytest.mark.parametrize("wanted", [EVERYTHING, Filter(organizations=frozenset([""]))], ids=["all", "some"])
def test_readers_at_any_revision_get_the_next_batch(wanted: Filter) -> None:
    log = readable_log()
    for number in range(100):
        engage(log, f"a{number}")
    update_all(log)
    for _ in range(2):
        batches = [Cursor(log, wanted, 100 + place).next_batch() for place in range(100)]
        assert [len(batch.slice.frames) for batch in batches if batch] == [*range(100, 0, -1)]


def test_update_frame_is_encoded_once_for_all_readers() -> None:
    encode = Counting()
    log = NamedLog(encode, Retention())
    a = engage(log, "a")
    engage(log, "b")
    log.update(log.entry(a.target.name), msgspec.structs.replace(a, source_version="2"), 0.0)
    for seen in (1, 2):
        Cursor(log, EVERYTHING, seen).next_batch()
    assert encode.encoded == 2  # the engagement of b, and the update of a


def test_slice_cache_is_bounded() -> None:
    encode = Counting()
    log = NamedLog(encode, Retention())
    engage(log, "a")
    log.disengage(log.entry("a"), DisengageReason.DELETED, "", 0.0)
    for index in range(257):
        Cursor(log, Filter(names=frozenset({"a", f"b{index}"})), 1).next_batch()
    encode.encoded = 0
    Cursor(log, Filter(names=frozenset({"a", "b256"})), 1).next_batch()
    assert encode.encoded == 0
    Cursor(log, Filter(names=frozenset({"a", "b0"})), 1).next_batch()
    assert encode.encoded == 1, "the oldest entry was evicted"


def test_change_invalidates_slice_cache() -> None:
    log = readable_log()
    engage(log, "a")
    Cursor(log, EVERYTHING, 0).next_batch()
    engage(log, "b")
    batch = Cursor(log, EVERYTHING, 0).next_batch()
    assert batch is not None
    assert len(batch.slice.frames) == 2


def test_frequent_changes_of_one_cluster_use_few_log_entries() -> None:
    log = readable_log()
    a = engage(log, "a")
    for version in range(5000):
        log.update(log.entry(a.target.name), msgspec.structs.replace(a, source_version=str(version)), 0.0)
    assert _places(log) < 1100
    assert len(log.since(0, EVERYTHING).slice.frames) == 1


def test_disengaged_clusters_are_forgotten_after_retention() -> None:
    for retention in (Retention(count=0), Retention(count=7)):
        log = readable_log(retention)
        for index in range(3000):
            engage(log, f"a{index}")
            log.disengage(log.entry(f"a{index}"), DELETED, "", 0.0)
        gc.collect()
        assert _remembered(log) == retention.count
        assert _places(log) < 1100


def test_log_keeps_former_disengagement_of_reengaged_name_within_retention() -> None:
    log = readable_log(Retention(count=2))
    engage(log, "a")
    log.disengage(log.entry("a"), DELETED, "", 0.0)
    engage(log, "a")
    log.disengage(log.entry("a"), DELETED, "", 0.0)
    assert len(log.since(1, EVERYTHING).slice.frames) == 1
    assert len(log.since(3, EVERYTHING).slice.frames) == 1
    assert log.since(2, EVERYTHING).slice.frames == ()


def test_past_states_are_kept_within_their_weight() -> None:
    log = readable_log()
    large = engage(log, "a")
    for number in range(100):
        labels = tuple((f"{key}{'k' * 300}", f"{number}{'v' * 60}") for key in range(1000))
        large = msgspec.structs.replace(large, target=msgspec.structs.replace(large.target, labels=labels))
        log.update(log.entry("a"), large, 0.0)
    kept = log.entry("a").history
    assert 32 < len(kept) < 80
    assert log.reads_from(kept[0].since)
    assert not log.reads_from(kept[0].since - 1)
    for number in range(200):
        engage(log, f"b{number}")
        log.disengage(log.entry(f"b{number}"), DELETED, "", 0.0)
    assert len(log.entry("b0").history) == 1


def test_messages_of_past_states_count_in_their_weight() -> None:
    log = readable_log(Retention(weight=1 << 20))
    for number in range(200):
        engage(log, "a")
        log.disengage(log.entry("a"), DELETED, f"{number}" + "\N{GRINNING FACE}" * 2048, 0.0)
    assert 50 < len(log.entry("a").history) < 63


def test_snapshot_is_released_with_its_last_reader() -> None:
    log = readable_log()
    engage(log, "a")
    kept = log.snapshot()
    assert log.snapshot() is kept
    del kept
    gc.collect()
    assert log.snapshot().revision == 1


def _places(log: NamedLog) -> int:
    return len(log._slots.entries)


def _remembered(log: NamedLog) -> int:
    return len(log.snapshot(log.head).entries)


def test_prefetched_slice_is_returned_by_next_read() -> None:
    encode = Counting()
    log = NamedLog(encode, Retention(), batch_bytes=1)
    for name in "ab":
        engage(log, name)
    at_head = log.head
    update_all(log)
    for resume in (None, at_head):
        cursor = Cursor(log, EVERYTHING, resume)
        cursor.prefetch()
        so_far = encode.encoded
        batch = cursor.next_batch()
        assert batch is not None
        assert batch.slice.frames
        assert encode.encoded == so_far
