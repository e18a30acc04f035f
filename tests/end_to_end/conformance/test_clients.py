"""The tables of clients have what the conformance kit tests; `./dev conformance` runs the cases."""

import pytest

from milo_conformance.cases import every_case
from milo_conformance.run import CaseOutcome, Profile
from tests.end_to_end.conformance.__main__ import cell
from tests.end_to_end.conformance.clients import CLIENTS, ROOT


@pytest.mark.parametrize("language", CLIENTS)
def test_readme_table_has_the_number_of_cases_that_each_client_claims_to_pass(language: str) -> None:
    client = CLIENTS[language]
    outcomes = [
        CaseOutcome(case, None, "not claimed" if case.needs in client.lacks_features else None, 0.0, ())
        for case in every_case()
        if case.profile in client.profiles
    ]
    cells = " | ".join(cell(client, outcomes, profile) for profile in Profile)
    rows = (ROOT / "conformance/README.md").read_text().splitlines()
    [row] = [row for row in rows if row.startswith(f"| [{language.capitalize()}]") and row.count("|") == 8]
    assert row.partition(" | ")[2] == f"{cells} |"


@pytest.mark.parametrize("language", CLIENTS)
def test_guide_says_which_profiles_each_client_claims(language: str) -> None:
    client = CLIENTS[language]
    claimed = "all profiles but some cases" if client.lacks_features else "all profiles"
    if client.lacks_profiles:
        claimed = ", ".join(f"`{profile.value}`" for profile in client.profiles)
    rows = (ROOT / "docs/operators.md").read_text().splitlines()
    [row] = [row for row in rows if row.startswith(f"| {language.capitalize()} |")]
    assert row.endswith(f" | {claimed} |")
