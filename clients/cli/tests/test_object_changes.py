"""Tests of how a watch's reports become changes."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from milo_discovery_cli.object_changes import KnownObjects, ObservationDecoder, Observed, TooManyObjectsError
from milo_discovery_cli.object_page import (
    TABLE,
    DocumentPage,
    ObjectIdentity,
    PrintedColumn,
    PrintedRow,
    RowPage,
)
from milo_discovery_cli.served_resources import ServedResource
from milo_kube.api_request import JSON
from milo_kube.reflect.messages import DeletionReported, Listed, ListEnded, ListStarted, ObjectChanged, Unlisted
from milo_kube.reflect.wire import (
    Bookmark,
    ErrorStatus,
    ListPageError,
    ObjectRemoved,
    ObjectSeen,
    Undecodable,
    UnknownEvent,
)

PODS = ServedResource(plural="pods", version="v1", kind="Pod", is_namespaced=True)


def observed(name: str, version: str = "1", uid: str = "") -> Observed:
    return Observed(name, "work", uid or f"u-{name}", version, RowPage((), []))


def changes(known: KnownObjects, *events: object) -> list[tuple[str, str, str]]:
    found = [change for event in events for change in known.apply(event)]  # type: ignore[arg-type]
    return [(kind, each.name, each.version) for kind, each in found]


def listing(*members: Observed) -> list[object]:
    return [ListStarted(), *map(Listed, members), ListEnded("9")]


class TestChanges:
    def test_first_list_adds_its_objects(self):
        assert changes(KnownObjects(), *listing(observed("web"), observed("api"))) == [
            ("ADDED", "web", "1"),
            ("ADDED", "api", "1"),
        ]

    def test_objects_of_a_cluster_are_kept_within_a_limit(self):
        known = KnownObjects(limit=5_000)
        for number in range(100):
            assert changes(known, ObjectChanged(observed("web", str(number))))  # one object, however often it changes
        with pytest.raises(TooManyObjectsError, match="more than 5000 bytes"):
            changes(known, *(ObjectChanged(observed(f"web-{number}")) for number in range(10)))

    @pytest.mark.parametrize(("columns", "cells"), [(100, 2), (1, 20_000)])
    def test_what_is_kept_takes_as_much_memory_as_is_permitted(self, columns, cells):
        """A cluster's API server chooses the columns of each row, and what is in them."""
        known = KnownObjects(limit=1 << 20)

        def fill() -> None:
            for number in range(100_000):
                titles = tuple(PrintedColumn(f"{number}-{column}") for column in range(columns))
                row = PrintedRow(ObjectIdentity(f"web-{number}"), tuple(f"{each:0{cells}}" for each in range(columns)))
                page = RowPage(titles, [row])
                changes(known, ObjectChanged(Observed(f"web-{number}", "work", "u", "1", page)))

        tracemalloc.start()
        try:
            with pytest.raises(TooManyObjectsError):
                fill()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 2 << 20

    def test_deleted_row_has_a_cell_for_each_present_column(self):
        known = KnownObjects()
        for name, titles in (("web", ("NAME", "AGE")), ("api", ("NAME", "READY", "AGE"))):
            page = RowPage(tuple(map(PrintedColumn, titles)), [PrintedRow(ObjectIdentity(name), titles)])
            changes(known, ObjectChanged(Observed(name, "", "u", "1", page)))
        [(_, deleted)] = known.apply(DeletionReported("web", "u"))
        assert [column.name for column in deleted.page.columns] == ["NAME", "READY", "AGE"]
        assert deleted.page.rows == [PrintedRow(ObjectIdentity("web"), ("NAME", "AGE", ""))]

    def test_watch_modifies_and_deletes(self):
        known = KnownObjects()
        changes(known, *listing(observed("web")))
        events = [
            ObjectChanged(observed("web", "2")),
            ObjectChanged(observed("api", "3")),
            DeletionReported("web", "u-web", "work", "4"),
            DeletionReported("web", "u-web", "work", "4"),
        ]
        assert changes(known, *events) == [("MODIFIED", "web", "2"), ("ADDED", "api", "3"), ("DELETED", "web", "2")]

    def test_second_list_yields_only_what_has_changed(self):
        known = KnownObjects()
        changes(known, *listing(observed("same"), observed("changed"), observed("gone"), observed("again")))
        second = listing(observed("same"), observed("changed", "2"), observed("again", "3", uid="other"))
        assert changes(known, *second) == [
            ("MODIFIED", "changed", "2"),
            ("DELETED", "again", "1"),
            ("ADDED", "again", "3"),
            ("DELETED", "gone", "1"),
        ]
        assert changes(known, *second) == []

    def test_list_that_breaks_deletes_nothing(self):
        known = KnownObjects()
        changes(known, *listing(observed("web"), observed("api")))
        events = [ListStarted(), Listed(observed("web")), *listing(observed("api"), observed("web"))]
        assert changes(known, *events) == []

    def test_object_that_a_list_withdraws_is_deleted_at_its_end(self):
        known = KnownObjects()
        changes(known, *listing(observed("web")))
        assert changes(known, ListStarted(), Listed(observed("web")), Unlisted("web", "work"), ListEnded("9")) == [
            ("DELETED", "web", "1")
        ]

    def test_deleted_document_is_shown_with_its_identity_alone(self):
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web", "labels": {}},
            "spec": {"large": "x"},
        }
        known = KnownObjects()
        changes(known, ObjectChanged(Observed("web", "", "u", "1", DocumentPage([document]))))
        [(_, deleted)] = known.apply(DeletionReported("web", "u"))
        assert deleted.page == DocumentPage([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}}])

    def test_deleted_object_is_shown_as_the_watch_reports_it(self):
        known, last = KnownObjects(), Observed("web", "", "u", "2", DocumentPage([{"spec": {"large": "x"}}]))
        changes(known, ObjectChanged(observed("other")), ObjectChanged(Observed("web", "", "u", "1", RowPage((), []))))
        assert [*known.apply(DeletionReported("web", "u", "", "2", last))] == [("DELETED", last)]


