"""Decoding of watch events, list pages and error responses."""

import json
import tracemalloc
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube.tests.unit.reflect.lines import DECODER, Found, Malformed, line, seen, thing
from milo_kube.reflect import wire
from milo_kube.reflect.wire import (
    Bookmark,
    Decoder,
    ErrorStatus,
    LargePageError,
    ListPage,
    ListPageError,
    ObjectRemoved,
    ObjectSeen,
    Undecodable,
    UnknownEvent,
    bounded_name,
    cut,
    error_status,
    has_more_containers,
)

DEEP = "[" * 100_000 + "]" * 100_000
NAMED = '"name":"a","uid":"u","resourceVersion":"7"'


@pytest.mark.parametrize(
    ("value", "containers"),
    [
        ([[], {}, [{}]], 5),
        ({"a": "[{" * 9, "b": ["[", "", "{"], "": ""}, 2),
        (["\\", [], '"[{', [], '\\"[', "\\\\", []], 4),
        (["[", [], "[", [], "", [], "["], 4),
    ],
)
def test_lists_and_maps_of_a_text_are_counted_without_brackets_in_strings(value: Any, containers: int) -> None:
    text = json.dumps(value).encode()
    assert has_more_containers(text, containers - 1)
    assert not has_more_containers(text, max(containers, text.count(b'"')))


@pytest.mark.parametrize("kind", ["ADDED", "MODIFIED"])
def test_added_or_modified_event_is_decoded_to_object_seen(kind: str) -> None:
    assert DECODER.line(line(kind, thing("a", "7"))) == ObjectSeen(seen("a", "7"))


def test_decoder_skips_unused_fields() -> None:
    assert DECODER.line(
        line("ADDED", thing("a", "7", managedFields=[{"f:x": {}}]) | {"kind": "Project"})
    ) == ObjectSeen(seen("a", "7"))


def test_deletion_event_is_decoded_with_name_uid_and_version() -> None:
    assert DECODER.line(line("DELETED", thing("a", "8"))) == ObjectRemoved("a", "uid-a", "8")


def test_deletion_of_malformed_object_is_decoded() -> None:
    gone = {"metadata": {"name": "a", "uid": "u", "resourceVersion": "8", "labels": 5}}
    assert DECODER.line(line("DELETED", gone)) == ObjectRemoved("a", "u", "8")


def test_bookmark_is_decoded_with_its_version() -> None:
    assert DECODER.line(line("BOOKMARK", {"metadata": {"resourceVersion": "9"}})) == Bookmark("9", False)


def test_initial_events_end_bookmark_is_decoded() -> None:
    marks = {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}
    assert DECODER.line(line("BOOKMARK", {"metadata": marks})) == Bookmark("9", True)
    marks = {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "false"}}
    assert DECODER.line(line("BOOKMARK", {"metadata": marks})) == Bookmark("9", False)


def test_error_event_is_decoded_to_error_status() -> None:
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 1 (5)"}
    assert DECODER.line(line("ERROR", status)) == ErrorStatus(410, "Expired", "too old resource version: 1 (5)")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ("null", "Expected `object`"),
        ("[]", "Expected `object`"),
        ('{"type":"ADDED"}', "missing required field `object`"),
        ('{"object":{}}', "missing required field `type`"),
        ('{"type":5,"object":{}}', "Expected `str`"),
        ('{"type":"ADDED","object":{"x":NaN}}', "malformed"),
        ('\ufeff{"type":"ADDED","object":{}}', "malformed"),
        ('{"type":"ADDED","object":{}} {}', "malformed"),
        ('{"type":"ADDED","object":{"x":"\\ud800, which is half of a character"}}', "malformed"),
        (f'{{"type":"ADDED","object":{DEEP},"unused":"{"x" * (3 << 20)}"}}', "nested too deeply"),
        ("<html>", "malformed"),
    ],
    ids=lambda text: text[:40],
)
def test_invalid_watch_line_is_undecodable(content: str, problem: str) -> None:
    found = DECODER.line(content.encode())
    assert isinstance(found, Undecodable)
    assert found.problem.startswith("a line of the watch is not an event: ")
    assert problem in found.problem


