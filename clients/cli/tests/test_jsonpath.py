"""Tests that JSONPath templates render as in kubectl."""

import pytest

from milo_discovery_cli import jsonpath

DOCUMENT = {
    "clusters": [
        {"name": "a", "labels": {"env": "prod", "example.com/tier": "1"}, "size": 3, "suspended": False},
        {"name": "b", "labels": {"env": "dev"}, "size": 5},
    ]
}


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("{.clusters[*].name}", "a b"),
        ("{$.clusters[0].labels.env}", "prod"),
        ("{.clusters[-1:].name}", "b"),
        ("{.clusters[0].suspended}", "false"),
        ("{.clusters[0].labels['example.com/tier']}", "1"),
        (r"{.clusters[0].labels.example\.com/tier}", "1"),
        ("{.clusters[*]['name','size']}", "a b 3 5"),
        ("{.clusters[*]['labels.env', \"name\"]}", "prod dev a b"),
        ("{.clusters[0]['labels.nosuch','.hidden']}", ""),
        ("{.clusters[9].name}", ""),
        ("{..env}", "prod dev"),
        ('{.clusters[?(@.labels.env=="dev")].name}', "b"),
        ("{.clusters[?(@.size>3)].name}", "b"),
        ("{.clusters[?(@.suspended)].name}", "a"),
        ('{range .clusters[*]}{.name}={.size}{"\\n"}{end}', "a=3\nb=5\n"),
        ("first: {.clusters[0].name}!", "first: a!"),
        ("{.clusters[0].labels}", '{"env":"prod","example.com/tier":"1"}'),
        (r"{.clusters[0].labels['example\.com/tier']}", "1"),
        (r"{.clusters[*]['labels.example\.com/tier', 'nosuch']}", "1"),
        ("{.clusters[::2].name}", "a"),
        ('{ range .clusters[*] }{ .name }{ "\\n" }{ end }', "a\nb\n"),
        ("{range.clusters[*]}{.name}{end}", "ab"),
        ("{range  $.clusters[*]}{.name}{end}", "ab"),
        ("{ranges}{rangefinder.x}", ""),
        ("{range .}" * 100 + "{.clusters[0].name}" + "{end}" * 100, "a"),
    ],
)
def test_jsonpath_template_renders_as_in_kubectl(template: str, printed: str) -> None:
    assert jsonpath.render(template, DOCUMENT) == printed


@pytest.mark.parametrize(
    "template",
    [
        "{.clusters[}",
        "{.clusters",
        "{range .clusters[*]}{.name}",
        "{range .clusters[*]}{.name[}{end}",
        '{range .clusters[*]}{"\\q"}{end}',
        "{end}",
        "{.a[?(@.b==c)]}",
        "{.a[?(@.b[c]==1)]}",
        "{.a[?(@.b==" + "[" * 5_000 + ")]}",
        "{.a[::0]}",
        "{.a[-:]}",
        "{.a[" + "9" * 5_000 + "]}",
        "{.a[:" + "9" * 5_000 + "]}",
        "{range .}" * 1_500 + "{end}" * 1_500,
        "{range .a}" * 101 + "{end}" * 101,
    ],
)
@pytest.mark.parametrize("document", [{}, {"a": [{"b": 1}], "clusters": []}])
def test_invalid_jsonpath_is_refused_whatever_the_document_contains(template: str, document: object) -> None:
    with pytest.raises(jsonpath.PathError):
        jsonpath.render(template, document)
