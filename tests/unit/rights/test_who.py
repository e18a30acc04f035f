"""Whom a rule is for, by what was proved of a caller."""

import pytest

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.who import Who, identity, proved

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
        Who(),
        Who(listeners=frozenset({"api", "other"})),
        Who(uids=frozenset({1000})),
        Who(gids=frozenset({100})),
        Who(gids=frozenset({1, 999})),
        Who(sans=("uri:spiffe://prod/ns/shop/sa/operator",)),
        Who(sans=("uri:spiffe://prod/ns/shop/*",)),
        Who(sans=("dns:shop.EXAMPLE.com",)),
        Who(users=frozenset({"system:serviceaccount:shop:operator"})),
        Who(groups=frozenset({"system:authenticated", "another"})),
        Who(listeners=frozenset({"api"}), uids=frozenset({1000})),
    ],
)
def test_a_rule_is_for_who_has_all_that_it_names(who: Who) -> None:
    assert who.is_met_by(CALLER)


@pytest.mark.parametrize(
    "who",
    [
        Who(listeners=frozenset({"other"})),
        Who(uids=frozenset({0})),
        Who(gids=frozenset({0})),
        Who(sans=("uri:spiffe://prod/ns/shop",)),
        Who(sans=("uri:spiffe://prod/ns/shop2/*", "dns:example.com")),
        Who(users=frozenset({"operator"})),
        Who(groups=frozenset({"another"})),
        Who(listeners=frozenset({"api"}), uids=frozenset({0})),
    ],
)
def test_and_for_nobody_who_lacks_one_of_them(who: Who) -> None:
    assert not who.is_met_by(CALLER)


def test_who_proved_nothing_meets_no_rule_that_asks_for_something() -> None:
    nobody = Caller(listener="api")
    asking = (
        Who(uids=frozenset({0})),
        Who(gids=frozenset({0})),
        Who(sans=("uri:*",)),
        Who(users=frozenset({"a"})),
        Who(groups=frozenset({"a"})),
    )
    assert not any(who.is_met_by(nobody) for who in asking)


def test_only_who_asks_for_nothing_is_everybody() -> None:
    assert Who().is_everybody
    assert not Who(uids=frozenset({0})).is_everybody


def test_it_says_whom_it_means() -> None:
    assert str(Who()) == "everybody"
    assert str(Who(listeners=frozenset({"api"}), uids=frozenset({2, 1}))) == "listener api, uid 1 or 2"


def test_what_was_proved_of_a_caller_is_told_and_nothing_else() -> None:
    assert dict(proved(Caller(listener="api", uid=0))) == {"listener": "api", "uid": 0}
    assert list(dict(proved(CALLER))) == ["listener", "uid", "gid", "gids", "pid", "sans", "user", "groups", "peer"]


def test_a_caller_is_the_same_on_another_connection_and_nobody_else_is() -> None:
    def called(**fields: object) -> Caller:
        return Caller(**{"listener": "api", "uid": 1, "peer": "a", "pid": 1, **fields})  # type: ignore[arg-type]

    assert identity(called()) == identity(called(peer="b", pid=2))
    others = [called(uid=2), called(listener="b"), called(gid=1), called(user="u"), called(sans=("dns:a",))]
    assert len({identity(called()), *map(identity, others)}) == 6
