"""Tests of the requests for objects, and of their output."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from milo_discovery_cli.object_output import Form, Line, Section, Spool, form_of
from milo_discovery_cli.object_page import CLUSTER_ANNOTATION, DocumentPage, RowPage, cell_text, read_objects, read_rows
from milo_discovery_cli.object_request import ObjectRead, ObjectScope, Wanted, parse
from milo_discovery_cli.served_resources import ServedResource

NOW = datetime(2026, 11, 28, tzinfo=UTC)
PODS = ServedResource(plural="pods", version="v1", kind="Pod", is_namespaced=True)
NODES = ServedResource(plural="nodes", version="v1", kind="Node")
DEPLOYMENTS = ServedResource(plural="deployments", version="v1", kind="Deployment", group="apps", is_namespaced=True)


def table(*names: str, columns: tuple[str, ...] = ("Name", "Ready"), **metadata: str) -> bytes:
    definitions = [{"name": columns[0], "type": "string", "format": "name", "priority": 0}]
    definitions += [{"name": name, "type": "string"} for name in columns[1:]]
    definitions.append({"name": "Node", "type": "string", "priority": 1})
    rows = [
        {"cells": [name, "1/1", "n1"], "object": {"metadata": {"name": name, "namespace": "work", "uid": f"u-{name}"}}}
        for name in names
    ]
    return json.dumps({"kind": "Table", "metadata": metadata, "columnDefinitions": definitions, "rows": rows}).encode()


def form(output: str = "table", *, namespaces: bool = False, kinds: bool = False, watches: bool = False) -> Form:
    return form_of(output, namespaces=namespaces, kinds=kinds, headers=True, watches=watches)


def printed(
    form: Form, *pages: tuple[str, RowPage | DocumentPage], resource: ServedResource = PODS, event: str = ""
) -> str:
    spool = Spool()
    for cluster, page in pages:
        spool.add([*form.lines(page, resource, cluster, event=event)])
    lines = spool.take()
    return (form.text(lines) if lines else "") + form.end()


class TestRequests:
    @pytest.mark.parametrize(
        ("arguments", "wanted"),
        [
            (["pods"], [Wanted(("pods",))]),
            (["pods,pods,svc,pods"], [Wanted(("pods", "svc"))]),
            (["pods,deploy.apps", "web", "api"], [Wanted(("pods", "deploy.apps"), ("web", "api"))]),
            (["pod/web", "svc/api"], [Wanted(("pod",), ("web",)), Wanted(("svc",), ("api",))]),
            (["clusterrole", "system:node"], [Wanted(("clusterrole",), ("system:node",))]),
        ],
    )
    def test_arguments_are_read_as_by_kubectl(self, arguments, wanted):
        assert [*parse(arguments)] == wanted

    @pytest.mark.parametrize(
        ("scope", "resource", "names", "reads"),
        [
            (ObjectScope(namespace="work"), PODS, (), [ObjectRead("/api/v1/namespaces/work/pods")]),
            (ObjectScope(), PODS, (), [ObjectRead("/api/v1/pods")]),
            (ObjectScope(namespace="work"), NODES, (), [ObjectRead("/api/v1/nodes")]),
            (
                ObjectScope(selector="a=b", field_selector="c=d"),
                PODS,
                (),
                [ObjectRead("/api/v1/pods", (("labelSelector", "a=b"), ("fieldSelector", "c=d")))],
            ),
            (
                ObjectScope(namespace="work"),
                PODS,
                ("web",),
                [ObjectRead("/api/v1/namespaces/work/pods/web", name="web", is_list=False)],
            ),
            (ObjectScope(), NODES, ("one",), [ObjectRead("/api/v1/nodes/one", name="one", is_list=False)]),
            (
                ObjectScope(),
                PODS,
                ("web",),
                [ObjectRead("/api/v1/pods", (("fieldSelector", "metadata.name=web"),), "web")],
            ),
        ],
    )
    def test_names_are_read_one_by_one_or_in_all_namespaces_by_a_field_selector(self, scope, resource, names, reads):
        assert [*scope.reads(resource, names)] == reads

    def test_watch_of_a_name_has_a_field_selector(self):
        read = ObjectScope(namespace="work", field_selector="a=b").collection(PODS, ["web"])
        assert read == ObjectRead("/api/v1/namespaces/work/pods", (("fieldSelector", "a=b,metadata.name=web"),))


class TestTables:
    def test_rows_begin_with_their_cluster_and_are_sorted_by_it(self):
        page, other = (read_rows(table(*names), NOW, is_list=True) for names in (("web-long", "api"), ("web",)))
        assert printed(form(), ("beta", page), ("alpha", other)).splitlines() == [
            "CLUSTER   NAME       READY",
            "alpha     web        1/1",
            "beta      web-long   1/1",
            "beta      api        1/1",
        ]

    def test_wide_table_of_all_namespaces_has_all_columns(self):
        page = read_rows(table("web"), NOW, is_list=True)
        assert printed(form("wide", namespaces=True), ("alpha", page)).splitlines() == [
            "CLUSTER   NAMESPACE   NAME   READY   NODE",
            "alpha     work        web    1/1     n1",
        ]

    def test_several_kinds_have_their_own_sections_and_kinds_before_names(self):
        output = form(kinds=True)
        page = read_rows(table("web"), NOW, is_list=True)
        spool = Spool()
        spool.add([*output.lines(page, DEPLOYMENTS, "alpha", place=1)])
        spool.add([*output.lines(page, PODS, "beta", place=0)])
        assert output.text(spool.take()).splitlines() == [
            "CLUSTER   NAME      READY",
            "beta      pod/web   1/1",
            "",
            "CLUSTER   NAME                  READY",
            "alpha     deployment.apps/web   1/1",
        ]

    def test_cluster_whose_server_prints_other_columns_has_a_section(self):
        page, other = (
            read_rows(table("web", columns=columns), NOW, is_list=True)
            for columns in (("Name", "Ready"), ("Name", "Phase"))
        )
        assert printed(form(), ("alpha", page), ("beta", other)).splitlines() == [
            "CLUSTER   NAME   PHASE",
            "beta      web    1/1",
            "",
            "CLUSTER   NAME   READY",
            "alpha     web    1/1",
        ]

    def test_server_without_tables_gets_name_and_age(self):
        items = [
            {"metadata": {"name": "web", "creationTimestamp": "2026-11-25T18:30:00Z"}},
            {"metadata": {"name": "odd", "creationTimestamp": "yesterday"}},
        ]
        body = json.dumps({"kind": "PodList", "metadata": {"continue": "next"}, "items": items}).encode()
        page = read_rows(body, NOW, is_list=True)
        assert page.continue_token == "next"
        assert [row.cells for row in page.rows] == [("web", "2d5h"), ("odd", "<unknown>")]
        one = read_rows(json.dumps({"kind": "Pod", **items[0]}).encode(), NOW, is_list=False)
        assert [row.cells for row in one.rows] == [("web", "2d5h")]

    def test_table_escapes_what_tenants_wrote(self):
        page = read_rows(table("\x1b[31mred\u202e"), NOW, is_list=True)
        assert "\\x1b[31mred\\u202e" in printed(form(), ("alpha", page))

    @pytest.mark.parametrize(
        ("cell", "text"),
        [
            ("Running", "Running"),
            (None, ""),
            (3, "3"),
            (True, "true"),
            (1.5, "1.5"),
            ({"a": [1]}, '{"a":[1]}'),
            ("first\nsecond", "first..."),
            ("\n", "..."),
            ("", ""),
            ("x" * 501, "x" * 500 + "…"),
        ],
    )
    def test_cells_are_printed_as_by_kubectl_in_one_line(self, cell, text):
        assert cell_text(cell) == text

    def test_row_with_too_few_or_too_many_cells_has_one_for_each_column(self):
        rows = [{"cells": cells} for cells in (["a"], ["a", "b", "c"], None)]
        body = json.dumps({"kind": "Table", "columnDefinitions": [{"name": "A"}, {"name": "B"}], "rows": rows})
        page = read_rows(body.encode(), NOW, is_list=True)
        assert [row.cells for row in page.rows] == [("a", ""), ("a", "b"), ("", "")]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b'{"kind":"Table","rows":[1]}',
            b'{"kind":"PodList"}',
            b'{"kind":"PodList","items":[1]}',
            b'{"kind":"Table","rows":[{"cells":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
            b'{"kind":"Table","rows":[' + b"{}," * 500_000 + b"{}]}",
        ],
    )
    def test_other_answers_are_refused(self, body):
        with pytest.raises((ValueError, RecursionError)):
            read_rows(body, NOW, is_list=True)

    @pytest.mark.parametrize(("columns", "rows", "problem"), [(101, 1, "101 columns"), (100, 30_000, "30000 items in")])
    def test_table_that_would_take_much_more_memory_than_its_bytes_is_refused(self, columns, rows, problem):
        body = json.dumps(
            {"kind": "Table", "columnDefinitions": [{"name": ""}] * columns, "rows": [{}] * rows}
        ).encode()
        with pytest.raises(ValueError, match=problem):
            read_rows(body, NOW, is_list=True)

    def test_text_of_any_length_is_shortened(self):
        long = "x" * 10_000
        page = read_rows(table(long, columns=(long, "Ready")), NOW, is_list=True)
        page.rows[0].identity.namespace = long
        assert max(map(len, printed(form(namespaces=True), ("a", page)).split())) == 501
        assert len(printed(form("name"), ("a", page))) < 600

    def test_lines_are_as_long_as_a_wide_line_only_up_to_a_width(self):
        columns = tuple(f"C{number}" for number in range(9))
        wide = read_rows(table("web", columns=columns), NOW, is_list=True)
        wide.rows[0].cells = ("x" * 500,) * 10
        narrow = read_rows(table("api", columns=columns), NOW, is_list=True)
        assert len(printed(form(), ("a", wide), ("b", narrow)).splitlines()[-1]) < 100


LISTED = {
    "kind": "PodList",
    "apiVersion": "v1",
    "metadata": {"resourceVersion": "7"},
    "items": [
        {"metadata": {"name": "web", "namespace": "work", "managedFields": [{}]}, "spec": {"node": "n\x1b1"}},
        {"metadata": None, "spec": {}},
    ],
}


def objects(cluster: str) -> DocumentPage:
    return read_objects(json.dumps(LISTED).encode(), PODS, cluster, is_list=True)


class TestDocuments:
    def test_json_is_a_list_whose_objects_have_their_kind_and_cluster(self):
        text = printed(form("json"), ("beta", objects("beta")), ("alpha", objects("alpha")))
        document = json.loads(text)
        assert (document["kind"], document["apiVersion"]) == ("List", "v1")
        assert [item["metadata"]["annotations"] for item in document["items"]] == [
            {CLUSTER_ANNOTATION: "alpha"},
            {CLUSTER_ANNOTATION: "alpha"},
            {CLUSTER_ANNOTATION: "beta"},
            {CLUSTER_ANNOTATION: "beta"},
        ]
        first = document["items"][0]
        assert (first["apiVersion"], first["kind"], first["spec"]) == ("v1", "Pod", {"node": "n\x1b1"})
        assert "managedFields" not in first["metadata"]
        assert all(character.isprintable() or character == "\n" for character in text)
        assert text == json.dumps(document, indent=2) + "\n"

    def test_list_without_objects_is_valid(self):
        text = printed(form("json"))
        assert text == json.dumps(json.loads(text), indent=2) + "\n"
        assert json.loads(text)["items"] == []
        assert printed(form("yaml")) == 'apiVersion: v1\nitems: []\nkind: List\nmetadata:\n  resourceVersion: ""\n'

    def test_json_that_is_printed_in_parts_is_valid(self):
        output = form("json")
        text = "".join(output.text([*output.lines(objects(name), PODS, name)]) for name in ("alpha", "beta"))
        assert len(json.loads(text + output.end())["items"]) == 4

    def test_yaml_is_a_list(self):
        assert printed(form("yaml"), ("alpha", objects("alpha"))).splitlines()[:11] == [
            "apiVersion: v1",
            "items:",
            "- apiVersion: v1",
            "  kind: Pod",
            "  metadata:",
            "    name: web",
            "    namespace: work",
            "    annotations:",
            "      discovery.miloapis.com/cluster: alpha",
            "  spec:",
            '    node: "n\\u001b1"',
        ]

    @pytest.mark.parametrize("name", [".metadata.name", "{.metadata.name}", "metadata.name", "{metadata.name}"])
    def test_custom_columns_follow_the_cluster(self, name):
        output = form(f"custom-columns=NAME:{name},NODE:.spec.node")
        assert printed(output, ("alpha", objects("alpha"))).splitlines() == [
            "CLUSTER   NAME     NODE",
            "alpha     web      n\\x1b1",
            "alpha     <none>   <none>",
        ]

    def test_template_is_filled_from_all_clusters(self):
        output = form("jsonpath={.items[*].metadata.annotations}")
        text = printed(output, ("beta", objects("beta")), ("alpha", objects("alpha")))
        assert text.index("alpha") < text.index("beta")

    @pytest.mark.parametrize("end", ["", '{"\\n"}'])
    def test_text_of_a_template_ends_with_one_newline(self, end):
        assert printed(form(f"jsonpath={{.items[0].metadata.name}}{end}"), ("alpha", objects("alpha"))) == "web\n"
        output = form(f"jsonpath={{.metadata.name}}{end}", watches=True)
        assert printed(output, ("alpha", objects("alpha")), event="ADDED") == "web\n\n"

    def test_template_without_objects_prints_nothing(self):
        assert printed(form('jsonpath={range .items[*]}{.metadata.name}{"\\n"}{end}')) == ""

    @pytest.mark.parametrize(
        ("template", "hint"),
        [
            ("{.metadata.name}", "found nothing; the template reads a List: {.items[*]...}"),
            ('{.metadata.name}{"\\n"}', "found nothing; the template reads a List: {.items[*]...}"),
            ("{.items[*].nosuch}", "found nothing"),
            ("{.items[*].metadata.name}", ""),
        ],
    )
    def test_template_that_finds_nothing_has_a_hint(self, template, hint):
        output = form(f"jsonpath={template}")
        printed(output, ("alpha", objects("alpha")))
        assert output.hint == hint

    def test_template_keeps_no_more_of_a_cluster_than_memory_allows(self):
        """Found by an attacker: the pages of one cluster were kept without a limit."""
        output = form("jsonpath={.items[*].metadata.name}")
        page = DocumentPage([{"metadata": {"name": "web"}, "data": "x" * (1 << 20)}])
        for _ in range(31):
            assert not [*output.lines(page, PODS, "hostile")]
        with pytest.raises(ValueError, match="more than 32 MiB of one cluster are too much for a template"):
            output.lines(page, PODS, "hostile")
        assert printed(output, ("alpha", objects("alpha"))).startswith("web ")

    def test_names_follow_their_cluster(self):
        page = read_rows(table("web"), NOW, is_list=True)
        assert printed(form("name"), ("alpha", page), resource=DEPLOYMENTS) == "alpha deployment.apps/web\n"

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"items":{}}', b'{"items":[[]]}', b"{}"])
    def test_other_answers_are_refused(self, body):
        with pytest.raises(ValueError):
            read_objects(body, PODS, "alpha", is_list=True)


@pytest.mark.parametrize("is_list", [False, True])
def test_objects_that_would_be_much_larger_when_printed_are_refused(is_list):
    deep: object = [1] * 100_000
    for _ in range(400):
        deep = [deep]
    document = {"metadata": {"name": "web"}, "spec": deep}
    body = json.dumps({"items": [document]} if is_list else document).encode()
    with pytest.raises(ValueError, match=r"nested 40\d deep"):
        read_objects(body, PODS, "alpha", is_list=is_list)


class TestEvents:
    def test_table_of_a_watch_has_a_column_of_events_and_grows(self):
        output = form(watches=True)
        first, second = (read_rows(table(name), NOW, is_list=True) for name in ("web", "much-longer"))
        lines = [output.text([*output.lines(page, PODS, "alpha", event="ADDED")]) for page in (first, second, first)]
        assert "".join(lines).splitlines() == [
            "EVENT      CLUSTER   NAME   READY",
            "ADDED      alpha     web    1/1",
            "ADDED      alpha     much-longer   1/1",
            "ADDED      alpha     web           1/1",
        ]

    def test_json_of_a_watch_is_one_event_for_each_line(self):
        output = form("json", watches=True)
        lines = printed(output, ("alpha", objects("alpha")), event="MODIFIED").splitlines()
        assert [json.loads(line)["type"] for line in lines] == ["MODIFIED", "MODIFIED"]
        assert json.loads(lines[0])["object"]["metadata"]["name"] == "web"

    def test_template_of_a_watch_is_filled_from_each_object(self):
        output = form("jsonpath={.metadata.name}", watches=True)
        assert printed(output, ("alpha", objects("alpha")), event="ADDED") == "web\n\n"


class TestSpool:
    def test_lines_are_sorted_until_there_are_too_many(self):
        spool, section = Spool(limit=1000), Section(0, "pods")
        lines = [Line(section, cluster, (cluster, "x" * 100)) for cluster in ("c", "b", "a", "d")]
        assert spool.add(lines[:1]) == ()
        assert spool.add(lines[1:2]) == ()
        assert not spool.has_overflowed
        assert [line.cluster for line in spool.add(lines[2:])] == ["a", "b", "c", "d"]
        assert spool.has_overflowed
        assert spool.add(lines[:1]) == lines[:1]
        assert spool.take() == []
