"""A process that uses gRPC must not fork: the daemon never forks, and only one module starts commands."""

import ast
import subprocess
import sys
from collections.abc import Iterator

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


def test_daemon_without_certificates_does_not_import_cryptography() -> None:
    """Importing cryptography takes 8 MB of memory."""
    script = "import sys, milo_discoveryd.app, milo_discoveryd.cli; sys.exit('cryptography' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
