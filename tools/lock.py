"""Resolves the dependencies of each environment into requirements/, with versions and hashes."""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / "requirements"

CLIENTS = ("clients/cli/pyproject.toml", "clients/python/pyproject.toml")
DAEMON = ("pyproject.toml", *CLIENTS, "kube/pyproject.toml", "--extra", "traces")
SANDBOX = ("sandbox/pyproject.toml", *DAEMON)
OPERATORS = ("objects/pyproject.toml", "controllers/pyproject.toml", "publishing/pyproject.toml")
DEV = ("conformance/pyproject.toml", *OPERATORS, *SANDBOX)
LOCKS: dict[str, tuple[str, ...]] = {
    "daemon": (*DAEMON, "objects/pyproject.toml", "--extra", "nats"),
    "sandbox": SANDBOX,
    "demo": (*OPERATORS, *SANDBOX, "--extra", "nats"),
    "dev": (*DEV, "--extra", "kubernetes", "--extra", "kopf", "--extra", "nats", "--group", "dev"),
    "mutants": (*OPERATORS, *SANDBOX, "--extra", "kubernetes", "--group", "mutants"),
    "fuzz": (*SANDBOX, "--group", "fuzz"),
    **{group: ("--group", group) for group in ("build", "codegen", "lock", "manifests", "release", "site")},
}
"""The inputs of each lock file: dependencies of packages, with extras, and dependency groups of pyproject.toml."""

OURS = (
    "milo-discoveryd", "milo-discovery-client", "milo-discovery-cli", "milo-objects", "milo-controllers",
    "milo-publishing", "milo-kube", "milo-sandbox",
)  # fmt: skip
OPTIONS = (
    *("--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"),
    *("--no-header", "--no-annotate", "--no-emit-index-url"),
    *(option for package in OURS for option in ("--no-emit-package", package)),
)


def pip_environment() -> dict[str, str]:
    """Return the environment of uv with the index and the CA of pip's configuration, which uv does not read."""
    found = dict(os.environ)
    for variable, setting in (("UV_DEFAULT_INDEX", "index-url"), ("SSL_CERT_FILE", "cert")):
        for section in ("global", "install", ":env:"):
            asked = subprocess.run(
                [sys.executable, "-m", "pip", "config", "get", f"{section}.{setting}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if asked.returncode == 0:
                found.setdefault(variable, asked.stdout.strip())
    return found


def resolve(uv: str, directory: Path) -> None:
    """Write every file. Versions in existing files are kept while they satisfy the inputs."""
    environment = pip_environment()
    for name, inputs in LOCKS.items():
        subprocess.run(
            [uv, "pip", "compile", *inputs, *OPTIONS, "--output-file", directory / f"{name}.txt"],
            cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip


def stale(uv: str) -> Iterator[str]:
    with TemporaryDirectory() as name:
        directory = Path(shutil.copytree(DIRECTORY, name, dirs_exist_ok=True))
        resolve(uv, directory)
        for lock in LOCKS:
            file = f"{lock}.txt"
            if not (DIRECTORY / file).exists() or not filecmp.cmp(DIRECTORY / file, directory / file, shallow=False):
                yield file


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev lock", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report whether the files are up to date")
    parser.add_argument("--upgrade", action="store_true", help="resolve the newest versions")
    given = parser.parse_args()
    uv = str(ROOT / ".venv-lock" / "bin" / "uv")
    if given.check:
        if names := list(stale(uv)):
            sys.exit(f"requirements/ is out of date: {', '.join(names)}; run ./dev lock")
        return
    if given.upgrade:
        for name in LOCKS:
            (DIRECTORY / f"{name}.txt").unlink(missing_ok=True)
    resolve(uv, DIRECTORY)


if __name__ == "__main__":
    main()
