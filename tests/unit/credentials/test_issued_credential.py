"""Validation of credentials before they are issued."""

import copy
import json
import math
import pickle
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.credentials.issued_credential import (
    LONGEST_S,
    SKEW_S,
    UNSTATED_LIFE_S,
    IssuedCredential,
    validate,
)
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_kube.credential import ClientCertificate, Credential, CredentialError, Secret
from tests.support.giant_keys import GiantPair
from tests.unit.credentials.tokens import CANARY, certificate, jwt, with_version

NOW = 1_800_000_000.0


def token(text: str) -> Credential:
    return Credential(token=Secret(text))


def of(chain: bytes) -> Credential:
    return Credential(certificate=ClientCertificate(chain=chain, key=Secret(CANARY)))


def test_opaque_token_has_the_expiry_that_its_issuer_returned() -> None:
    minted = validate(token("opaque"), NOW, origin="it", expires_at=NOW + 600)
    assert (minted.issued_at, minted.expires_at, minted.life_s) == (NOW, NOW + 600, 600)


def test_jwt_lifetime_counts_from_its_issue_time() -> None:
    minted = validate(token(jwt(iat=NOW - 100, exp=NOW + 500)), NOW, origin="it")
    assert (minted.issued_at, minted.expires_at) == (NOW - 100, NOW + 500)


@pytest.mark.parametrize("iat", [None, 0, -5, NOW + 10])
def test_lifetime_of_a_jwt_without_valid_issue_time_counts_from_receipt(iat: float | None) -> None:
    assert validate(token(jwt(iat=iat, exp=NOW + 500)), NOW, origin="it").issued_at == NOW


def test_issued_credential_expires_at_the_earliest_expiry_of_its_parts() -> None:
    for stated, of_token, of_certificate in ((800, 900, 700), (700, 900, 800), (800, 700, 900)):
        both = Credential(
            token=Secret(jwt(exp=NOW + of_token)),
            certificate=ClientCertificate(chain=certificate(NOW - 10, NOW + of_certificate), key=Secret("k")),
        )
        assert validate(both, NOW, origin="it", expires_at=NOW + stated).expires_at == NOW + 700
        assert not validate(both, NOW, origin="it", expires_at=NOW + stated).is_endless


def test_credential_without_expiry_never_expires_and_is_reread_within_an_hour() -> None:
    endless = validate(token("opaque"), NOW, origin="it", longest_s=math.inf)
    assert (endless.is_endless, endless.life_s) == (True, UNSTATED_LIFE_S)


def test_credential_expires_at_not_after_of_its_certificate() -> None:
    assert validate(of(certificate(NOW - 60, NOW + 600)), NOW, origin="it").expires_at == NOW + 600


@pytest.mark.parametrize(
    ("credential", "expires_at", "error", "complaint"),
    [
        (Credential(), NOW + 9, UnfitError, "has no credential"),
        (token("opaque"), None, UnfitError, "without an expiry"),
        (token(jwt(iat=NOW)), None, UnfitError, "without an expiry"),
        (token("opaque"), NOW, BackendError, "an expired credential"),
        (token("opaque"), math.nan, BackendError, "an expired credential"),
        (token(jwt(exp=NOW - 1)), NOW + 600, BackendError, "an expired credential"),
        (token(jwt(exp=NOW + 600, nbf=NOW + SKEW_S + 1)), None, BackendError, "not valid yet"),
        (token(jwt(exp=NOW + 600, iat=NOW + SKEW_S + 1)), None, BackendError, "not valid yet"),
        (of(certificate(NOW + 60, NOW + 600)), None, BackendError, "not valid yet"),
        (
            token(jwt(exp=253_402_300_799)),
            None,
            UnfitError,
            "only credentials valid for up to 24 hours",
        ),
        (token(jwt(exp=NOW + 25 * 3600)), None, UnfitError, "is valid for 25 hours"),
        (token(jwt(exp=(NOW + 600) * 1000)), None, UnfitError, "only credentials valid for up to 24 hours"),
        (token("opaque"), math.inf, UnfitError, "only credentials valid for up to 24 hours"),
        (token(jwt(exp="soon")), None, BackendError, "an invalid JWT"),
        (token("x" * 40_000), NOW + 600, BackendError, "longer than 32768 characters"),
        (token("x" * 32_769), NOW + 600, BackendError, "longer than 32768 characters"),
        (token(jwt(exp=NOW + 2 * 86400)), None, UnfitError, "is valid for 2 days"),
        (token(jwt(exp=NOW + 86400 + 1)), None, UnfitError, "is valid for 24 hours"),
        (of(b"junk"), None, BackendError, "not PEM"),
        (of(with_version(certificate(NOW, NOW + 600), 2)), None, BackendError, "malformed or not PEM"),
    ],
)
def test_unsuitable_issued_credential_is_rejected_without_quoting_it(
    credential: Credential, expires_at: float | None, error: type[CredentialError], complaint: str
) -> None:
    with pytest.raises(error, match=complaint) as raised:
        validate(credential, NOW, origin="it", expires_at=expires_at)
    assert str(raised.value).startswith("it ")
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("spread", [json.dumps, msgspec.json.encode, pickle.dumps, copy.deepcopy])
def test_issued_credential_is_masked_and_cannot_be_copied(spread: Callable[[object], object]) -> None:
    minted = validate(token(CANARY), NOW, origin="it", expires_at=NOW + 600)
    with pytest.raises(TypeError) as raised:
        spread(minted)
    assert CANARY not in f"{raised.value}{minted}{minted!r}"


