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


def held_by(
    budget: CredentialBudget, issued: IssuedCredential, before: IssuedCredential | None = None, tenant: str = ""
) -> None:
    budget.count(budget.admit(issued, before, ("", tenant)), before, ("", tenant))


def is_refused(
    budget: CredentialBudget, issued: IssuedCredential, before: IssuedCredential | None = None, tenant: str = ""
) -> bool:
    try:
        held_by(budget, issued, before, tenant)
    except BackendError:
        return True
    return False


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
    exhausted.used = 3 * BUDGET
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


def test_tenant_that_exhausts_the_credential_budget_takes_no_large_credential_of_another_one() -> None:
    budget = CredentialBudget()
    small = [minted(f"token-{number}", 0) for number in range(2 * BUDGET // LARGE)]
    for issued in small:
        held_by(budget, issued, tenant="evil")
    refused = [is_refused(budget, large(number), tenant="evil") for number in range(2 * BUDGET // LARGE)]
    assert BUDGET - 2 * LARGE < budget.used <= BUDGET
    first, second = large(20_000), large(20_001)
    assert any(refused)
    assert not is_refused(budget, first, tenant="acme")
    refused = [is_refused(budget, large(10_000 + at), issued, tenant="evil") for at, issued in enumerate(small)]
    assert any(refused)
    assert 2 * BUDGET - 2 * LARGE < budget.used <= 2 * BUDGET
    assert not is_refused(budget, second, first, tenant="acme")


def test_tenants_together_have_three_times_the_credential_budget_at_most() -> None:
    budget = CredentialBudget()
    refused = [is_refused(budget, large(number), tenant=f"tenant-{number}") for number in range(4 * BUDGET // LARGE)]
    assert any(refused)
    assert budget.used <= 3 * BUDGET


def test_credential_budget_forgets_tenants_without_credentials() -> None:
    budget = CredentialBudget()
    for number in range(1000):
        held_by(budget, large(number), tenant=f"tenant-{number % 500}")
        budget.count(None, large(number), ("", f"tenant-{number % 500}"))
    held_by(budget, large(0, BUDGET - LARGE), tenant="acme")
    assert budget.used == BUDGET - LARGE + len("token-0")
