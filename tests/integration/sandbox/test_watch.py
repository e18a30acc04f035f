"""The watch as a state machine with time as an argument."""

import json
from math import inf
from typing import Any

from milo_sandbox import options
from milo_sandbox.resources import PROJECTS
from milo_sandbox.store import Store
from milo_sandbox.watch import ObjectWatch, Pace, Plain

START = 1000.0
STREAMING = {
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
    "allowWatchBookmarks": "true",
}


def put(store: Store, name: str) -> None:
    spec = {"ownerRef": {"kind": "Organization", "name": "acme"}}
    store.create(PROJECTS, {"metadata": {"name": name}, "spec": spec})


def watch(store: Store, **query: str) -> ObjectWatch:
    wanted = options.watch_options(query, namespace="", streaming_lists=True)
    return ObjectWatch(store, PROJECTS, wanted, rendering=Plain(), pace=Pace(), now=START)


def lines(watch: ObjectWatch, now: float = START) -> list[Any]:
    """Return everything that the watch sends at that time."""
    data_sent = b""
    while data := watch.step(now):
        data_sent += data
    return [json.loads(line) for line in data_sent.splitlines()]


def sent(watch: ObjectWatch, now: float = START) -> list[tuple[str, str]]:
    return [(line["type"], line["object"]["metadata"].get("name", "")) for line in lines(watch, now)]


def test_write_during_initial_events_is_sent_after_them(store: Store) -> None:
    for number in range(300):
        put(store, f"p-{number:03}")
    opened = watch(store, **STREAMING)
    first = [json.loads(line) for line in opened.step(START).splitlines()]
    assert 0 < len(first) < 300
    put(store, "a-late")
    rest = sent(opened)
    assert rest[-2:] == [("BOOKMARK", ""), ("ADDED", "a-late")]
    assert len(first) + len(rest) == 302


def test_bookmarks_are_sent_every_minute_and_shortly_before_the_watch_times_out(store: Store) -> None:
    opened = watch(store, resourceVersion="1", allowWatchBookmarks="true", timeoutSeconds="90")
    assert sent(opened) == []
    assert opened.wakes_at == START + 60
    put(store, "a")
    (added, mark) = lines(opened, START + 60)
    assert (added["type"], mark["type"]) == ("ADDED", "BOOKMARK")
    assert mark["object"]["metadata"]["resourceVersion"] == str(store.version)
    assert opened.wakes_at == START + 88
    assert sent(opened, START + 88) == [("BOOKMARK", "")]
    assert opened.wakes_at == START + 90
    assert sent(opened, START + 90) == []
    assert opened.done


def test_watch_timeout_is_as_requested_or_chosen_by_server(store: Store) -> None:
    for timeout, end in (("3", START + 3), ("0", START + 2700)):
        opened = watch(store, timeoutSeconds=timeout)
        sent(opened, end - 0.01)
        assert not opened.done
        sent(opened, end)
        assert opened.done


def test_open_watch_survives_compaction() -> None:
    store = Store([PROJECTS], history_limit=2)
    opened = watch(store)
    assert sent(opened) == []
    store.compact()
    put(store, "a")
    assert sent(opened) == [("ADDED", "a")]
    for number in range(6):
        put(store, f"p-{number}")
    (error,) = lines(opened)
    assert (error["type"], error["object"]["code"]) == ("ERROR", 410)
    assert opened.done


def test_watch_silenced_beyond_its_timeout_sends_missed_events_when_the_silence_ends(store: Store) -> None:
    opened = watch(store, allowWatchBookmarks="true", timeoutSeconds="90")
    opened.set_silent(silent=True)
    put(store, "a")
    assert sent(opened, START + 100) == []
    assert opened.wakes_at == inf
    opened.set_silent(silent=False)
    assert sent(opened, START + 100) == [("ADDED", "a")]
    assert opened.done


def test_ended_watch_flushes_events_and_a_bookmark(store: Store) -> None:
    opened = watch(store, resourceVersion=str(store.version), allowWatchBookmarks="true")
    put(store, "a")
    opened.end()
    assert sent(opened) == [("ADDED", "a"), ("BOOKMARK", "")]
    assert opened.done
