"""The command line in processes that are forked from one that has loaded it, which saves most of their start."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_LOADED = ("pytest", "milo_discovery.cli", "milo_discovery.client", "milo_discovery.cli.queries")

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload([*_LOADED, "milo_discovery.cli.json_output", "milo_discovery.cli.kubeconfig", __name__])


async def forked(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run `milo-discovery`; return its exit status, stdout and stderr."""
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:
        files = [Path(directory) / name for name in ("out", "err")]
        process = _forking.Process(target=_run, args=(arguments, dict(environment), *files))
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


def _run(arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    from milo_discovery.cli import main  # noqa: PLC0415 - as the installed command does

    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.argv = [str(Path(sys.executable).with_name("milo-discovery")), *arguments]
    main()
