import pytest

from milo_discoveryd.sharding import rendezvous
from milo_discoveryd.sharding.leases import View, ViewMember
from milo_discoveryd.sharding.ownership import Decision, KeyOwnership, Owners, Ownership

BOTH = {"a": ViewMember("a.1"), "b": ViewMember("b.1")}
VIEW = View(number=1, id="1", members=BOTH)


def test_key_is_owned_by_the_member_with_the_highest_rendezvous_score() -> None:
    keys = {key: Ownership(view=VIEW, member="a", term="a.1").decide(key) for key in "wxyz"}
    assert set(keys.values()) == {Decision(KeyOwnership.OWNED, "a"), Decision(KeyOwnership.FOREIGN, "b")}
    for key, decision in keys.items():
        state = KeyOwnership.FOREIGN if decision.state is KeyOwnership.OWNED else KeyOwnership.OWNED
        assert Ownership(view=VIEW, member="b", term="b.1").decide(key).state is state


def test_member_whose_term_is_not_in_the_view_owns_nothing() -> None:
    ownership = Ownership(view=VIEW, member="a", term="a.2")
    assert all(ownership.decide(key).state is KeyOwnership.FOREIGN for key in "wxyz")


def test_member_is_a_newcomer_unless_the_present_or_the_previous_view_has_its_term() -> None:
    left = View(number=2, id="2", members={"b": ViewMember("b.1")}, previous=BOTH)
    assert not any(Ownership(view=view, member="a", term="a.1").is_newcomer for view in (VIEW, left))
    assert all(Ownership(view=view, member="a", term="a.2").is_newcomer for view in (VIEW, left))


def test_releases_change_the_ownership_of_a_view_but_a_term_or_another_view_gives_other_keys() -> None:
    ownership = Ownership(view=VIEW, member="a", term="a.1", pending=(("b", frozenset("x")),))
    others = [
        Ownership(view=VIEW, member="a", term="a.1"),
        Ownership(view=VIEW, member="a", term="a.2"),
        Ownership(view=View(number=2, id="2", members=BOTH), member="a", term="a.1"),
    ]
    assert [ownership.has_view_of(other) for other in others] == [True, False, False]


def test_no_key_is_owned_without_members() -> None:
    view = View(number=1, id="1", members={})
    assert Ownership(view=view, member="a", term="a.1").decide("x") == Decision(KeyOwnership.FOREIGN, None)


def test_keys_of_a_member_that_may_not_engage_are_in_state_waiting() -> None:
    ownership = Ownership(view=VIEW, member="a", term="a.1", may_engage=False)
    assert {ownership.decide(key).state for key in "wxyz"} == {KeyOwnership.WAITING, KeyOwnership.FOREIGN}


def test_member_waits_for_a_former_owner_that_has_not_acknowledged_the_view() -> None:
    view = View(number=2, id="2", members={"a": ViewMember("a.1")}, previous=BOTH)
    waiting = Ownership(view=view, member="a", term="a.1", unsettled=frozenset({"a", "b"}))
    assert {waiting.decide(key) for key in "wxyz"} == {
        Decision(KeyOwnership.OWNED, "a"),
        Decision(KeyOwnership.WAITING, "b"),
    }
    settled = Ownership(view=view, member="a", term="a.1", unsettled=frozenset({"a"}))
    assert {settled.decide(key).state for key in "wxyz"} == {KeyOwnership.OWNED}


def test_member_waits_until_its_own_former_term_is_settled() -> None:
    view = View(number=2, id="2", members={"a": ViewMember("a.2")}, previous={"a": ViewMember("a.1")})
    ownership = Ownership(view=view, member="a", term="a.2", unsettled=frozenset({"a"}))
    assert ownership.decide("x") == Decision(KeyOwnership.WAITING, "a")


def test_owner_of_a_key_is_computed_once_for_a_view(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(number=2, id="2", members=BOTH, previous={"c": ViewMember("c.1")})
    owners, computed, owner = Owners(view), [], rendezvous.owner

    def compute(key: str, weights: dict[str, float]) -> str | None:
        computed.append((key, *weights))
        return owner(key, weights)

    monkeypatch.setattr(rendezvous, "owner", compute)
    for _ in range(3):
        assert Ownership(view=view, member="a", term="a.1").decide("w", owners).member == owners.present("w")
        assert owners.former("w") == "c"
    assert computed == [("w", "a", "b"), ("w", "c")]
    assert "w" in owners
    assert "x" not in owners


def test_owners_of_keys_that_no_longer_exist_are_dropped() -> None:
    owners = Owners(VIEW, lambda key: key == "0")
    for key in range(5000):
        owners.present(str(key))
        owners.former(str(key))
    kept = [key for key in map(str, range(5000)) if key in owners]
    assert kept[0] == "0"
    assert len(kept) <= 1000
    assert len(owners._former) <= 1001
