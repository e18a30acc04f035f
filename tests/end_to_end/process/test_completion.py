"""Completion of cluster names by `milo-discovery`, in real shells."""

import asyncio
import os
import pty
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.end_to_end.process.conftest import Workspace, directory, workspace
from tests.support.debian import unpacked
from tests.support.eventually import LIMIT_S

__all__ = ["directory", "workspace"]

PROMPT = "ready> "


def shells(home: Path, shell: str) -> tuple[list[str], dict[str, str]]:
    """Return the command of a shell that has read the completion script, and its variables."""
    load = f"milo-discovery completion {shell}"
    if shell == "bash":
        (home / "rc").write_text(f"PS1='{PROMPT}'\nsource <({load})\n")
        return ["bash", "--rcfile", str(home / "rc"), "-i"], {}
    if shell == "zsh":
        # In an unpacked package, modules and functions are not at the compiled-in paths.
        if (program := shutil.which("zsh")) is None:
            root = unpacked("zsh", "zsh-common")
            program = str(root / "bin" / "zsh")
            [modules] = root.glob("usr/lib/*/zsh/*")
            places = f"module_path=({modules})\nfpath=({root}/usr/share/zsh/functions/**/*(/N))\n"
            (home / ".zshenv").write_text(places)
        (home / ".zshrc").write_text(f"PS1='{PROMPT}'\nautoload -U compinit; compinit -u -D\nsource <({load})\n")
        return [program, "-i"], {"ZDOTDIR": str(home)}
    # Without this directory, fish generates completions from all manual pages, in a process that outlives it.
    (home / "fish" / "generated_completions").mkdir(parents=True)
    prompt = f"function fish_prompt; echo -n '{PROMPT}'; end"
    (home / "fish" / "config.fish").write_text(f"{prompt}\nset fish_greeting\n{load} | source\n")
    variables = {"XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home)}
    if (program := shutil.which("fish")) is None:
        root = unpacked("fish", "fish-common", "libpcre2-32-0")
        program = str(root / "usr" / "bin" / "fish")
        if not (root / "usr" / "etc").exists():
            (root / "usr" / "etc").symlink_to("../etc")  # fish finds its files relative to its program
        [library] = root.glob("usr/lib/*/libpcre2-32.so.0")
        variables["LD_LIBRARY_PATH"] = str(library.parent)
    return [program, "-i"], variables


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, controller: int) -> None:
        self._controller = controller
        self.shown = ""

    def type(self, keys: str) -> None:
        self.shown = ""
        os.write(self._controller, keys.encode())

    async def wait_for(self, words: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while words not in self.shown:
                self.shown += (await asyncio.to_thread(os.read, self._controller, 4096)).decode(errors="replace")


@pytest.fixture(params=["bash", "zsh", "fish"])
async def terminal(request: pytest.FixtureRequest, workspace: Workspace, tmp_path: Path) -> AsyncIterator[Terminal]:
    if (session := shutil.which("setsid")) is None:
        pytest.skip("there is no setsid on PATH")
    command, variables = await asyncio.to_thread(shells, tmp_path, request.param)
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "xterm",
        "MILO_DISCOVERY_ADDRESS": workspace.address,
        **variables,
    }
    controller, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        session, "--ctty", *command, stdin=slave, stdout=slave, stderr=slave, env=environ, cwd=tmp_path
    )
    os.close(slave)
    try:
        yield Terminal(controller)
    finally:
        process.kill()
        await process.wait()
        os.close(controller)


async def test_tab_completes_commands_and_cluster_names(workspace: Workspace, terminal: Terminal) -> None:
    for name in ("alpha", "beta"):
        workspace.sandbox.projects.create(name, ready=True)
    async with workspace.daemon() as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        await terminal.wait_for(PROMPT)
        terminal.type("milo-discovery exp\tal\t\n")
        await terminal.wait_for("alpha is engaged")
