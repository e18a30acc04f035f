"""The cache of TokenReview results."""

from milo_discoveryd.identity.token_review_cache import (
    ACCEPTED_S,
    MAX_BYTES,
    REJECTED_S,
    TokenRejected,
    TokenReviewCache,
    TokenUser,
)

OPERATOR = TokenUser(name="system:serviceaccount:milo:operator")
NOBODY = TokenRejected("unknown")
FOREVER = float("inf")


def test_token_review_cache_misses_unknown_digest() -> None:
    assert TokenReviewCache().get(b"a", 0) is None


def test_token_review_cache_entries_expire() -> None:
    cache = TokenReviewCache()
    cache.put(b"a", OPERATOR, 10, FOREVER)
    cache.put(b"b", NOBODY, 10, FOREVER)
    assert cache.get(b"a", 10 + ACCEPTED_S - 0.1) == OPERATOR
    assert cache.get(b"a", 10 + ACCEPTED_S) is None
    assert cache.get(b"b", 10 + REJECTED_S - 0.1) == NOBODY
    assert cache.get(b"b", 10 + REJECTED_S) is None


def test_token_review_cache_entry_expires_with_the_token() -> None:
    cache = TokenReviewCache()
    cache.put(b"a", OPERATOR, 10, 5)
    assert cache.get(b"a", 14.9) == OPERATOR
    assert cache.get(b"a", 15) is None


def test_token_review_cache_keeps_latest_result() -> None:
    cache = TokenReviewCache()
    cache.put(b"a", OPERATOR, 0, FOREVER)
    cache.put(b"a", NOBODY, 1, FOREVER)
    assert cache.get(b"a", 2) == NOBODY
    cache.put(b"a", OPERATOR, 3, FOREVER)
    assert cache.get(b"a", 4) == OPERATOR
    assert len(cache) == 1


def test_rejected_tokens_evict_only_rejected_tokens() -> None:
    cache = TokenReviewCache(size=3)
    for number in range(3):
        cache.put(b"good %d" % number, OPERATOR, 0, FOREVER)
    for number in range(100):
        cache.put(b"bad %d" % number, NOBODY, 0, FOREVER)
    assert len(cache) == 6
    assert all(cache.get(b"good %d" % number, 1) == OPERATOR for number in range(3))
    cache.put(b"good 3", OPERATOR, 0, FOREVER)
    assert cache.get(b"good 0", 1) is None


def test_token_review_cache_honors_maximum_age() -> None:
    cache = TokenReviewCache()
    cache.put(b"a", OPERATOR, 0, FOREVER)
    assert cache.get(b"a", 9, max_age_s=10) == OPERATOR
    assert cache.get(b"a", 10, max_age_s=10) is None
    assert cache.get(b"a", 10) == OPERATOR
    assert cache.get(b"a", ACCEPTED_S, max_age_s=10 * ACCEPTED_S) is None


def test_token_review_cache_remembers_accepted_tokens_after_the_review_expires() -> None:
    cache = TokenReviewCache()
    assert not cache.was_accepted(b"a")
    cache.put(b"a", OPERATOR, 0, FOREVER)
    assert cache.get(b"a", 1e6) is None
    assert cache.was_accepted(b"a")
    cache.put(b"a", NOBODY, 1e6, FOREVER)
    assert not cache.was_accepted(b"a")


def test_accepted_users_with_many_groups_take_bounded_memory() -> None:
    cache = TokenReviewCache()
    groups = tuple("g" * 1000 + str(number) for number in range(1000))
    tokens = [bytes([number]) for number in range(100)]
    for token in tokens:
        cache.put(token, TokenUser(name="user", groups=groups), 0, FOREVER)
    kept = [token for token in tokens if cache.get(token, 0) is not None]
    assert 0.7 * MAX_BYTES / 1e6 < len(kept) <= MAX_BYTES / 1e6
    assert kept == tokens[-len(kept) :]
    for token in tokens:
        cache.put(token, NOBODY, 1, FOREVER)
    cache.put(b"a", OPERATOR, 2, FOREVER)
    assert cache.get(b"a", 2) == OPERATOR
