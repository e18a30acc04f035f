"""What was said of tokens: for how long it counts, how much is kept, how often may be asked."""

from milo_discoveryd.identity.token_review_cache import (
    ACCEPTED_S,
    BURST,
    PER_SECOND,
    REJECTED_S,
    TokenRejected,
    TokenReviewCache,
    TokenUser,
)

OPERATOR = TokenUser(name="system:serviceaccount:milo:operator")
NOBODY = TokenRejected("unknown")
FOREVER = float("inf")


def test_what_was_never_asked_for_is_unknown() -> None:
    assert TokenReviewCache(0).of(b"a", 0) is None


def test_a_verdict_counts_for_a_while() -> None:
    verdicts = TokenReviewCache(0)
    verdicts.keep(b"a", OPERATOR, 10, FOREVER)
    verdicts.keep(b"b", NOBODY, 10, FOREVER)
    assert verdicts.of(b"a", 10 + ACCEPTED_S - 0.1) == OPERATOR
    assert verdicts.of(b"a", 10 + ACCEPTED_S) is None
    assert verdicts.of(b"b", 10 + REJECTED_S - 0.1) == NOBODY
    assert verdicts.of(b"b", 10 + REJECTED_S) is None


def test_it_never_counts_for_longer_than_the_token() -> None:
    verdicts = TokenReviewCache(0)
    verdicts.keep(b"a", OPERATOR, 10, 5)
    assert verdicts.of(b"a", 14.9) == OPERATOR
    assert verdicts.of(b"a", 15) is None


def test_the_last_word_counts() -> None:
    verdicts = TokenReviewCache(0)
    verdicts.keep(b"a", OPERATOR, 0, FOREVER)
    verdicts.keep(b"a", NOBODY, 1, FOREVER)
    assert verdicts.of(b"a", 2) == NOBODY
    verdicts.keep(b"a", OPERATOR, 3, FOREVER)
    assert verdicts.of(b"a", 4) == OPERATOR
    assert len(verdicts) == 1


def test_made_up_tokens_drive_out_only_made_up_tokens() -> None:
    verdicts = TokenReviewCache(0, size=3)
    for number in range(3):
        verdicts.keep(b"good %d" % number, OPERATOR, 0, FOREVER)
    for number in range(100):
        verdicts.keep(b"bad %d" % number, NOBODY, 0, FOREVER)
    assert len(verdicts) == 6
    assert all(verdicts.of(b"good %d" % number, 1) == OPERATOR for number in range(3))
    verdicts.keep(b"good 3", OPERATOR, 0, FOREVER)
    assert verdicts.of(b"good 0", 1) is None


def test_asking_is_paced() -> None:
    verdicts = TokenReviewCache(0)
    assert [verdicts.wait_s(0) for _ in range(int(BURST))] == [0.0] * int(BURST)
    assert verdicts.wait_s(0) == 1 / PER_SECOND
    assert verdicts.wait_s(1 / PER_SECOND) == 0.0
    assert verdicts.wait_s(1 / PER_SECOND) > 0
    assert sum(verdicts.wait_s(1000) == 0 for _ in range(1000)) == BURST