def test_event_with_invalid_unicode_is_undecodable_unless_it_is_in_an_unused_field() -> None:
    assert isinstance(DECODER.line(b'{"type":"\xff","object":{}}'), Undecodable)
    skipped = line("ADDED", thing("a", "7") | {"x": "@"}).replace(b"@", b"\xff")
    assert DECODER.line(skipped) == ObjectSeen(seen("a", "7"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"metadata":{"name":"a","uid":"u","resourceVersion":"7","labels":{"x":1}}}', "Expected `str`, got `int`"),
        ('{"metadata":{"name":"a","uid":"u","resourceVersion":"7","labels":[]}}', "Expected `object | null`"),
        (f'{{"metadata":{{{NAMED}}},"status":{{"conditions":{{}}}}}}', "Expected `array | null`"),
        (f'{{"metadata":{{{NAMED}}},"status":{{"conditions":[{{}}]}}}}', "missing required field `type`"),
        (f'{{"metadata":{{{NAMED}}},"spec":7}}', "Expected `object | null`"),
        (f'{{"metadata":{{{NAMED},"deletionTimestamp":{"9" * 5000}}}}}', "Number out of range"),
    ],
    ids=lambda text: text[-40:],
)
def test_malformed_object_has_name_and_problem(content: str, problem: str) -> None:
    found = DECODER.line(f'{{"type":"MODIFIED","object":{content}}}'.encode())
    assert isinstance(found, ObjectSeen)
    assert isinstance(found.observation, Malformed)
    assert (found.observation.name, found.observation.uid, found.observation.version) == ("a", "u", "7")
    assert problem in found.observation.message


def test_malformed_object_without_uid_or_version_has_name() -> None:
    assert DECODER.object(b'{"metadata":{"name":"a"}}') == Malformed(
        "a", "", "", "Object missing required field `uid` - at `$.metadata`"
    )


def test_invalid_unicode_in_labels_makes_the_object_malformed() -> None:
    found = DECODER.object(b'{"metadata":{' + NAMED.encode() + b',"labels":{"x":"\xff"}}}')
    assert isinstance(found, Malformed)
    assert "utf-8" in found.message


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"metadata": None},
        {"metadata": {"name": 5}},
        thing(""),
    ],
    ids=range(6),
)
def test_watch_event_object_without_name_is_ignored(content: Any) -> None:
    for kind in ("DELETED", "ADDED"):
        problem = f"a watch event of type {kind} has no object name"
        assert DECODER.line(line(kind, content)) == UnknownEvent(problem)


@pytest.mark.parametrize("name", ["a" * 1025, "a" * 200_000, "\N{ROCKET}" * 257], ids=range(3))
def test_object_with_a_very_long_name_is_malformed_under_a_short_name(name: str) -> None:
    long = thing(name, "7", "u")
    [short, _] = bounded_name(name)
    assert name.startswith(short.partition("%")[0])
    assert len(short) < 128
    malformed = Malformed(short, "u", "7", "its name and namespace take more than 1024 bytes")
    assert DECODER.line(line("ADDED", long)) == ObjectSeen(malformed)
    assert DECODER.object(json.dumps(long).encode()) == malformed
    assert DECODER.line(line("DELETED", long)) == ObjectRemoved(short, "u", "7")
    incomplete = DECODER.object(json.dumps(thing(name, "7", "u", labels=5)).encode())
    assert isinstance(incomplete, Malformed)
    assert incomplete.name == short


@pytest.mark.parametrize(("name", "namespace"), [("a", "n" * 1024), ("a" * 100, "n" * 100_000)], ids=range(2))
def test_deleted_object_with_a_very_long_namespace_has_a_short_one(name: str, namespace: str) -> None:
    [short_name, short] = bounded_name(name, namespace)
    assert (short_name, short.partition("%")[0], len(short)) == (name, "n" * 100, 117)
    assert DECODER.line(line("DELETED", thing(name, "7", "u", namespace=namespace))) == ObjectRemoved(
        name, "u", "7", short
    )


def test_very_long_names_remain_different_when_they_are_shortened() -> None:
    assert len({bounded_name("a" * 1025 + end) for end in "xyz"}) == 3
    assert bounded_name("a" * 1000, "n" * 24) == ("a" * 1000, "n" * 24)


def deep(name: str, levels: int = 5_000) -> str:
    """Return an object that API servers accept, but that is nested too deeply for the decoder."""
    text = r'"]}{[ \" \\"'
    content = f'[{text},{{"y":' * levels + f'{{"metadata":[{text}]}}' + "}]" * levels
    return json.dumps(thing(name, "7")).removesuffix("}") + f', "status": {{"x": {text}}}, "spec": {{"z": {content}}}}}'


def too_deep(name: str) -> Malformed:
    return Malformed(name, f"uid-{name}", "7", "nested too deeply")


