"""Tests of validator V9: a valid record of issued credentials passes, and each kind of violation is found."""

from dataclasses import replace
from typing import Any

import pytest

from tests.end_to_end.process.issued_credentials import CAP_S, IssuedCredential, Token, credential_violations, mark

TOKEN = Token("token-1", mark("uid-a"), ends_at=700.0)
WELL = IssuedCredential(
    at=100.0,
    who="operator",
    cluster="a",
    uid="uid-a",
    incarnation="e.1",
    engaged=("uid-a", "e.1"),
    token=TOKEN,
    was_revoked=False,
    ends_at=700.0,
)


@pytest.mark.parametrize("fields", [{}, {"uid": "", "incarnation": ""}, {"uid": ""}])
def test_credential_validator_accepts_a_valid_history_of_issued_credentials(fields: dict[str, Any]) -> None:
    assert [*credential_violations([replace(WELL, **fields)])] == []


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        pytest.param({"engaged": None}, "was issued while the cluster was not engaged", id="after-a-disengagement"),
        pytest.param({"engaged": ("uid-a", "e.2")}, "for incarnation e.1, while e.2 was engaged", id="incarnation"),
        pytest.param({"token": replace(TOKEN, of=mark("uid-b"))}, "belongs to another project", id="another-projects"),
        pytest.param({"at": 700.0}, "had expired 0.0 s before it was issued", id="expired"),
        pytest.param({"was_revoked": True}, "had been revoked", id="revoked"),
        pytest.param({"ends_at": 701.0}, "was reported to expire 1.0 s later than it does", id="later-expiry"),
        pytest.param(
            {"ends_at": 101.0 + CAP_S, "token": replace(TOKEN, ends_at=2000.0)},
            "was issued for 901 s; at most 900 s are allowed",
            id="longer-than-is-allowed",
        ),
    ],
)
def test_credential_validator_detects_an_invalid_history_of_issued_credentials(
    wrong: dict[str, Any], found: str
) -> None:
    (breach,) = credential_violations([replace(WELL, **wrong)])
    assert breach.endswith(found)
    assert breach.startswith("token-1 for a, to operator, ")
