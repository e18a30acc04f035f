"""Revisions as subscribers carry them: opaque to them, and never a reason to fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.server.revision import Position, parse

EPOCH = "0123456789abcdef"


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(EPOCH, 42, "all"), f"{EPOCH}.42.all"),
        (Position(EPOCH, 42, "1674ca829e012c3c", part=3), f"{EPOCH}.42.1674ca829e012c3c.part3"),
    ],
)
def test_a_position_is_written_and_read_back(position: Position, text: str) -> None:
    assert str(position) == text
    assert parse(text) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        EPOCH,
        f"{EPOCH}.42",
        f"{EPOCH}.-1.all",
        f"{EPOCH}.4_2.all",
        f"{EPOCH}.\u0664.all",
        f"{EPOCH}.{'9' * 19}.all",
        f"{EPOCH}.42.all\n",
        f"{EPOCH}.42.all.part.part",
        f"{EPOCH.upper()}.42.all",
        f"{EPOCH}.42.{'a' * 17}",
        "\x00",
        "9" * 100_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_this_program_did_not_write_is_no_position(text: str) -> None:
    assert parse(text) is None


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    position = parse(text)
    assert position is None or str(position).endswith((position.fingerprint, f"part{position.part}"))


@given(st.integers(0, 10**18 - 1), st.none() | st.integers(0, 10**9 - 1))
def test_every_position_comes_back(revision: int, part: int | None) -> None:
    position = Position(EPOCH, revision, "all", part)
    assert parse(str(position)) == position