def test_object_that_is_nested_too_deeply_does_not_affect_the_others_of_a_list() -> None:
    objects = [json.dumps(thing("a", "7")), deep("b"), json.dumps(thing("c", "7")), deep("d"), deep("")]
    page, listed = DECODER.page(f'{{"metadata":{{"resourceVersion":"9"}},"items":[{",".join(objects)}]}}'.encode())
    assert page == ListPage("9", "")
    assert [*listed] == [seen("a", "7"), too_deep("b"), seen("c", "7"), too_deep("d"), None]


def test_watch_event_of_object_that_is_nested_too_deeply_is_decoded() -> None:
    added, deleted = (
        DECODER.line(f'{{"type":"{kind}","object":{deep("a")}}}'.encode()) for kind in ("ADDED", "DELETED")
    )
    assert added == ObjectSeen(too_deep("a"))
    assert deleted == ObjectRemoved("a", "uid-a", "7")


def test_object_that_is_nested_too_deeply_has_name_and_problem() -> None:
    assert DECODER.object(deep("a").encode()) == too_deep("a")


@pytest.mark.parametrize(
    "many", ["[]," * 400_000, f"{'[' * 497}{'[[]],' * 200_000}0{']' * 497},"], ids=["flat", "deep"]
)
def test_object_that_is_nested_too_deeply_and_has_very_many_brackets_affects_no_others(many: str) -> None:
    """A tenant could end each list and watch of a kind by one object."""
    large = deep("a").removesuffix("}") + f', "spec2": [{many}0]}}'
    assert DECODER.lines([f'{{"type":"ADDED","object":{large}}}'.encode(), line("ADDED", thing("b"))]) == [
        ObjectSeen(too_deep("a")),
        ObjectSeen(seen("b")),
    ]
    removed = DECODER.line(f'{{"type":"DELETED","object":{large}}}'.encode())
    assert removed == ObjectRemoved("a", "uid-a", "7")
    _, listed = DECODER.page(f'{{"metadata":{{}},"items":[{large},{json.dumps(thing("b"))}]}}'.encode())
    assert [*listed] == [too_deep("a"), seen("b")]


@pytest.mark.parametrize("before", range(0, 2_500, 77))
def test_object_that_is_nested_too_deeply_is_found_wherever_it_begins(before: int) -> None:
    objects = [json.dumps(thing("a", unused='"[' * before)), deep("b", 260), deep("c"), json.dumps(thing("d"))]
    _, listed = DECODER.page(f'{{"metadata":{{}},"items":[{",".join(objects)}]}}'.encode())
    assert [*listed] == [seen("a"), too_deep("b"), too_deep("c"), seen("d")]


def test_object_that_is_nested_too_deeply_everywhere_becomes_no_larger() -> None:
    content = f"{'[' * 1200}{']' * 1200},{'[' * 497}{'[[0]],' * 200_000}0{']' * 497}"
    text = json.dumps(thing("a")).removesuffix("}") + f', "spec": [{content}]}}'
    assert len(cut(text.encode())) == len(text)


PIECES = st.sampled_from([b"[", b"]", b"{", b"}", b"[[[", b"]]]", b"{[{", b"0", b",", b'"', rb"\"", rb"\\", b" " * 300])


@given(st.lists(PIECES, max_size=200))
def test_what_is_nested_too_deeply_is_dropped_with_its_brackets_kept(pieces: list[bytes]) -> None:
    text, expected = b"".join(pieces), bytearray()
    depth, in_string, is_escaped = 0, False, False
    for byte in text:
        before = depth
        if not is_escaped and byte == 0x22:
            in_string = not in_string
        elif not in_string:
            depth += (byte in b"[{") - (byte in b"]}")
        is_escaped = byte == 0x5C and not is_escaped
        expected.append(byte if min(before, depth) <= 3 else 0x0D)
    with patch.object(wire, "_DEEPEST", 3):
        assert cut(text) == expected


def test_page_that_is_too_large_to_find_what_is_nested_too_deeply_is_to_be_smaller() -> None:
    objects = ",".join([deep("a"), json.dumps(thing("b", unused="x" * (3 << 20)))])
    with pytest.raises(LargePageError, match="nested too deeply"):
        DECODER.page(f'{{"metadata":{{}},"items":[{objects}]}}'.encode())


def test_unknown_event_type_is_truncated() -> None:
    assert DECODER.line(line("RENAMED", {})) == UnknownEvent("a watch event of unknown type 'RENAMED'")
    assert DECODER.line(line("X" * 1000, {})) == UnknownEvent(f"a watch event of unknown type {'X' * 40!r}")


