"""Seeded bugs of credentials and kubeconfigs."""

from tests.tooling.mutants.mutant import Mutant

LEASES = ("tests/unit/kubeconfigs/test_lease.py",)
CREDENTIALS = ("tests/simulation/seeded/test_credentials.py",)
READ_FILES = ("tests/integration/files/test_reading.py",)
PLUGINS = ("tests/unit/credentials/test_kubeconfig.py",)

MUTANTS = (
    Mutant(
        "a credential is sent to loopback without TLS by default",
        "credentials/credential.py",
        "(plain_loopback and addresses",
        "(addresses",
        ("tests/unit/credentials/test_credential.py",),
    ),
    Mutant(
        "expired credential issued",
        "kubeconfigs/lease.py",
        "if held is None or held.left_s(now) <= margin_s(held.issued.life_s):",
        "if held is None:",
        LEASES,
    ),
    Mutant(
        "clock set back prolongs a credential",
        "kubeconfigs/lease.py",
        "return min(self.issued.expires_at - now.wall, self.until - now.steady)",
        "return self.issued.expires_at - now.wall",
        LEASES,
    ),
    Mutant(
        "expired credential issued as valid",
        "kubeconfigs/lease.py",
        "return min(self.issued.expires_at - now.wall, self.until - now.steady)",
        "return self.issued.life_s",
        CREDENTIALS,
    ),
    Mutant(
        "credential of one cluster issued for all",
        "kubeconfigs/minter.py",
        "incarnation=cluster.incarnation, place=cluster.target.place)",
        "incarnation=1, place=())",
        CREDENTIALS,
    ),
    Mutant(
        "credential of a cluster issued for its former endpoint",
        "kubeconfigs/minter.py",
        "incarnation=cluster.incarnation, place=cluster.target.place)",
        "incarnation=cluster.incarnation, place=())",
        ("tests/unit/kubeconfigs/test_issuer.py",),
        is_async=True,
    ),
    Mutant(
        "invalid credential of one cluster fails all",
        "kubeconfigs/issuer.py",
        "return minter.failure if is_shared and isinstance(minter.failure, UnfitError) else None",
        "return minter.failure if isinstance(minter.failure, UnfitError) else None",
        CREDENTIALS,
    ),
    Mutant(
        "credential of an earlier run survives its cluster",
        "kubeconfigs/minter.py",
        "if is_revoked and len(self._revocations) < MAX_REVOCATIONS:",
        "if is_revoked and cluster.incarnation in self._of_cluster and len(self._revocations) < MAX_REVOCATIONS:",
        CREDENTIALS,
    ),
    Mutant(
        "credential issued after disengagement accepted",
        "kubeconfigs/minter.py",
        'result = "dropped" if entry.is_dropped else "ok"',
        'result = "ok"',
        ("tests/unit/kubeconfigs/test_issuer.py",),
        is_async=True,
    ),
    Mutant(
        "credential survives its cluster",
        "kubeconfigs/minter.py",
        "            self._revocations[cluster.incarnation] = cluster\n",
        "",
        ("tests/unit/kubeconfigs/test_issuer.py",),
        is_async=True,
    ),
    Mutant(
        "a credential is sent without TLS",
        "credentials/credential.py",
        "if credential != Credential() and not is_confidential(url, plain_loopback=plain_loopback):",
        "if False:",
        ("tests/unit/credentials/test_credential.py",),
    ),
    Mutant(
        "one organization takes all mints in flight",
        "kubeconfigs/mint_queue.py",
        "if not organization or self._organizations[organization] < self._for_organization",
        "if True",
        ("tests/unit/kubeconfigs/test_mint_queue.py",),
    ),
    Mutant(
        "two daemons with one service account share a Secret",
        "credentials/sources/token_request.py",
        'self._run = _digest(f"{service_account}/{run}")',
        "self._run = _digest(service_account)",
        ("tests/unit/credentials/test_token_request.py",),
        is_async=True,
    ),
    Mutant(
        "any exec plugin is run",
        "credentials/authentication/kubeconfig.py",
        'if spec.command not in self.plugins and "*" not in self.plugins:',
        'if "-" in self.plugins:',
        PLUGINS,
        is_async=True,
    ),
    Mutant(
        "a copy of the kubeconfig is taken for another identity",
        "credentials/authentication/shared_identity.py",
        "return file.path.resolve() == its_file.path.resolve() or _is_same(_secret(first), _secret(second))",
        "return False",
        ("tests/unit/wiring/test_credential_sources.py",),
    ),
    Mutant(
        "a link may lead out of the directory",
        "credentials/kubeconfig_files.py",
        "if self._mode.is_directory and not _opened",
        "if False and not _opened",
        READ_FILES,
    ),
    Mutant(
        "a file of a missing directory counts as deleted",
        "credentials/kubeconfig_files.py",
        "            self._files()  # raises if the whole directory is missing: its objects do not count as deleted\n",
        "",
        READ_FILES,
    ),
)
