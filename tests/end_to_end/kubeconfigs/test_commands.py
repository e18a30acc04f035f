"""The commands with the real daemon: speed, concurrency, and secrets in output."""

import asyncio
import json
import resource
import sys
from pathlib import Path
from statistics import median

from tests.end_to_end.kubeconfigs.conftest import Start, token_in
from tests.end_to_end.kubeconfigs.workspace import COMMANDS, Workspace
from tests.support.eventually import eventually

AT_ONCE = 20


async def test_credential_command_takes_less_than_twice_the_cpu_time_of_importing_grpc(start: Start) -> None:
    """Compares CPU time within each of many rounds, since other tests use the CPUs as well."""
    async with start() as workspace:
        ratios = []
        for _ in range(11):
            before = of_children()
            await workspace.discovery("credential", "--cluster", "alpha")
            between = of_children()
            await workspace.run(sys.executable, "-c", "import grpc")
            ratios.append((between - before) / (of_children() - between))
    assert median(ratios) < 2


def of_children() -> float:
    """Return the CPU time of child processes that have exited, so not that of the daemon."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def test_concurrent_credential_commands_return_the_same_token(start: Start) -> None:
    async with start() as workspace:
        asked = (workspace.discovery("credential", "--cluster", "alpha") for _ in range(AT_ONCE))
        outcomes = await asyncio.gather(*asked)
    assert {outcome.err for outcome in outcomes} == {""}
    assert len({json.loads(outcome.out)["status"]["token"] for outcome in outcomes}) == 1


async def test_synced_kubeconfig_files_are_renewed_and_removed_with_their_clusters(start: Start) -> None:
    async with start(token_life=8) as workspace:
        workspace.sandbox.projects.create("beta", ready=True)
        path = workspace.directory / "clusters"
        async with workspace.running(str(COMMANDS / "milo-discovery"), "sync", "--dir", str(path)):
            alpha, beta = path / "alpha.kubeconfig", path / "beta.kubeconfig"
            await eventually(lambda: alpha.exists() and beta.exists())
            tokens: set[str] = set()

            def renewed_twice() -> bool:
                token = token_in(alpha.read_text())
                workspace.sandbox.tokens.subject(token)  # raises if the token has expired
                tokens.add(token)
                return len(tokens) > 2

            await eventually(renewed_twice)
            workspace.sandbox.projects.delete("beta")
            await eventually(lambda: not beta.exists())
            assert alpha.exists()


async def test_cli_prints_tokens_only_on_request(start: Start) -> None:
    async with start() as workspace:
        path = workspace.directory / "clusters"
        outputs: list[str] = []
        token = json.loads((await workspace.discovery("credential", "--cluster", "alpha")).out)["status"]["token"]
        for arguments in (
            ("kubeconfig", "alpha"),
            ("kubeconfig", "alpha", "-w", str(workspace.directory / "exec")),
            ("kubeconfig", "alpha", "--token", "-w", str(workspace.directory / "token")),
            ("kubeconfig", "alpha", "--merge", "-w", str(workspace.directory / "merged")),
            ("sync", "--dir", str(path), "--once"),
            ("list", "-o", "json"),
            ("explain", "alpha", "-o", "yaml"),
            ("get", "namespaces", "-o", "yaml"),
            ("explain", "alpha"),
            ("status",),
            ("watch", "--once", "-o", "json"),
        ):
            outcome = await workspace.discovery(*arguments)
            outputs += [outcome.out, outcome.err]
        outputs += [(await workspace.discovery("credential", "--cluster", "alpha")).err, workspace.daemon.output]
        outputs += [(path / "index.json").read_text(), (path / ".milo-discovery.json").read_text()]
        outputs += [(workspace.directory / name).read_text() for name in ("exec", "merged")]
        async with workspace.running(str(COMMANDS / "milo-discovery"), "sync", "--dir", str(path)) as process:
            await eventually((path / "alpha.kubeconfig").exists)
            outputs += _of(workspace, process.pid)
    assert [words for words in outputs if token in words] == []


def _of(workspace: Workspace, pid: int) -> list[str]:
    """Return the command lines and environments of the process and of the daemon."""
    return [
        Path(f"/proc/{process}/{what}").read_bytes().decode(errors="replace")
        for process in (pid, workspace.daemon.pid)
        for what in ("cmdline", "environ")
    ]
