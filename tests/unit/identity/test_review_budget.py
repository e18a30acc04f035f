"""Limits for TokenReviews."""

import pytest

from milo_discoveryd.identity import review_budget
from milo_discoveryd.identity.review_budget import (
    PER_CONNECTION,
    PER_OWNER,
    RESERVED,
    TOTAL,
    ReviewBudget,
    ReviewsInFlight,
    TokenOrigin,
)


def flood(budget: ReviewBudget, origin: TokenOrigin, now: float = 0.0) -> int:
    """Charge reviews of rejected tokens until the budget denies one; return the number of allowed reviews."""
    allowed = 0
    while not budget.charge_review(origin, now, was_accepted=False):
        budget.rejected(origin, now)
        allowed += 1
    return allowed


def test_review_budget_limits_token_reviews_per_connection() -> None:
    budget, origin = ReviewBudget(0), TokenOrigin("c", ("o",))
    allowed = sum(budget.charge_review(origin, 0, was_accepted=False) == 0 for _ in range(1000))
    assert allowed == PER_CONNECTION.burst
    assert budget.charge_review(origin, 0, was_accepted=False) == 1 / PER_CONNECTION.per_second
    assert budget.charge_review(origin, 1 / PER_CONNECTION.per_second, was_accepted=False) == 0


def test_review_budget_charges_rejected_tokens_more_than_accepted_tokens() -> None:
    assert flood(ReviewBudget(0), TokenOrigin("c", ("o",))) == PER_CONNECTION.burst / 5


def test_review_budget_exhausted_by_one_owner_does_not_affect_other_owners() -> None:
    budget = ReviewBudget(0)
    flood(budget, TokenOrigin("bad", ("mallory",)))
    assert budget.charge_review(TokenOrigin("good", ("alice",)), 0, was_accepted=False) == 0


def test_review_budget_used_by_two_owners_leaves_a_share_for_a_third_owner() -> None:
    budget = ReviewBudget(0)
    taken = {
        name: sum(review(budget, f"{name}{number % 10}", name) for number in range(999)) for name in ("a", "b", "c")
    }
    assert taken == {"a": 50, "b": 25, "c": 13}
    later = dict.fromkeys("ab", 0)
    for now in range(1, 61):
        for name in later:
            later[name] += sum(review(budget, f"{name}{number % 10}", name, now) for number in range(50))
        assert review(budget, "d", f"d{now}", now), "part of the budget is always left for another owner"
    assert min(later.values()) > 500


def review(budget: ReviewBudget, connection: str, owner: str, now: float = 0.0) -> bool:
    return budget.charge_review(TokenOrigin(connection, (owner,)), now, was_accepted=False) == 0


def test_review_budget_limits_owner_of_many_connections() -> None:
    budget = ReviewBudget(0)
    allowed = sum(flood(budget, TokenOrigin(str(number), ("mallory",))) for number in range(1000))
    assert allowed == PER_OWNER.burst / 5
    assert budget.charge_review(TokenOrigin("good", ("alice",)), 0, was_accepted=False) == 0


def test_review_budget_is_not_increased_by_additional_certificate_names() -> None:
    budget = ReviewBudget(0)
    origins = [TokenOrigin(str(number), (f"dns:{number}", "dns:own")) for number in range(100)]
    assert sum(flood(budget, origin) for origin in origins) == PER_OWNER.burst / 5


def test_review_budget_reserves_share_for_accepted_tokens() -> None:
    budget = ReviewBudget(0)
    for number in range(1000):
        flood(budget, TokenOrigin(str(number), (str(number),)))
    assert budget.charge_review(TokenOrigin("new", ("new",)), 0, was_accepted=False) > 0, (
        f"all {TOTAL.burst} are used up"
    )
    known = [
        budget.charge_review(TokenOrigin("good", ("alice",)), 0, was_accepted=True)
        for _ in range(int(RESERVED.burst) + 1)
    ]
    assert [wait == 0 for wait in known] == [True] * int(RESERVED.burst) + [False]


def test_review_in_flight_counts_for_each_owner_until_it_ends() -> None:
    reviews, names, nobody = ReviewsInFlight[str](), TokenOrigin("c", ("a", "b")), TokenOrigin("d")
    while reviews.has_room(names):
        reviews.count(names, 1)
    assert not reviews.has_room(TokenOrigin("d", ("b",)))
    assert reviews.has_room(nobody)
    reviews.count(names, -1)
    assert reviews.has_room(names)
    reviews.count(nobody, 1)
    reviews.count(nobody, -1)
    assert "" not in reviews._by_owner


def test_failed_review_is_recent_for_its_owners_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_budget, "MAX_KEYS", 2)
    reviews = ReviewsInFlight[str]()
    reviews.failed(TokenOrigin("c", ("a", "b")), "down", until=5.0)
    assert reviews.recent_failure(TokenOrigin("d", ("x", "b")), 4.0) == "down"
    assert reviews.recent_failure(TokenOrigin("c", ("a",)), 5.0) is None
    assert reviews.recent_failure(TokenOrigin("c"), 4.0) is None
    reviews.failed(TokenOrigin("c"), "down", until=5.0)
    assert reviews.recent_failure(TokenOrigin("c", ("a",)), 4.0) is None, "only the latest are kept"
