"""Commands in processes that are forked from one that has loaded them, which saves most of their start."""

import asyncio
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

_MODULES = {"milo-discovery": "milo_discovery.cli", "milo-discoveryd": "milo_discoveryd.cli"}

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(
    ["pytest", "milo_discovery.client", "milo_discovery.cli.queries", "milo_discovery.cli.json_output",
     "milo_discovery.cli.kubeconfig", "milo_discoveryd.app", "milo_discoveryd.check", __name__]
)  # fmt: skip


async def forked(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path | None = None
) -> tuple[int, str, str]:
    """Run a command; return its exit status, stdout and stderr."""
    with tempfile.TemporaryDirectory(prefix="milo-") as name:
        files = [Path(name) / "out", Path(name) / "err"]
        process = _forking.Process(target=_run, args=(program, arguments, dict(environment), directory, *files))
        with patch.dict(os.environ, GRPC_VERBOSITY="NONE"):  # gRPC, which is loaded before the command runs, reads it
            process.start()
        try:
            await asyncio.to_thread(process.join)
            assert process.exitcode is not None
            out, err = (file.read_bytes().decode() for file in files)
            return process.exitcode, out, err
        finally:
            process.kill()
            process.join()
            process.close()


def _run(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path | None, out: Path, err: Path
) -> None:
    if directory is not None:
        os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.argv = [str(Path(sys.executable).with_name(program)), *arguments]
    import_module(_MODULES[program]).main()
