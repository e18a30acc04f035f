"""The watch as a machine: what it says, and when, with time as an argument."""

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
    """Everything that it has to say at that time."""
    said = b""
    while data := watch.step(now):
        said += data
    return [json.loads(line) for line in said.splitlines()]


def told(watch: Watch, now: float = START) -> list[tuple[str, str]]:
    return [(line["type"], line["object"]["metadata"].get("name", "")) for line in lines(watch, now)]


def test_without_a_version_it_opens_with_what_is_there(store: Store) -> None:
    put(store, "a")
    for query in ({}, {"resourceVersion": "0"}):
        opened = watch(store, **query)
        assert told(opened) == [("ADDED", "a")]
    put(store, "b")
    assert told(opened) == [("ADDED", "b")]


def test_from_a_version_it_goes_on_behind_it(store: Store) -> None:
    put(store, "a")
    version = str(store.version)
    put(store, "b")
    assert told(watch(store, resourceVersion=version)) == [("ADDED", "b")]


def test_what_is_written_during_a_long_opening_comes_after_it(store: Store) -> None:
    for number in range(300):
        put(store, f"p-{number:03}")
    opened = watch(store, **STREAMING)
    first = [json.loads(line) for line in opened.step(START).splitlines()]
    assert 0 < len(first) < 300
    put(store, "a-late")
    rest = told(opened)
    assert rest[-2:] == [("BOOKMARK", ""), ("ADDED", "a-late")]
    assert len(first) + len(rest) == 302


def test_a_streaming_list_ends_with_the_mark_that_it_is_complete(store: Store) -> None:
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


def test_a_streaming_list_without_bookmarks_never_says_that_it_is_complete(store: Store) -> None:
    put(store, "a")
    opened = watch(store, **(STREAMING | {"allowWatchBookmarks": "false"}))
    assert told(opened) == [("ADDED", "a")]
    put(store, "b")
    assert told(opened) == [("ADDED", "b")]


def test_bookmarks_come_each_minute_and_shortly_before_the_end(store: Store) -> None:
    opened = watch(store, resourceVersion="1", allowWatchBookmarks="true", timeoutSeconds="90")
    assert told(opened) == []
    assert opened.wakes_at == START + 60
    put(store, "a")
    (added, mark) = lines(opened, START + 60)
    assert (added["type"], mark["type"]) == ("ADDED", "BOOKMARK")
    assert mark["object"]["metadata"]["resourceVersion"] == str(store.version)
    assert opened.wakes_at == START + 88
    assert told(opened, START + 88) == [("BOOKMARK", "")]
    assert opened.wakes_at == START + 90
    assert told(opened, START + 90) == []
    assert opened.done


def test_a_very_short_watch_has_no_bookmarks(store: Store) -> None:
    opened = watch(store, allowWatchBookmarks="true", timeoutSeconds="2")
    assert opened.step(START) == b""
    assert opened.wakes_at == START + 2
    assert told(opened, START + 2) == []
    assert opened.done


def test_nobody_who_did_not_ask_gets_bookmarks(store: Store) -> None:
    opened = watch(store)
    assert told(opened, START + 600) == []
    assert not opened.done


def test_its_time_is_what_it_asks_for_or_what_the_server_likes(store: Store) -> None:
    for timeout, end in (("3", START + 3), ("0", START + 2700)):
        opened = watch(store, timeoutSeconds=timeout)
        told(opened, end - 0.01)
        assert not opened.done
        told(opened, end)
        assert opened.done


def test_a_negative_time_is_over_at_once(store: Store) -> None:
    opened = watch(store, timeoutSeconds="-1")
    assert told(opened) == []
    assert opened.done


def test_a_version_from_the_future_is_met_with_silence_until_it_has_come(store: Store) -> None:
    future = store.version + 2
    opened = watch(store, resourceVersion=str(future), allowWatchBookmarks="true")
    put(store, "a")
    assert told(opened, START + 500) == []
    put(store, "b")
    put(store, "c")
    assert told(opened, START + 501) == [("ADDED", "c")]


def test_a_streaming_list_from_the_future_is_an_error_after_a_while(store: Store) -> None:
    opened = watch(store, **STREAMING, resourceVersion="99")
    assert told(opened) == []
    assert opened.wakes_at == START + 3
    (error,) = lines(opened, START + 3)
    assert (error["type"], error["object"]["code"]) == ("ERROR", 504)
    assert error["object"]["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert opened.done


def test_a_streaming_list_from_a_future_that_comes_is_answered(store: Store) -> None:
    opened = watch(store, **STREAMING, resourceVersion=str(store.version + 1))
    assert told(opened) == []
    put(store, "a")
    assert told(opened, START + 1) == [("ADDED", "a"), ("BOOKMARK", "")]


def test_a_version_too_old_is_one_error_line_and_the_end(store: Store) -> None:
    put(store, "a")
    old = str(store.version)
    store.compact()
    opened = watch(store, resourceVersion=old)
    (error,) = lines(opened)
    assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert opened.done


def test_an_open_watch_survives_compaction_and_is_ended_only_by_a_loss() -> None:
    store = Store([PROJECTS], history_limit=2)
    opened = watch(store)
    assert told(opened) == []
    store.compact()
    put(store, "a")
    assert told(opened) == [("ADDED", "a")]
    for number in range(6):
        put(store, f"p-{number}")
    (error,) = lines(opened)
    assert (error["type"], error["object"]["code"]) == ("ERROR", 410)
    assert opened.done


def test_a_silenced_watch_says_nothing_and_then_everything(store: Store) -> None:
    opened = watch(store, allowWatchBookmarks="true", timeoutSeconds="90")
    opened.hush(silent=True)
    put(store, "a")
    assert told(opened, START + 100) == []
    assert opened.wakes_at == inf
    opened.hush(silent=False)
    assert told(opened, START + 100) == [("ADDED", "a")]
    assert opened.done


def test_a_watch_that_is_told_to_end_says_what_it_knows_then_a_bookmark(store: Store) -> None:
    opened = watch(store, resourceVersion=str(store.version), allowWatchBookmarks="true")
    put(store, "a")
    opened.end()
    assert told(opened) == [("ADDED", "a"), ("BOOKMARK", "")]
    assert opened.done
