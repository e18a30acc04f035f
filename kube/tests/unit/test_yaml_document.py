"""Parsing of YAML, with limits against malicious documents."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_kube import yaml_document
from milo_kube.yaml_document import DocumentError, read


def test_yaml_values_have_line_numbers() -> None:
    document = read(b"a: 1\nb:\n  c: [x,\n    y]\n", scalars="text")
    assert document.value == {"a": "1", "b": {"c": ["x", "y"]}}
    assert document.line(("b", "c")) == 3
    assert document.line(("b", "c", 1)) == 4
    assert document.line(("b", "c", 1, "deeper")) == 4
    assert document.line(("missing",)) == 1


def test_yaml_scalars_are_read_as_text_or_as_typed_values_as_requested() -> None:
    content = (
        b"a: no\nb: 0660\nc: ~\nd: 'null'\ne: 2020-01-01\nf: 1.5\ng: !!python/name:os.system x\nh: !!binary aGk=\n"
    )
    assert read(content, scalars="text").value == {
        "a": "no", "b": "0660", "c": None, "d": "null", "e": "2020-01-01", "f": "1.5", "g": "x", "h": "aGk=",
    }  # fmt: skip
    assert read(content, scalars="typed").value == {
        "a": False, "b": 0o660, "c": None, "d": "null", "e": "2020-01-01", "f": 1.5, "g": "x", "h": "aGk=",
    }  # fmt: skip


def test_yaml_parser_reads_json() -> None:
    assert read(b'{"a": [true, 1, "x", null]}', scalars="typed").value == {"a": [True, 1, "x", None]}
    assert read(b'{"\\ud83d\\ude00": "\\u00e4\\ud83d\\ude00"}', scalars="text").value == {"😀": "ä😀"}


@pytest.mark.parametrize(
    ("content", "line", "complaint"),
    [
        (b"a: 1\nb: 2\na: 3\n", 3, 'has the key "a" twice (first on line 1)'),
        (b"x: {a: 1, a: 2}\n", 1, 'has the key "a" twice'),
        (b"base: &b {a: 1}\nx:\n  <<: *b\n", 3, "merge key"),
        (b"a: 1\n? [b]\n: c\n", 2, "a key that is not a scalar"),
        (b"a: 1\n b: 2\n", 2, "is not YAML"),
        (b"a: 1\nb: 'open\n", 3, "is not YAML"),
        (b"a: 1\n---\nb: 2\n", 2, "another document"),
        (b"a: b\xff\n", 1, "is not UTF-8"),
        (b"a: \x07\n", 0, "is not YAML"),
        (b"x: *nowhere\n", 1, "undefined alias"),
        (b"a: !!int word\n", 1, "an invalid number"),
        (b"a: 1\nb: !!bool word\n", 2, "an invalid number or boolean"),
        (b"a: !!int ''\n", 1, "an invalid number or boolean"),
        (b"a: !!float ''\n", 1, "an invalid number or boolean"),
        (b"a: 1" + b":1" * 50, 1, "a number of more than 100 characters"),
        (b'a: b\nc: "\\ud83d"\n', 2, "unpaired surrogate"),
    ],
)
def test_yaml_error_has_line_number(content: bytes, line: int, complaint: str) -> None:
    with pytest.raises(DocumentError) as raised:
        read(content, scalars="typed")
    assert complaint in str(raised.value)
    assert raised.value.line == line


def test_yaml_aliases_are_resolved() -> None:
    assert read(b"a: &x [1]\nb: *x\n", scalars="typed").value == {"a": [1], "b": [1]}


def test_yaml_alias_bomb_is_rejected() -> None:
    laughs = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(DocumentError, match="too large or too deeply nested"):
        read("\n".join(laughs).encode(), scalars="typed")


def test_recursive_yaml_alias_is_rejected() -> None:
    with pytest.raises(DocumentError, match="too large or too deeply nested"):
        read(b"a: &a [*a]\n", scalars="typed")


def test_yaml_document_size_and_nesting_are_limited() -> None:
    with pytest.raises(DocumentError, match="bytes long"):
        read(b"#" * (yaml_document.MAX_BYTES + 1), scalars="text")
    with pytest.raises(DocumentError, match="has more than 10 %TAG directives"):
        read(b"".join(b"%%TAG !%d! a\n" % number for number in range(11)) + b"---\n", scalars="text")
    with pytest.raises(DocumentError, match="brackets"):
        read(b"[" * 100_000, scalars="text")
    with pytest.raises(DocumentError, match="too deeply"):
        read(b"[" * 1_000 + b"]" * 1_000, scalars="text")
    with pytest.raises(DocumentError, match="too deeply"):
        read(b"- " * 5_000 + b"x", scalars="text")


@given(st.binary(max_size=200))
def test_yaml_parser_raises_only_document_errors_for_any_bytes(content: bytes) -> None:
    with suppress(DocumentError):
        read(content, scalars="typed")
