"""Reads at a version: a list shows the state at that time, and later events lead to the current one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_sandbox import selectors
from milo_sandbox.history import CompactedError
from milo_sandbox.resources import PROJECTS
from milo_sandbox.selectors import LabelSelector
from milo_sandbox.store import Store

PROD = selectors.parse("env=prod")
NAMES = ("a", "b", "c", "d")


def put(store: Store, name: str, env: str) -> None:
    labels = {"metadata": {"name": name, "labels": {"env": env}}}
    if store[PROJECTS].get(name) is None:
        store.create(PROJECTS, labels | {"spec": {"ownerRef": {"kind": "Organization", "name": "acme"}}})
    else:
        store.modify(PROJECTS, name, lambda it: it | {"metadata": it["metadata"] | {"labels": {"env": env}}})


def listed(store: Store, version: int, selector: LabelSelector = selectors.EVERYTHING) -> dict[str, int]:
    page = store[PROJECTS].page(version=version, current=store.version, selector=selector)
    return {record.name: record.version for record in page.records}


def replayed(state: dict[str, int], store: Store, since: int, selector: LabelSelector) -> dict[str, int]:
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
def test_replaying_later_events_onto_any_list_yields_the_latest_list(
    writes: list[tuple[str, str]], selector: LabelSelector
) -> None:
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


def test_compaction_does_not_affect_current_watches(store: Store) -> None:
    put(store, "a", "prod")
    kept_up = store.version
    store.compact()
    put(store, "b", "prod")
    assert [event.record.name for event in store[PROJECTS].history.following(kept_up)] == ["b"]


def test_watch_from_a_version_before_the_history_limit_is_expired(store: Store) -> None:
    short = Store([PROJECTS], history_limit=3)
    start = short.version
    for number in range(7):
        put(short, "a", f"env-{number}")
    assert len(short[PROJECTS].history.since(short.version - 3)) == 3
    with pytest.raises(CompactedError):
        short[PROJECTS].history.following(start)


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
