"""Revisions as subscribers carry them: opaque to them, worth something to their holder only, never a reason to fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.server.calls.revision import Position, TokenSigner, parse

EPOCH = "0123456789abcdef"
MARK = "AbCdEfGhIjKlMnOpQrSt-_"
SEAL = TokenSigner(b"key")


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(EPOCH, 42), f"{EPOCH}.42"),
        (Position(EPOCH, 42, part=3), f"{EPOCH}.42.part3"),
    ],
)
def test_a_position_is_written_and_read_back(position: Position, text: str) -> None:
    assert str(position) == text
    assert parse(f"{text}.{MARK}") == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        EPOCH,
        f"{EPOCH}.42",
        f"{EPOCH}.42.all",
        f"{EPOCH}.-1.{MARK}",
        f"{EPOCH}.4_2.{MARK}",
        f"{EPOCH}.\u0664.{MARK}",
        f"{EPOCH}.{'9' * 19}.{MARK}",
        f"{EPOCH}.42.{MARK}\n",
        f"{EPOCH}.42.{MARK}.part1",
        f"{EPOCH}.42.part.{MARK}",
        f"{EPOCH.upper()}.42.{MARK}",
        f"{EPOCH}.42.{MARK}a",
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
    assert position is None or text.startswith(str(position))
    assert SEAL.holds(text, "identify_by_listener") is None


@given(st.integers(0, 10**18 - 1), st.none() | st.integers(0, 10**9 - 1), st.text())
def test_every_position_comes_back_to_its_holder(revision: int, part: int | None, holder: str) -> None:
    position = Position(EPOCH, revision, part)
    sealed = SEAL.put(str(position), holder)
    assert parse(sealed) == position
    assert SEAL.holds(sealed, holder) == str(position)


def test_to_anybody_else_it_is_worth_nothing() -> None:
    sealed = SEAL.put("text", "one")
    assert SEAL.holds(sealed, "other") is None
    assert SEAL.holds(sealed, "") is None
    assert TokenSigner(b"another key").holds(sealed, "one") is None


@given(st.data())
def test_nothing_in_it_can_be_bent(data: st.DataObject) -> None:
    sealed = SEAL.put(str(Position(EPOCH, 1234, 5)), "one")
    place = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda each: each != sealed[place]))
    assert SEAL.holds(sealed[:place] + other + sealed[place + 1 :], "one") is None