def test_uid_and_version_of_deletion_are_truncated_as_those_of_objects() -> None:
    long = thing("a", "7" * 10_000, "u" * 10_000)
    seen_object = DECODER.line(line("ADDED", long))
    assert isinstance(seen_object, ObjectSeen)
    removed = ObjectRemoved("a", seen_object.observation.uid, seen_object.observation.version)
    assert DECODER.line(line("DELETED", long)) == removed
    assert len(removed.uid) == len(removed.version) == 128


def test_bookmark_with_version_that_is_too_long_is_ignored() -> None:
    assert isinstance(DECODER.line(line("BOOKMARK", {"metadata": {"resourceVersion": "7" * 4097}})), UnknownEvent)


@pytest.mark.parametrize("field", ["resourceVersion", "continue"])
def test_list_with_version_or_token_that_is_too_long_is_refused(field: str) -> None:
    with pytest.raises(ListPageError, match="longer than 4096"):
        DECODER.page(json.dumps({"metadata": {field: "7" * 4097}, "items": []}).encode())
    DECODER.page(json.dumps({"metadata": {field: "7" * 4096}, "items": []}).encode())


@pytest.mark.parametrize("content", [{}, None, {"metadata": {"resourceVersion": 5}}])
def test_bookmark_without_valid_version_is_ignored(content: Any) -> None:
    found = DECODER.line(line("BOOKMARK", content))
    assert isinstance(found, UnknownEvent)
    assert found.problem.startswith("a watch event of type BOOKMARK is malformed: ")


def page(items: Any, **metadata: str) -> bytes:
    return json.dumps({"metadata": metadata, "items": items}).encode()


def test_list_page_has_objects_and_continue_token() -> None:
    header, observations = DECODER.page(page([thing("a"), thing("b")], resourceVersion="5", **{"continue": "on"}))
    assert header == ListPage("5", "on")
    assert list(observations) == [seen("a"), seen("b")]


@pytest.mark.parametrize("items", [None, []])
def test_empty_list_page_is_decoded_without_objects(items: Any) -> None:
    header, observations = DECODER.page(page(items, resourceVersion="5"))
    assert (header, list(observations)) == (ListPage("5", ""), [])


def test_malformed_object_in_list_page_does_not_affect_other_objects() -> None:
    bad = {"metadata": {"name": "bad", "uid": "u", "resourceVersion": "2", "labels": "none"}}
    _, observations = DECODER.page(page([thing("a"), bad, {}, thing("b")], resourceVersion="5"))
    assert [observation and observation.name for observation in observations] == ["a", "bad", None, "b"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"items":[]}',
        b'{"metadata":{"resourceVersion":"5"}}',
        b'{"metadata":{"resourceVersion":"5"},"items":{}}',
        b'{"metadata":{"resourceVersion":5},"items":[]}',
        f'{{"metadata":{{}},"items":{{"x":{DEEP}}}}}'.encode(),
        b'{"metadata":{"continue":"\xff"},"items":[]}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_response_that_is_not_a_list_raises_list_page_error(body: bytes) -> None:
    with pytest.raises(ListPageError, match="the response is not a list: "):
        DECODER.page(body)


def test_error_status_contains_object_name() -> None:
    status = {"reason": "NotFound", "code": 404, "message": 'projects "a" not found', "details": {"name": "a"}}
    assert error_status(json.dumps(status).encode(), 404) == ErrorStatus(404, "NotFound", 'projects "a" not found', "a")


def test_reason_of_an_error_status_is_shortened() -> None:
    status = error_status(json.dumps({"reason": "R" * 1_000_000, "code": 410}).encode())
    assert status.reason == "R" * 64


def test_error_status_without_code_has_http_status() -> None:
    assert error_status(b'{"message":"no"}', 503) == ErrorStatus(503, "", "no")


