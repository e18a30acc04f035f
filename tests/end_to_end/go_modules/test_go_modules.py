"""The tests of the Go modules, with the race detector if there is a C compiler."""

from pathlib import Path

import pytest

from tests.end_to_end.examples.building import ROOT, go_test, run

CLIENT = "clients/go"
NEEDS_KUBERNETES = ("clients/go/multicluster", "examples/go-operator")
"""Modules that compile Kubernetes libraries, which takes minutes without a build cache."""

pytestmark = [pytest.mark.builds, pytest.mark.timeout(1200)]  # the first build compiles gRPC, or Kubernetes


MATRIX = sorted((ROOT / "clients/go/multicluster/matrix").glob("*.mod"))
"""The provider's other supported versions of multicluster-runtime and controller-runtime."""


def run_tests(module: str, *flags: str) -> None:
    run([*go_test(), *flags, "./..."], ROOT / module)


def test_go_client_tests_pass() -> None:
    run_tests(CLIENT)


@pytest.mark.parametrize("module", [module for module in NEEDS_KUBERNETES if (ROOT / module / "go.mod").exists()])
def test_go_module_with_kubernetes_dependencies_passes_its_tests(module: str, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    run_tests(module)


@pytest.mark.parametrize("versions", MATRIX, ids=lambda path: path.stem)
def test_go_provider_tests_pass_with_other_dependency_versions(versions: Path, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    run_tests("clients/go/multicluster", f"-modfile={versions}")
