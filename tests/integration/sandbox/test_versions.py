"""Reads at a version: a list shows the state at that time, and later events lead to the current one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_sandbox import selectors
from milo_sandbox.history import CompactedError
from milo_sandbox.resources import PROJECTS
from milo_sandbox.selectors import Selector
from milo_sandbox.store import Store

PROD = selectors.parse("env=prod")
NAMES = ("a", "b", "c", "d")


def put(store: Store, name: str, env: str) -> None:
    labels = {"metadata": {"name": name, "labels": {"env": env}}}
    if store[PROJECTS].get(name) is None:
        store.create(PROJECTS, labels | {"spec": {"ownerRef": {"kind": "Organization", "name": "acme"}}})
    else:
        store.modify(PROJECTS, name, lambda it: it | {"metadata": it["metadata"] | {"labels": {"env": env}}})


def listed(store: Store, version: int, selector: Selector = selectors.EVERYTHING) -> dict[str, int]:
    page = store[PROJECTS].page(version=version, current=store.version, selector=selector)
    return {record.name: record.version for record in page.records}


def replayed(state: dict[str, int], store: Store, since: int, selector: Selector) -> dict[str, int]:
    for event in store[PROJECTS].history.since(since):
        match event.seen_through(selector):
            case None:
                continue
            case "ADDED", record:
                assert record.name not in state
                state[record.name] = record.version
            case "MODIFIED", record:
                assert record.name in state
                state[record.name] = record.version
            case _, record:
                assert record.version == event.version
                del state[record.name]
    return state


writes = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(("prod", "dev", "gone"))), max_size=30)


@given(writes=writes, selector=st.sampled_from((selectors.EVERYTHING, PROD)))
def test_list_and_events_reproduce_any_later_list(writes: list[tuple[str, str]], selector: Selector) -> None:
    store = Store([PROJECTS])
    seen = {store.version: listed(store, store.version, selector)}
    for name, what in writes:
        if what != "gone":
            put(store, name, what)
        elif store[PROJECTS].get(name):
            store.delete(PROJECTS, name)
        seen[store.version] = listed(store, store.version, selector)
    for version, state in seen.items():
        assert listed(store, version, selector) == state
        assert replayed(dict(state), store, version, selector) == seen[store.version]


@given(writes=writes, limit=st.integers(1, 5))
def test_pages_show_one_version_whatever_is_written_between_them(writes: list[tuple[str, str]], limit: int) -> None:
    store = Store([PROJECTS])
    for name in NAMES:
        put(store, name, "prod")
    version, whole = store.version, listed(store, store.version)
    remaining = list(writes)
    found: dict[str, int] = {}
    after: Any = ""
    while True:
        page = store[PROJECTS].page(
            version=version, current=store.version, selector=selectors.EVERYTHING, limit=limit, after=after
        )
        found |= {record.name: record.version for record in page.records}
        assert len(page.records) + page.remaining == len(whole) - (len(found) - len(page.records))
        if not page.last_key:
            break
        after = page.last_key
        if remaining:
            name, what = remaining.pop()
            store.delete(PROJECTS, name) if what == "gone" and store[PROJECTS].get(name) else put(store, name, "dev")
    assert found == whole
    assert list(found) == sorted(found)


def test_compacted_versions_cannot_be_read(store: Store) -> None:
    put(store, "a", "prod")
    old = store.version
    store.compact()
    with pytest.raises(CompactedError):
        listed(store, old)
    with pytest.raises(CompactedError):
        store[PROJECTS].history.since(old)
    now = store.version
    put(store, "b", "prod")
    assert listed(store, now).keys() == {"a"}


def test_compaction_does_not_affect_current_watches(store: Store) -> None:
    put(store, "a", "prod")
    kept_up = store.version
    store.compact()
    put(store, "b", "prod")
    assert [event.record.name for event in store[PROJECTS].history.following(kept_up)] == ["b"]


def test_reader_behind_history_limit_gets_410(store: Store) -> None:
    short = Store([PROJECTS], history_limit=3)
    start = short.version
    for number in range(7):
        put(short, "a", f"env-{number}")
    assert len(short[PROJECTS].history.since(short.version - 3)) == 3
    with pytest.raises(CompactedError):
        short[PROJECTS].history.following(start)


def test_object_leaving_selector_has_old_labels_and_new_version(store: Store) -> None:
    put(store, "a", "prod")
    put(store, "a", "dev")
    (event,) = store[PROJECTS].history.since(store.version - 1)
    seen = event.seen_through(PROD)
    assert seen is not None
    kind, record = seen
    assert (kind, record.labels, record.version) == ("DELETED", {"env": "prod"}, store.version)
    assert record.document()["metadata"]["resourceVersion"] == str(store.version)
    put(store, "a", "prod")
    (event,) = store[PROJECTS].history.since(store.version - 1)
    back = event.seen_through(PROD)
    assert back is not None
    assert (back[0], back[1].uid) == ("ADDED", record.uid)


def test_restored_backup_has_old_state_and_no_history(store: Store) -> None:
    put(store, "a", "prod")
    backup = store.snapshot()
    put(store, "b", "prod")
    later = store.version
    store.restore(backup)
    assert listed(store, store.version).keys() == {"a"}
    assert store.version < later
    assert list(store[PROJECTS].history.since(later)) == []
    with pytest.raises(CompactedError):
        store[PROJECTS].history.since(backup.version - 1)