@pytest.mark.parametrize("item", ["1", "{}", '{"metadata":1}', '{"metadata":{}}', '{"m\\u0065tadata":{"name":"a"}}'])
def test_list_page_of_too_many_tiny_items_is_rejected_before_they_are_decoded(item: str) -> None:
    """Each item of a decoded page takes 64 bytes of memory, however short it is in JSON."""
    body = f'{{"metadata":{{}},"items":[{",".join([item] * (4_000_000 // (len(item) + 1)))}]}}'.encode()
    tracemalloc.start()
    try:
        with pytest.raises(ListPageError, match=r"the response is (not a list|refused): "):
            DECODER.page(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_object_larger_than_a_line_of_a_watch_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = thing("a", "7") | {"spec": "x" * 1000}, thing("b", "7")
    body = json.dumps({"metadata": {"resourceVersion": "7"}, "items": [large, small]}).encode()
    monkeypatch.setattr(wire, "MAX_LINE", 1000)
    _, objects = DECODER.page(body)
    assert [*objects] == [Malformed("a", "uid-a", "7", "larger than 1000 bytes"), seen("b", "7")]
    assert DECODER.object(json.dumps(large).encode()) == Malformed("a", "uid-a", "7", "larger than 1000 bytes")


@pytest.mark.parametrize(
    "labels",
    [{f"{number:x}": "" for number in range(200_000)}, [[]] * 400_000, [[[[[[]]]]]] * 100_000, [1] * 200_000],
)
def test_large_object_with_too_many_values_is_malformed_and_not_decoded(labels: Any) -> None:
    content = thing("a", "7", labels=labels)
    event, raw = line("MODIFIED", content), json.dumps(content).encode()
    tracemalloc.start()
    try:
        found = DECODER.line(event)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(event)
    finally:
        tracemalloc.stop()
    assert isinstance(found, ObjectSeen)
    assert found.observation == DECODER.object(raw)
    assert isinstance(found.observation, Malformed)
    assert (found.observation.name, found.observation.message) == ("a", "more than 150000 values")


def test_object_of_a_line_is_observed_once_if_it_is_invalid() -> None:
    observed: list[Any] = []

    def observe(found: Any) -> Found:
        observed.append(found)
        raise msgspec.ValidationError("too costly")

    decoder: Decoder[Any, Found] = Decoder(dict[str, Any], observe, Malformed)
    found = decoder.line(line("MODIFIED", thing("a", "7")))
    assert found == ObjectSeen(Malformed("a", "uid-a", "7", "too costly"))
    assert len(observed) == 1


def test_characters_in_strings_of_a_large_object_are_no_values() -> None:
    """A valid object with a large table as text was refused."""
    content = thing("a", "7", unused='"1",[2],{3}\\\n' * 160_000)
    assert DECODER.line(line("MODIFIED", content)) == ObjectSeen(seen("a", "7"))


def test_large_object_with_few_values_is_decoded() -> None:
    content = thing("a", "7", annotations={f"{number}": 20 * "," for number in range(7_000)}, unused=2_000_000 * "x")
    assert DECODER.line(line("MODIFIED", content)) == ObjectSeen(seen("a", "7"))


def test_bookmark_with_too_many_values_is_ignored() -> None:
    annotations = {f"{number:x}": "" for number in range(200_000)}
    found = DECODER.line(line("BOOKMARK", {"metadata": {"resourceVersion": "9", "annotations": annotations}}))
    assert isinstance(found, UnknownEvent)


def test_large_page_of_small_objects_is_decoded() -> None:
    items = [thing(f"{number}", "7") for number in range(30_000)]
    body = json.dumps({"metadata": {"resourceVersion": "7"}, "items": items}).encode()
    assert len(body) > 2 << 20
    page, objects = DECODER.page(body)
    assert page == ListPage("7", "")
    assert sum(1 for _ in objects) == 30_000


def test_error_status_message_of_html_page_is_stripped_of_tags_and_truncated() -> None:
    body = b"<html><h1>502 Bad\n Gateway</h1>" + b"<p>x</p> " * 1000
    refused = error_status(body, 502)
    assert refused.message.startswith("502 Bad Gateway x x")
    assert len(refused.message) <= 160


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00", b'{"code":"x"}', DEEP.encode(), b"9" * 5000], ids=range(5))
def test_error_response_with_an_invalid_body_has_the_code_of_its_http_status(body: bytes) -> None:
    assert error_status(body, 500).code == 500


def test_error_status_message_is_truncated() -> None:
    assert len(error_status(json.dumps({"message": "x" * 5000}).encode()).message) == 600


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
def test_object_with_an_oversized_uid_or_version_is_malformed(field: str) -> None:
    event = DECODER.line(line("ADDED", thing("a", "7", **{field: "9" * 5000})))
    assert isinstance(event, ObjectSeen)
    assert isinstance(event.observation, Malformed)
    assert len(event.observation.uid) <= 128
    assert len(event.observation.version) <= 128


def test_lines_are_decoded_up_to_the_first_one_that_is_no_event() -> None:
    first, second = (line("ADDED", thing("a", "7")), b"1")
    found = DECODER.lines([first, second, first])
    assert found[0] == ObjectSeen(seen("a", "7"))
    assert isinstance(found[1], Undecodable)
    assert len(found) == 2
    assert DECODER.lines([first]) == found[:1]