def test_issued_credential_that_is_valid_for_longer_than_the_limit_is_rejected() -> None:
    with pytest.raises(UnfitError, match="is valid for 11 minutes; only credentials valid for up to 10 minutes"):
        validate(token("opaque"), NOW, origin="it", expires_at=NOW + 660, longest_s=600)
    with pytest.raises(UnfitError, match="is valid for 2 hours; only credentials valid for up to 119 minutes"):
        validate(token("opaque"), NOW, origin="it", expires_at=NOW + 7200, longest_s=7140)
    assert validate(token("opaque"), NOW, origin="it", expires_at=NOW + 600, longest_s=600).life_s == 600
    assert validate(token("x" * 32_768), NOW, origin="it", expires_at=NOW + 600).life_s == 600
    assert validate(of(certificate(NOW, NOW + 9e6)), NOW, origin="it", longest_s=math.inf).life_s == 9e6
    for early in ({"nbf": NOW + SKEW_S}, {"iat": NOW + SKEW_S}):
        assert validate(token(jwt(exp=NOW + 600, **early)), NOW, origin="it").life_s == 600


@pytest.mark.parametrize("exp", [253_402_300_800, (NOW + 600) * 1000, 1e300])
def test_credential_that_expires_after_the_year_9999_is_rejected(exp: float) -> None:
    with pytest.raises(BackendError, match="expires after the year 9999"):
        validate(token(jwt(exp=exp)), NOW, origin="it", longest_s=math.inf)


def test_issued_token_for_unexpected_audience_or_subject_is_rejected() -> None:
    mine = token(jwt(exp=NOW + 600, aud=["milo", "other"], sub="me"))
    assert validate(mine, NOW, origin="it", audiences=["milo"], subject="me").life_s == 600
    with pytest.raises(BackendError, match=r"^it returned a token for an audience other than datum, milo$"):
        validate(token(jwt(exp=NOW + 600, aud="theirs")), NOW, origin="it", audiences=["milo", "datum"])
    with pytest.raises(BackendError, match=r"^it .* whose subject is not me"):
        validate(token(jwt(exp=NOW + 600, sub="you")), NOW, origin="it", subject="me")


def test_fingerprints_of_credentials_differ_and_their_repr_hides_the_token() -> None:
    one, other, third = (
        validate(credential, NOW, origin="it", expires_at=NOW + 600)
        for credential in (token("one"), token("two"), of(certificate(NOW, NOW + 600)))
    )
    prints = {one.fingerprint, other.fingerprint, third.fingerprint}
    assert len(prints) == 3
    assert all(len(fingerprint) == 8 for fingerprint in prints)
    assert "'one'" not in repr(one)


@given(
    st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "sub", "aud"]),
        st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)),
    ),
    st.one_of(st.none(), st.floats()),
)
def test_issued_token_is_either_rejected_or_valid_and_short_lived(
    claims: dict[str, object], expires_at: float | None
) -> None:
    minted: IssuedCredential | None = None
    complaint = ""
    try:
        minted = validate(token(jwt(**claims)), NOW, origin="it", expires_at=expires_at)
    except CredentialError as error:
        complaint = str(error)
    assert CANARY not in complaint
    if minted is None:
        assert complaint
        return
    assert NOW < minted.expires_at <= NOW + LONGEST_S
    assert minted.issued_at <= NOW


def test_client_certificate_with_a_giant_key_or_chain_is_rejected() -> None:
    chain = certificate(NOW, NOW + 600)
    giant = Credential(certificate=ClientCertificate(chain=chain, key=Secret(GiantPair(20_000).key.decode())))
    with pytest.raises(BackendError, match="it returned a client certificate that"):
        validate(giant, NOW, origin="it")
    with pytest.raises(BackendError, match="longer than"):
        validate(of(chain + b"\n" * (1 << 20)), NOW, origin="it")
