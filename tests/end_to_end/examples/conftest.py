"""Fixtures: a sandbox in the test's process, and the real daemon."""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from milo_sandbox import Sandbox
from tests.end_to_end.examples.building import BUILDERS, NEEDS_KUBERNETES, Command
from tests.end_to_end.examples.program import Program
from tests.end_to_end.process.daemon import DaemonProcess


@pytest.fixture(
    scope="session",
    params=[
        builder if builder.startswith("python") else pytest.param(builder, marks=pytest.mark.builds)
        for builder in BUILDERS
    ],
)
def command(request: pytest.FixtureRequest) -> Command:
    """The command that runs the subscriber, in each language."""
    if request.param in NEEDS_KUBERNETES and not request.config.getoption("--real"):
        pytest.skip("compiling Kubernetes libraries takes minutes: run with --real")
    return BUILDERS[request.param]()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A temporary directory with a short path, since a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="milo-") as name:
        yield Path(name)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=1) as sandbox:
        yield sandbox


@pytest.fixture
async def kubeconfig(sandbox: Sandbox, directory: Path) -> Path:
    return sandbox.write_kubeconfig(directory / "kubeconfig")


@pytest.fixture
def socket(directory: Path) -> Path:
    return directory / "d.sock"


@pytest.fixture
async def daemon(kubeconfig: Path, socket: Path) -> AsyncIterator[DaemonProcess]:
    async with _daemon(kubeconfig, socket) as daemon:
        await daemon.start()
        yield daemon


@pytest.fixture
async def draining_daemon(kubeconfig: Path, socket: Path) -> AsyncIterator[DaemonProcess]:
    """A daemon that waits for releases longer than any test."""
    async with _daemon(kubeconfig, socket, MILO_DISCOVERYD_DRAIN_TIMEOUT="1h") as daemon:
        await daemon.start()
        yield daemon


@pytest.fixture
async def sharded_daemon(sandbox: Sandbox, kubeconfig: Path, socket: Path) -> AsyncIterator[DaemonProcess]:
    """The only member of a shard group, whose Leases are in a project that it does not engage."""
    sandbox.projects.create("leases")
    leases = kubeconfig.with_name("leases")
    leases.touch(mode=0o600)
    leases.write_text(kubeconfig.read_text().replace(sandbox.url, sandbox.control_plane_url("leases")))
    sharding = {"GROUP": "tests", "MEMBER": "only", "NAMESPACE": "default", "KUBECONFIG": str(leases)}
    environ = {f"MILO_DISCOVERYD_SHARDING__{name}": value for name, value in sharding.items()}
    async with _daemon(kubeconfig, socket, **environ) as daemon:
        await daemon.start()
        yield daemon


def _daemon(kubeconfig: Path, socket: Path, **environ: str) -> DaemonProcess:
    address = f"unix://{socket}"
    arguments = ("--discovery-kubeconfig", str(kubeconfig), "--listen", address, "--http-listen", "off")
    # Results of probes are updates too, at unpredictable times.
    environ |= {"MILO_DISCOVERYD_CONNECTIVITY__INTERVAL": "off"}
    return DaemonProcess(address, *arguments, environ=environ, is_forked=True)


@pytest.fixture
def subscriber(command: Command, socket: Path) -> Callable[..., Program]:
    def make(address: str = f"unix://{socket}", **environ: str) -> Program:
        return Program(command, {"MILO_DISCOVERY_ADDRESS": address, **environ})

    return make
