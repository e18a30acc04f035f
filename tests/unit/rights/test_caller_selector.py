"""Which callers a rule matches, and the keys of callers."""

import pytest

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import CallerSelector, caller_key, quota_keys, verified_fields

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
def test_caller_selector_matches_caller_that_meets_all_its_conditions(who: CallerSelector) -> None:
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
def test_caller_selector_rejects_caller_that_fails_one_condition(who: CallerSelector) -> None:
    assert not who.matches(CALLER)


def test_unverified_caller_matches_no_selector_with_conditions() -> None:
    nobody = Caller(listener="api")
    asking = (
        CallerSelector(uids=frozenset({0})),
        CallerSelector(gids=frozenset({0})),
        CallerSelector(sans=("uri:*",)),
        CallerSelector(users=frozenset({"a"})),
        CallerSelector(groups=frozenset({"a"})),
    )
    assert not any(who.matches(nobody) for who in asking)


def test_caller_selector_string_lists_its_conditions() -> None:
    assert str(CallerSelector()) == "everybody"
    assert str(CallerSelector(listeners=frozenset({"api"}), uids=frozenset({2, 1}))) == "listener api, uid 1 or 2"


def test_verified_fields_omit_unset_fields_of_caller() -> None:
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


def test_caller_key_depends_on_the_caller_and_not_on_the_connection() -> None:
    def called(**fields: object) -> Caller:
        return Caller(**{"listener": "api", "uid": 1, "peer": "a", "pid": 1, **fields})  # type: ignore[arg-type]

    assert caller_key(called()) == caller_key(called(peer="b", pid=2))
    others = [called(uid=2), called(listener="b"), called(gid=1), called(user="u"), called(sans=("dns:a",))]
    assert len({caller_key(called()), *map(caller_key, others)}) == 6


@pytest.mark.parametrize(
    "san",
    [
        "uri:spiffe://prod/ns/shop/../bank",
        "uri:spiffe://prod/ns/shop/a/..",
        "uri:spiffe://prod/ns/shop/./a",
        "uri:spiffe://prod/ns/shop//a",
        "uri:spiffe://prod/ns/shop/%2e%2e/bank",
        "uri:spiffe://prod/ns/shop/%2E./bank",
        "uri:spiffe://prod/ns/shop/..%2fbank",
        "uri:spiffe://prod/ns/shop/..\\bank",
        "uri:spiffe://prod/ns/shop/",
    ],
)
def test_san_pattern_rejects_ambiguous_path(san: str) -> None:
    who = CallerSelector(sans=("uri:spiffe://prod/ns/shop/*",))
    assert not who.matches(Caller(listener="net", sans=(san,)))
    assert CallerSelector(sans=(san,)).matches(Caller(listener="net", sans=(san,))), "an exact name is not a pattern"


def test_quota_keys_are_the_uid_user_or_sans_of_a_caller_or_else_its_listener() -> None:
    assert quota_keys(Caller(listener="a", uid=1, gid=1)) == quota_keys(Caller(listener="b", uid=1, gid=2))
    one, more = Caller(listener="a", sans=("dns:a",)), Caller(listener="a", sans=("dns:b", "dns:a", "dns:a"))
    assert set(quota_keys(one)) < set(quota_keys(more)) == {"dns:a", "dns:b"}
    assert quota_keys(Caller(listener="a", uid=1, user="u")) == quota_keys(Caller(listener="a", uid=2, user="u"))
    assert quota_keys(Caller(listener="a")) != quota_keys(Caller(listener="b"))


def test_caller_key_is_short_however_many_names_a_certificate_has() -> None:
    """Found by an attacker: listings kept a thousand names twice each, until the daemon was out of memory."""
    names = tuple(f"dns:{number}.example.com" for number in range(100))
    assert len(caller_key(Caller(listener="net", peer="a", sans=names))) == 64
