"""Revisions: parsing, and signatures for one holder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.server.calls.revision import (
    NOTHING,
    KnownClusters,
    Position,
    StreamRevisions,
    TokenSigner,
    longest,
    parse,
)

EPOCH = "0123456789abcdef"
MARK = "AbCdEfGhIjKlMnOpQrSt-_"
SIGNER = TokenSigner(b"key")


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(EPOCH, 42), f"{EPOCH}.42"),
        (Position(EPOCH, 42, part=3), f"{EPOCH}.42.part3"),
        (Position(EPOCH, 42, known=NOTHING.grown({"": 7})), f"{EPOCH}.42.knownb1fe-7"),
        (Position(EPOCH, 42, known=NOTHING.grown({"": 7}).seen_at({"": 100})), f"{EPOCH}.42.knownb1fe-7-100"),
        (
            Position(EPOCH, 42, part=3, known=NOTHING.grown({"eu": 2, "us": 30})),
            f"{EPOCH}.42.known5ea0-2_3053-30.part3",
        ),
    ],
)
def test_revision_position_round_trips(position: Position, text: str) -> None:
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
        f"{EPOCH}.42.known7.{MARK}",
        f"{EPOCH}.42.known.{MARK}",
        f"{EPOCH.upper()}.42.{MARK}",
        f"{EPOCH}.42.{MARK}a",
        "\x00",
        "9" * 100_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_invalid_revision_is_not_parsed_as_position(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("position", "is_contained"),
    [
        (Position("before", 7), True),
        (Position("before", 8), False),
        (Position("before", 7, part=3), False),
        (Position("unknown", 0), False),
    ],
)
def test_position_is_contained_in_a_state_file_only_if_complete_and_not_newer(
    position: Position, is_contained: bool
) -> None:
    assert position.is_contained_in({"before": 7}) is is_contained


def test_position_within_a_snapshot_or_of_another_run_is_not_complete() -> None:
    assert Position("this", 7).is_complete_in("this")
    assert not Position("this", 7, part=1).is_complete_in("this")
    assert not Position("before", 7).is_complete_in("this")


def test_revision_is_parsed_with_counts_of_configured_sources_only() -> None:
    text = f"{Position(EPOCH, 42, known=NOTHING.grown({'eu': 2, 'us': 30}))}.{MARK}"
    assert parse(text, ["us"]) == Position(EPOCH, 42, known=NOTHING.grown({"us": 30}))
    assert parse(text, []) == Position(EPOCH, 42)


@pytest.mark.parametrize("sources", [1, 64, 1000])
def test_length_limit_of_revisions_allows_a_count_for_each_source(sources: int) -> None:
    digests = {f"{number:04x}": 10**9 - 1 for number in range(sources)}
    position = Position(
        EPOCH, 10**18 - 1, part=10**9 - 1, known=KnownClusters(digests, dict.fromkeys(digests, 10**18 - 1))
    )
    assert len(SIGNER.sign(str(position), "anybody")) <= longest(sources)
    assert longest(sources) == longest(64) or sources > 64


def test_known_clusters_limited_to_sources_exclude_other_sources() -> None:
    known = NOTHING.grown({"eu": 3, "us": 2}).within(["us", "asia"])
    assert [known.count_of(source) for source in ("eu", "us", "asia")] == [0, 2, 0]


def test_known_clusters_have_the_latest_versions_of_sources() -> None:
    known = NOTHING.grown({"eu": 3, "us": 2}).seen_at({"eu": 10, "us": 0})
    assert [known.version_of(source) for source in ("eu", "us", "asia")] == [10, 0, 0]
    assert known.seen_at({"us": 0}) is known
    later = known.seen_at({"us": 7}).grown({"us": 1})
    assert (later.version_of("eu"), later.version_of("us")) == (10, 7)
    assert later.within(["us"]) == parse(f"{Position(EPOCH, 42, known=later)}.{MARK}", ["us"]).known  # type: ignore[union-attr]


def test_known_clusters_are_counted_for_each_source() -> None:
    known = NOTHING.grown({"eu": 3, "us": 2}).grown({"us": -1})
    assert [known.count_of(source) for source in ("eu", "us", "asia")] == [3, 1, 0]
    assert known.grown({}) is known
    assert known == parse(f"{Position(EPOCH, 42, known=known)}.{MARK}").known  # type: ignore[union-attr]


@given(st.text())
def test_revision_parser_does_not_raise_for_any_text(text: str) -> None:
    position = parse(text)
    assert position is None or text.startswith(str(position))
    assert SIGNER.verify(text, "anybody") is None


@given(st.integers(0, 10**18 - 1), st.none() | st.integers(0, 10**9 - 1), st.text())
def test_signed_token_verifies_for_its_holder(revision: int, part: int | None, holder: str) -> None:
    position = Position(EPOCH, revision, part)
    sealed = SIGNER.sign(str(position), holder)
    assert parse(sealed) == position
    assert SIGNER.verify(sealed, holder) == str(position)


def test_signed_token_is_rejected_for_other_holders_and_with_other_keys() -> None:
    sealed = SIGNER.sign("text", "one")
    assert SIGNER.verify(sealed, "other") is None
    assert SIGNER.verify(sealed, "") is None
    assert TokenSigner(b"another key").verify(sealed, "one") is None


@given(st.data())
def test_tampered_signed_token_is_rejected(data: st.DataObject) -> None:
    sealed = SIGNER.sign(str(Position(EPOCH, 1234, 5)), "one")
    place = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda each: each != sealed[place]))
    assert SIGNER.verify(sealed[:place] + other + sealed[place + 1 :], "one") is None


# --- revisions of one stream ---


def test_revisions_of_the_parts_of_a_snapshot_are_numbered() -> None:
    revisions = StreamRevisions(EPOCH, SIGNER)
    made = [revisions.sign_next(42, "holder", is_whole=is_whole) for is_whole in (False, False, True, False)]
    assert [position.part for text in made if (position := parse(text))] == [1, 2, None, 1]


def test_stream_revision_contains_the_counts_of_the_subscribers_clusters() -> None:
    revisions = StreamRevisions(EPOCH, SIGNER)
    assert (revisions.last, revisions.known) == ("", NOTHING)
    revisions.resume("last", NOTHING.grown({"eu": 2}))
    position = parse(revisions.sign_next(42, "holder", is_whole=True))
    assert position == Position(EPOCH, 42, known=NOTHING.grown({"eu": 2}))
    assert revisions.last == "last"


def test_stream_revision_is_bound_to_its_holder() -> None:
    revisions = StreamRevisions(EPOCH, SIGNER)
    text = revisions.sign_next(42, "holder", is_whole=True)
    assert (revisions.is_own(text, "holder"), revisions.is_own(text, "another")) == (True, False)


def test_versions_in_stream_revisions_are_computed_only_after_a_change() -> None:
    revisions = StreamRevisions(EPOCH, SIGNER)
    versions = {"eu": 7}
    revisions.known = revisions.seen_at(NOTHING.grown({"eu": 2}), versions)
    assert revisions.known.versions == NOTHING.grown({"eu": 2}).seen_at(versions).versions
    assert revisions.seen_at(revisions.known, versions) is revisions.known
    later = revisions.seen_at(revisions.known, {"eu": 8})
    assert later.versions == revisions.known.seen_at({"eu": 8}).versions != revisions.known.versions
