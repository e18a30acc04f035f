"""The sandbox's bearer tokens."""

from hypothesis import given
from hypothesis import strategies as st

from milo_sandbox.tokens import Tokens


@given(now=st.floats(min_value=1.7e9, max_value=2e9), life=st.integers(min_value=1, max_value=86_400))
def test_token_lifetime_never_exceeds_the_requested_lifetime(now: float, life: int) -> None:
    claims = Tokens(life=1, clock=lambda: now).claims(Tokens(life=1, clock=lambda: now).issue("me", life=life))
    assert now - 0.001 <= claims.iat <= now
    assert now + life - 0.001 <= claims.exp <= now + life
