import pytest
from msgspec.structs import replace

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.kubeconfigs.credential_budget import BUDGET, SMALL, CredentialBudget
from milo_kube.credential import ClientCertificate, Credential, Secret
from tests.unit.kubeconfigs.issued import minted

LARGE = 64 << 10


def large(number: int, size: int = LARGE) -> IssuedCredential:
    return replace(minted(f"token-{number}", 0), authorities=f"{number:08}".encode() * (size // 8))


def held_by(budget: CredentialBudget, issued: IssuedCredential, before: IssuedCredential | None = None) -> None:
    budget.count(budget.admit(issued, before), before)


@pytest.fixture
def exhausted() -> CredentialBudget:
    budget = CredentialBudget()
    for number in range(BUDGET // LARGE - 1):
        held_by(budget, large(number))
    return budget


def test_exhausted_credential_budget_refuses_large_credentials_and_accepts_small_ones(
    exhausted: CredentialBudget,
) -> None:
    with pytest.raises(BackendError, match="remove unneeded CA certificates") as refused:
        exhausted.admit(large(10_000), None)
    assert (refused.value.of_cluster, refused.value.reason) == (True, "too_large")
    small = large(10_000, SMALL // 2)
    assert exhausted.admit(small, None) is small
    pair = ClientCertificate(chain=b"C" * LARGE, key=Secret("KEY"))
    with pytest.raises(BackendError):
        exhausted.admit(replace(small, credential=Credential(certificate=pair)), None)


def test_renewals_of_large_credentials_may_take_the_credential_budget_once_more(exhausted: CredentialBudget) -> None:
    renewed = large(10_000)
    assert exhausted.admit(renewed, large(0)) is renewed
    exhausted.used = 2 * BUDGET
    with pytest.raises(BackendError):
        exhausted.admit(renewed, large(0))


def test_credential_budget_counts_what_is_held_now() -> None:
    budget = CredentialBudget()
    issued = replace(large(1), server="https://a", tls_server_name="\N{SNOWMAN}")
    held_by(budget, issued)
    assert budget.used == LARGE + len("token-1") + len("https://a") + 4
    budget.count(issued, issued)
    held_by(budget, minted("token", 0), issued)
    assert budget.used == len("token")
    budget.count(None, minted("token", 0))
    assert budget.used == 0


def test_equal_ca_certificates_are_kept_and_counted_once(exhausted: CredentialBudget) -> None:
    first, used = large(0), exhausted.used
    equal = exhausted.admit(replace(minted("other", 0), authorities=bytes(bytearray(first.authorities or b""))), None)
    exhausted.count(equal, None)
    assert exhausted.used == used + len("other")
    again = exhausted.admit(large(0), first)
    assert again.authorities is equal.authorities
    exhausted.count(None, first)
    assert exhausted.used == used - len("token-0") + len("other")
    exhausted.count(None, equal)
    assert exhausted.used == used - len("token-0") - LARGE
