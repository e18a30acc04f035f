"""Other clients of the same API server, as processes: the alternatives to the daemon in Go and Python."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench.process import Process
from bench.projects import MARK
from bench.scale import Scale

if TYPE_CHECKING:
    from tests.end_to_end.real.builds import GoProgram

_HERE = Path(__file__).parent
INFORMER_BINARY = "MILO_INFORMER"
"""The environment variable with the path of an existing informer binary."""


class Peer(Process):
    """A client that prints `synced COUNT` when it has read all projects."""

    def __init__(self, name: str, command: list[str], directory: Path) -> None:
        super().__init__(command, directory / f"{name}.log")

    async def synced(self) -> int:
        (first, *_) = await self.wait_for_lines(1, within_s=600.0)
        return int(first.split()[1])


@asynccontextmanager
async def kubernetes_aio(kubeconfig: Path, directory: Path) -> AsyncIterator[Peer | None]:
    """Run a list and a watch of the kubernetes package, as its documentation describes."""
    async with _running(_kubernetes_aio(kubeconfig, directory)) as peer:
        yield peer


@asynccontextmanager
async def kubernetes_aio_of_config_maps(kubeconfig: Path, directory: Path, namespace: str) -> AsyncIterator[Peer]:
    async with _running(_kubernetes_aio(kubeconfig, directory, namespace)) as peer:
        yield peer


def _kubernetes_aio(kubeconfig: Path, directory: Path, *arguments: str) -> Peer:
    command = [sys.executable, "-m", "bench.kubernetes_aio", str(kubeconfig), *arguments]
    return Peer("kubernetes-aio", command, directory)


@asynccontextmanager
async def client_go(kubeconfig: Path, directory: Path) -> AsyncIterator[Peer | None]:
    """Run the dynamic informer of client-go; yield None if it cannot be built."""
    binary = informer()
    if binary is None:
        yield None
        return
    command = [str(binary), f"--kubeconfig={kubeconfig}", f"--mark={MARK}"]
    async with _running(Peer("client-go", command, directory)) as peer:
        yield peer


Start = Callable[[Path, Path], AbstractAsyncContextManager[Peer | None]]


def readers(scale: Scale) -> dict[str, Start]:
    """Return how to start each peer, by its name in the keys of figures."""
    return {"kubernetes_aio": kubernetes_aio, **({"client_go": client_go} if scale.with_go else {})}


@cache
def informer() -> Path | None:
    from tests.end_to_end.real.builds import GoProgram  # noqa: PLC0415 - see `_obtained`

    given = os.environ.get(INFORMER_BINARY)
    program = GoProgram(
        name="informer", version="v0.35.4", module="k8s.io/client-go", package=".", definition=_HERE / "informer"
    )
    return Path(given) if given else _obtained(program)


@cache
def operator() -> Path | None:
    """Build the operator on multicluster-runtime and its API server; return None if that is not possible."""
    return _built("operator", ".")


@cache
def reader_over_nats() -> Path | None:
    """Build the program that reads objects from NATS; return None if that is not possible."""
    return _built("overnats", "./overnats")


def _built(name: str, package: str) -> Path | None:
    # Built in place, since they consist of modules of this repository.
    go = shutil.which("go")
    if go is None:
        sys.stderr.write("bench: bench/operator does not run: there is no go command on PATH\n")
        return None
    from tests.end_to_end.real.builds import cache_directory  # noqa: PLC0415 - see `_obtained`

    binary = cache_directory() / "bench-operator" / name
    binary.parent.mkdir(parents=True, exist_ok=True)
    built = subprocess.run([go, "build", "-o", binary, package], cwd=_HERE / "operator", check=False)
    return None if built.returncode else binary


def _obtained(program: "GoProgram") -> Path | None:
    # Imported only here, since these modules build programs in Go.
    from tests.end_to_end.real.builds import GoMissingError, UnobtainableError, obtain, say_to_stderr  # noqa: PLC0415

    try:
        return obtain(program, say_to_stderr)
    except (GoMissingError, UnobtainableError) as error:
        say_to_stderr(f"{program.title} does not run: {error}")
        return None


@asynccontextmanager
async def _running(peer: Peer) -> AsyncIterator[Peer]:
    try:
        yield peer
    finally:
        await peer.end()
