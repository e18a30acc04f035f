"""Parsing of JWT claims."""

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.credentials import jwt
from tests.unit.credentials.tokens import jwt as made

DEEP = urlsafe_b64encode(b'{"x":' + b"[" * 20_000).decode().rstrip("=") + ".e30.c"


def test_jwt_claims_are_read() -> None:
    found = jwt.claims(made(exp=200, nbf=100, iat=100.5, sub="somebody", aud=["milo", "other"]))
    assert found == jwt.JwtClaims(exp=200, nbf=100, iat=100.5, sub="somebody", aud=["milo", "other"])
    assert found.audiences == {"milo", "other"}


def test_jwt_audience_may_be_a_string_or_missing() -> None:
    one, none = jwt.claims(made(aud="milo")), jwt.claims(made())
    assert one is not None
    assert none is not None
    assert (one.audiences, none.audiences) == ({"milo"}, frozenset())


@pytest.mark.parametrize("sub", ["???", "a???", "aa???", "~~~", "a~~~", "aa~~~"])
def test_jwt_claims_are_decoded_from_url_safe_base64(sub: str) -> None:
    assert jwt.claims(made(sub=sub)) == jwt.JwtClaims(sub=sub)


def test_token_that_is_too_long_or_without_exactly_three_parts_has_no_claims() -> None:
    longest = made(sub="a")
    longest += "x" * (jwt.MAX_LENGTH - len(longest))
    assert jwt.claims(longest) == jwt.JwtClaims(sub="a")
    assert jwt.claims(longest + "x") is None
    assert jwt.claims(longest.rpartition(".")[0]) is None
    assert jwt.claims(f"{made()}.x") is None


@pytest.mark.parametrize("token", ["", "opaque", "a.b", "a.b.c", "e30.e30.c", "....", "a" * 40_000 + ".b.c", DEEP])
def test_opaque_token_has_no_claims(token: str) -> None:
    assert jwt.claims(token) is None


@pytest.mark.parametrize(
    "claims", [{"exp": "soon"}, {"exp": 10**400}, {"exp": -1e300}, {"sub": 5}, {"aud": {"a": 1}}, {"iat": True}]
)
def test_malformed_jwt_claims_are_rejected_and_not_quoted(claims: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^malformed claims") as raised:
        jwt.claims(made(**claims))
    assert "soon" not in str(raised.value)


@given(st.text())
def test_jwt_parser_raises_only_value_errors_for_any_text(text: str) -> None:
    try:
        found = jwt.claims(text)
    except ValueError:
        return
    assert found is None or isinstance(found, jwt.JwtClaims)
