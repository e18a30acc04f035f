"""A process that uses gRPC must not fork: the daemon never forks, and only one module starts commands."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.tooling.import_contracts.contracts import ROOT

STARTERS = {"kube/src/milo_kube/external_command.py"}
FORKS = {"fork", "forkpty", "daemon"}
COPIES = {"multiprocessing", "concurrent.futures.process", "pty"}
STARTS = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "posix_spawn", "system", "popen"}


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
                yield name
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(name)):
                yield name


def test_daemon_does_not_fork_and_only_one_module_starts_processes() -> None:
    found: dict[str, set[str]] = {}
    for path in (*(ROOT / "milo_discoveryd").rglob("*.py"), *(ROOT / "kube" / "src").rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        found[module] = set(calls(ast.parse(path.read_text())))
    assert {module for module, names in found.items() if names & (FORKS | COPIES)} == set()
    assert {module for module, names in found.items() if names & STARTS} == STARTERS


_SIDECAR = """
import asyncio, sys
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load

async def serve(kubeconfig, socket):
    given = {"mode": "single", "project_kubeconfig": kubeconfig, "listen": (f"unix://{socket}",), "http_listen": "off"}
    daemon = Daemon(load(given, {}, None))
    serving = asyncio.create_task(daemon.serve())
    await asyncio.wait([serving, asyncio.create_task(daemon.started.wait())], return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    await asyncio.wait([serving])

asyncio.run(serve(*sys.argv[1:]))
print(*sys.modules)
"""


def test_daemon_on_a_unix_socket_imports_nothing_that_only_other_listeners_need(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], "
        "users: [{name: u, user: {token: t}}], clusters: [{name: c, cluster: {server: 'https://one.example.com'}}]}"
    )
    command = [sys.executable, "-c", _SIDECAR, kubeconfig, tmp_path / "run" / "discovery.sock"]
    (tmp_path / "run").mkdir(mode=0o700)
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split())
    assert "milo_discoveryd.server.connections.acceptor" in loaded
    only_for_others = {
        "milo_discoveryd.identity.certificate_names",
        "milo_discoveryd.identity.token_review",
        "milo_discoveryd.identity.token_review_cache",
        "milo_discoveryd.server.connections.bearer_authentication",
        "milo_discoveryd.server.connections.tls_certificates",
    }
    assert loaded & only_for_others == set()


def test_daemon_without_certificates_does_not_import_cryptography() -> None:
    """Importing cryptography takes 8 MB of memory."""
    script = "import sys, milo_discoveryd.app, milo_discoveryd.cli; sys.exit('cryptography' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
