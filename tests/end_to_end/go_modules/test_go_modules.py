"""The tests of the Go modules, with the race detector if there is a C compiler, and go vet in a clean clone."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.end_to_end.examples.building import ROOT, go_test, run, tool

CLIENT = "clients/go"
NEEDS_KUBERNETES = (
    "clients/go/multicluster",
    "clients/go/objects",
    "clients/go/objects/natssource",
    "clients/go/objects/tests",
    "examples/go-operator",
)
"""Modules that compile Kubernetes libraries, which takes minutes without a build cache."""

pytestmark = [pytest.mark.builds, pytest.mark.timeout(1200)]  # the first build compiles gRPC, or Kubernetes

BUILT_IN_COPIES = {
    "bench/peer",
    "tests/end_to_end/real/go/milo",
    "tests/end_to_end/real/inventory/library",
    "tests/end_to_end/real/inventory/upstream",
}
"""Modules without a go.sum in the repository, which therefore cannot be vetted in a clean clone. Their tests build a
copy, to which the Milo sources or another file are added, and in which the go command writes go.sum.
"""
WITHOUT_KUBERNETES = {CLIENT, "examples/go"}


def run_tests(module: str) -> None:
    with_nats_server = f"PATH={sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    run(["env", with_nats_server, *go_test(), "./..."], ROOT / module)


@pytest.mark.nightly  # ./dev go runs them before each merge
def test_go_client_tests_pass() -> None:
    run_tests(CLIENT)


@pytest.mark.nightly  # ./dev go runs them too, without the race detector
@pytest.mark.parametrize("module", [module for module in NEEDS_KUBERNETES if (ROOT / module / "go.mod").exists()])
def test_go_module_with_kubernetes_dependencies_passes_its_tests(module: str, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    run_tests(module)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clone")
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, directory], check=True)
    return directory


def modules_with_code() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.go", "*go.mod"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [Path(line) for line in listed.stdout.splitlines()]
    modules = {path.parent for path in files if path.name == "go.mod"}
    # A file belongs to the module of the nearest parent directory with a go.mod.
    owners = {
        next(parent for parent in path.parents if parent in modules)
        for path in files
        if path.suffix == ".go" and not modules.isdisjoint(path.parents)
    }
    return sorted(str(module) for module in owners)


@pytest.mark.nightly
@pytest.mark.parametrize("module", [module for module in modules_with_code() if module not in BUILT_IN_COPIES])
def test_go_module_passes_go_vet_in_a_clean_clone(module: str, clone: Path, pytestconfig: pytest.Config) -> None:
    if module not in WITHOUT_KUBERNETES and not pytestconfig.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    run([tool("go"), "vet", "./..."], clone / module)