def table(name: str = "web", *, columns: bool = True) -> dict[str, object]:
    row = {
        "cells": [name],
        "object": {"metadata": {"name": name, "namespace": "work", "uid": "u", "resourceVersion": "2"}},
    }
    definitions = [{"name": "Name", "format": "name"}] if columns else None
    return {"kind": "Table", "metadata": {"resourceVersion": "5"}, "columnDefinitions": definitions, "rows": [row]}


def line(kind: str, content: object) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode()


POD = {"metadata": {"name": "web", "namespace": "work", "uid": "u", "resourceVersion": "2"}, "spec": {}}


class TestDecoding:
    def test_tables_without_columns_have_those_of_the_list(self):
        decoder = ObservationDecoder(PODS, "alpha", TABLE)
        page, _ = decoder.page(json.dumps(table()).encode())
        assert page.version == "5"
        [seen, removed] = decoder.lines([line("MODIFIED", table("api", columns=False)), line("DELETED", table())])
        assert isinstance(seen, ObjectSeen)
        assert seen.observation.page.rows[0].cells == ("api",)
        assert [column.name for column in seen.observation.page.columns] == ["Name"]
        assert isinstance(removed, ObjectRemoved)
        assert (removed.name, removed.uid, removed.version, removed.namespace) == ("web", "u", "2", "work")
        assert removed.last is not None
        assert removed.last.page.rows[0].cells == ("web",)

    def test_objects_have_their_cluster(self):
        decoder = ObservationDecoder(PODS, "alpha", JSON)
        [seen] = decoder.lines([line("ADDED", POD)])
        assert isinstance(seen, ObjectSeen)
        [document] = seen.observation.page.objects
        assert (document["kind"], document["metadata"]["annotations"]) == (
            "Pod", {"discovery.miloapis.com/cluster": "alpha"}
        )  # fmt: skip

    def test_server_without_tables_is_watched_by_name_and_age(self):
        [seen] = ObservationDecoder(PODS, "alpha", TABLE).lines([line("ADDED", POD)])
        assert isinstance(seen, ObjectSeen)
        assert seen.observation.page.rows[0].cells == ("web", "<unknown>")

    def test_bookmarks_and_errors_are_those_of_every_watch(self):
        status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
        events = ObservationDecoder(PODS, "alpha", TABLE).lines([line("BOOKMARK", table()), line("ERROR", status)])
        assert events == [Bookmark("5", ends_initial_list=False), ErrorStatus(410, "Expired", "too old")]

    @pytest.mark.parametrize("content", [{}, {"kind": "Table", "rows": []}, {"metadata": {"name": 1}}])
    @pytest.mark.parametrize("accept", [TABLE, JSON])
    def test_event_without_an_object_is_ignored(self, content, accept):
        [event] = ObservationDecoder(PODS, "alpha", accept).lines([line("ADDED", content)])
        assert isinstance(event, UnknownEvent | Undecodable)

    @pytest.mark.parametrize("text", [b"<html>", b'{"type":"ADDED"}', b'{"type":"ADDED","object":' + b"[" * 9000])
    def test_line_that_is_not_an_event_ends_the_watch(self, text):
        events = ObservationDecoder(PODS, "alpha", TABLE).lines([text, line("ADDED", table())])
        assert [type(event) for event in events] == [Undecodable]

    @pytest.mark.parametrize("body", [b"", b"<html>", b'{"kind":"PodList"}', b"[" * 9000])
    def test_other_list_is_refused(self, body):
        with pytest.raises(ListPageError):
            ObservationDecoder(PODS, "alpha", TABLE).page(body)
