"""The watch as a state machine with time as an argument."""

import json
from math import inf
from typing import Any

from milo_sandbox import options
from milo_sandbox.resources import PROJECTS
from milo_sandbox.store import Store
from milo_sandbox.watch import Pace, Plain, Watch

START = 1000.0
STREAMING = {
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
    "allowWatchBookmarks": "true",
}


def put(store: Store, name: str) -> None:
    spec = {"ownerRef": {"kind": "Organization", "name": "acme"}}
    store.create(PROJECTS, {"metadata": {"name": name}, "spec": spec})


def watch(store: Store, **query: str) -> Watch:
    wanted = options.watch_options(query, namespace="", streaming_lists=True)
    return Watch(store, PROJECTS, wanted, rendering=Plain(), pace=Pace(), now=START)


def lines(watch: Watch, now: float = START) -> list[Any]:
    """Return everything that the watch sends at that time."""
    data_sent = b""
    while data := watch.step(now):
        data_sent += data
    return [json.loads(line) for line in data_sent.splitlines()]


def sent(watch: Watch, now: float = START) -> list[tuple[str, str]]:
    return [(line["type"], line["object"]["metadata"].get("name", "")) for line in lines(watch, now)]


def test_watch_without_version_starts_with_current_objects(store: Store) -> None:
    put(store, "a")
    for query in ({}, {"resourceVersion": "0"}):
        opened = watch(store, **query)
        assert sent(opened) == [("ADDED", "a")]
    put(store, "b")
    assert sent(opened) == [("ADDED", "b")]


def test_watch_resumes_after_version(store: Store) -> None:
    put(store, "a")
    version = str(store.version)
    put(store, "b")
    assert sent(watch(store, resourceVersion=version)) == [("ADDED", "b")]


def test_write_during_initial_events_follows_them(store: Store) -> None:
    for number in range(300):
        put(store, f"p-{number:03}")
    opened = watch(store, **STREAMING)
    first = [json.loads(line) for line in opened.step(START).splitlines()]
    assert 0 < len(first) < 300
    put(store, "a-late")
    rest = sent(opened)
    assert rest[-2:] == [("BOOKMARK", ""), ("ADDED", "a-late")]
    assert len(first) + len(rest) == 302


def test_streaming_list_ends_with_initial_events_end_bookmark(store: Store) -> None:
    put(store, "a")
    added, mark = lines(watch(store, **STREAMING))
    assert added["type"] == "ADDED"
    assert mark == {
        "type": "BOOKMARK",
        "object": {
            "kind": "Project",
            "apiVersion": "resourcemanager.miloapis.com/v1alpha1",
            "metadata": {
                "resourceVersion": str(store.version),
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        },
    }


def test_streaming_list_without_bookmarks_never_reports_completion(store: Store) -> None:
    put(store, "a")
    opened = watch(store, **(STREAMING | {"allowWatchBookmarks": "false"}))
    assert sent(opened) == [("ADDED", "a")]
    put(store, "b")
    assert sent(opened) == [("ADDED", "b")]


def test_bookmarks_come_each_minute_and_shortly_before_the_end(store: Store) -> None:
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


def test_short_watch_has_no_bookmarks(store: Store) -> None:
    opened = watch(store, allowWatchBookmarks="true", timeoutSeconds="2")
    assert opened.step(START) == b""
    assert opened.wakes_at == START + 2
    assert sent(opened, START + 2) == []
    assert opened.done


def test_watch_without_bookmarks_requested_gets_none(store: Store) -> None:
    opened = watch(store)
    assert sent(opened, START + 600) == []
    assert not opened.done


def test_watch_timeout_is_as_requested_or_chosen_by_server(store: Store) -> None:
    for timeout, end in (("3", START + 3), ("0", START + 2700)):
        opened = watch(store, timeoutSeconds=timeout)
        sent(opened, end - 0.01)
        assert not opened.done
        sent(opened, end)
        assert opened.done


def test_negative_watch_timeout_ends_immediately(store: Store) -> None:
    opened = watch(store, timeoutSeconds="-1")
    assert sent(opened) == []
    assert opened.done


def test_future_version_watch_is_silent_until_it_exists(store: Store) -> None:
    future = store.version + 2
    opened = watch(store, resourceVersion=str(future), allowWatchBookmarks="true")
    put(store, "a")
    assert sent(opened, START + 500) == []
    put(store, "b")
    put(store, "c")
    assert sent(opened, START + 501) == [("ADDED", "c")]


def test_future_version_streaming_list_fails_after_timeout(store: Store) -> None:
    opened = watch(store, **STREAMING, resourceVersion="99")
    assert sent(opened) == []
    assert opened.wakes_at == START + 3
    (error,) = lines(opened, START + 3)
    assert (error["type"], error["object"]["code"]) == ("ERROR", 504)
    assert error["object"]["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert opened.done


def test_future_version_streaming_list_is_answered_when_it_exists(store: Store) -> None:
    opened = watch(store, **STREAMING, resourceVersion=str(store.version + 1))
    assert sent(opened) == []
    put(store, "a")
    assert sent(opened, START + 1) == [("ADDED", "a"), ("BOOKMARK", "")]


def test_expired_version_watch_is_one_error_event(store: Store) -> None:
    put(store, "a")
    old = str(store.version)
    store.compact()
    opened = watch(store, resourceVersion=old)
    (error,) = lines(opened)
    assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
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


def test_silenced_watch_sends_everything_afterwards(store: Store) -> None:
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
