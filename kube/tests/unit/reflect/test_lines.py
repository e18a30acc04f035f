"""Splitting of a byte stream into lines."""

import pytest

from milo_kube.reflect.wire import Lines, LineTooLongError

STREAM = b'{"a":1}\n\n{"b":\r\n"two"}\n{"unfinished'


def fed(*chunks: bytes, limit: int = 100) -> list[bytes]:
    lines = Lines(limit)
    return [bytes(line) for chunk in chunks for line in lines.feed(chunk)]


def test_line_splitter_returns_whole_lines_and_skips_empty_lines() -> None:
    assert fed(STREAM) == [b'{"a":1}', b'{"b":\r', b'"two"}']


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_line_splitter_is_independent_of_chunk_boundaries(cut: int) -> None:
    assert fed(STREAM[:cut], STREAM[cut:]) == fed(STREAM)


def test_line_splitter_accepts_single_bytes() -> None:
    assert fed(*(STREAM[index : index + 1] for index in range(len(STREAM)))) == fed(STREAM)


def test_line_splitter_reports_unfinished_line() -> None:
    lines = Lines()
    lines.feed(b"half")
    assert lines.partial
    lines.feed(b" and half\n")
    assert not lines.partial


@pytest.mark.parametrize(
    "chunks",
    [(b"123456",), (b"123", b"456"), (b"1\n123456\n1\n",), (b"1\n123456",), (b"123", b"456\n"), (b"1\n\n123", b"456")],
)
def test_line_splitter_rejects_line_over_limit(chunks: tuple[bytes, ...]) -> None:
    with pytest.raises(LineTooLongError, match="longer than 5 bytes"):
        fed(*chunks, limit=5)


def test_line_splitter_accepts_line_of_exact_limit() -> None:
    assert fed(b"12345\n123", b"45\n", limit=5) == [b"12345", b"12345"]
