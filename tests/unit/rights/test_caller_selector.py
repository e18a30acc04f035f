"""Whom a rule is for, by what was proved of a caller."""

import pytest

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import CallerSelector, caller_key, verified_fields

CALLER = Caller(
    listener="api",
    peer="unix:",
    uid=1000,
    gid=100,
    gids=(27, 999),
    pid=7,
    sans=("dns:Shop.example.com", "uri:spiffe://prod/ns/shop/sa/operator"),
    user="system:serviceaccount:shop:operator",
    groups=("system:serviceaccounts", "system:authenticated"),
)


@pytest.mark.parametrize(
    "who",
    [
        CallerSelector(),
        CallerSelector(listeners=frozenset({"api", "other"})),
        CallerSelector(uids=frozenset({1000})),
        CallerSelector(gids=frozenset({100})),
        CallerSelector(gids=frozenset({1, 999})),
        CallerSelector(sans=("uri:spiffe://prod/ns/shop/sa/operator",)),
        CallerSelector(sans=("uri:spiffe://prod/ns/shop/*",)),
        CallerSelector(sans=("dns:shop.EXAMPLE.com",)),
        CallerSelector(users=frozenset({"system:serviceaccount:shop:operator"})),
        CallerSelector(groups=frozenset({"system:authenticated", "another"})),
        CallerSelector(listeners=frozenset({"api"}), uids=frozenset({1000})),
    ],
)
def test_a_rule_is_for_who_has_all_that_it_names(who: CallerSelector) -> None:
    assert who.matches(CALLER)


@pytest.mark.parametrize(
    "who",
    [
        CallerSelector(listeners=frozenset({"other"})),
        CallerSelector(uids=frozenset({0})),
        CallerSelector(gids=frozenset({0})),
        CallerSelector(sans=("uri:spiffe://prod/ns/shop",)),
        CallerSelector(sans=("uri:spiffe://prod/ns/shop2/*", "dns:example.com")),
        CallerSelector(users=frozenset({"operator"})),
        CallerSelector(groups=frozenset({"another"})),
        CallerSelector(listeners=frozenset({"api"}), uids=frozenset({0})),
    ],
)
def test_and_for_nobody_who_lacks_one_of_them(who: CallerSelector) -> None:
    assert not who.matches(CALLER)


def test_who_proved_nothing_meets_no_rule_that_asks_for_something() -> None:
    nobody = Caller(listener="api")
    asking = (
        CallerSelector(uids=frozenset({0})),
        CallerSelector(gids=frozenset({0})),
        CallerSelector(sans=("uri:*",)),
        CallerSelector(users=frozenset({"a"})),
        CallerSelector(groups=frozenset({"a"})),
    )
    assert not any(who.matches(nobody) for who in asking)


def test_only_who_asks_for_nothing_is_everybody() -> None:
    assert CallerSelector().is_everybody
    assert not CallerSelector(uids=frozenset({0})).is_everybody


def test_it_says_whom_it_means() -> None:
    assert str(CallerSelector()) == "everybody"
    assert str(CallerSelector(listeners=frozenset({"api"}), uids=frozenset({2, 1}))) == "listener api, uid 1 or 2"


def test_what_was_proved_of_a_caller_is_told_and_nothing_else() -> None:
    assert dict(verified_fields(Caller(listener="api", uid=0))) == {"listener": "api", "uid": 0}
    assert list(dict(verified_fields(CALLER))) == [
        "listener",
        "uid",
        "gid",
        "gids",
        "pid",
        "sans",
        "user",
        "groups",
        "peer",
    ]


def test_a_caller_is_the_same_on_another_connection_and_nobody_else_is() -> None:
    def called(**fields: object) -> Caller:
        return Caller(**{"listener": "api", "uid": 1, "peer": "a", "pid": 1, **fields})  # type: ignore[arg-type]

    assert caller_key(called()) == caller_key(called(peer="b", pid=2))
    others = [called(uid=2), called(listener="b"), called(gid=1), called(user="u"), called(sans=("dns:a",))]
    assert len({caller_key(called()), *map(caller_key, others)}) == 6
