"""Modules can be imported with the declared dependencies of their distribution, or the error names the extra."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tooling.deploy.manifests import ROOT

SOURCES = {
    "milo-discoveryd": (ROOT, ROOT),
    "milo-discovery-client": (ROOT / "clients" / "python", ROOT / "clients" / "python" / "src"),
    "milo-discovery-cli": (ROOT / "clients" / "cli", ROOT / "clients" / "cli" / "src"),
    "milo-objects": (ROOT / "objects", ROOT / "objects" / "src"),
    "milo-controllers": (ROOT / "controllers", ROOT / "controllers" / "src"),
    "milo-publishing": (ROOT / "publishing", ROOT / "publishing" / "src"),
    "milo-kube": (ROOT / "kube", ROOT / "kube" / "src"),
    "milo-sandbox": (ROOT / "sandbox", ROOT / "sandbox" / "src"),
}
pytestmark = [pytest.mark.builds, pytest.mark.timeout(600)]

PACKAGES = {
    "milo-discoveryd": "milo_discoveryd",
    "milo-discovery-client": "milo_discovery",
    "milo-discovery-cli": "milo_discovery_cli",
    "milo-objects": "milo_objects",
    "milo-controllers": "milo_controllers",
    "milo-publishing": "milo_publishing",
    "milo-kube": "milo_kube",
    "milo-sandbox": "milo_sandbox",
}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "bare"
LOADED_BY = {
    "milo_controllers.webhook_command": "milo-discovery-cli, through an entry point",
    "milo_discovery.pytest_plugin": "pytest",
    "milo_discoveryd.server.calls.tracing": "the server, after telemetry/traces.py, which names the extra",
}
IMPORT = """
import importlib, json, pkgutil, sys
package, errors = importlib.import_module(sys.argv[1]), {}
names = [each.name for each in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=lambda _: None)]
for name in names:
    if name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except ImportError as error:
        errors[name] = str(error)
print(json.dumps([len(names), errors]))
"""


def declared(distribution: str, found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the dependencies of a distribution, and of the distributions of this repository that it depends on."""
    project = tomllib.loads((SOURCES[distribution][0] / "pyproject.toml").read_text())["project"]
    found[distribution] = set(project["dependencies"])
    for requirement in project["dependencies"]:
        name = re.split(r"[^\w-]", requirement)[0]
        if name in SOURCES and name not in found:
            declared(name, found)
    return found


def python_with(requirements: list[str]) -> Path:
    """Return the Python of an environment with these packages, in the locked versions; kept in the user's cache."""
    locked = re.findall(r"(?m)^([\w.-]+==[^\s;\\]+)", (ROOT / "requirements" / "dev.txt").read_text())
    key = hashlib.sha256("\n".join((sys.version, *requirements, *locked)).encode()).hexdigest()[:16]
    environment, done = CACHE / key, CACHE / key / "complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(environment, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
            constraints = environment / "constraints.txt"
            constraints.write_text("\n".join(locked))
            install = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
            subprocess.run([*install, "--constraint", constraints, *requirements], check=True)
            done.touch()
    return environment / "bin" / "python"


def imported(python: Path, distribution: str, sources: list[Path]) -> tuple[int, dict[str, str]]:
    """Return the number of modules, and the errors of those that cannot be imported."""
    done = subprocess.run(
        [python, "-c", IMPORT, PACKAGES[distribution]],
        cwd="/", env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, sources))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, errors = json.loads(done.stdout)
    return count, errors


@pytest.mark.parametrize("distribution", SOURCES)
def test_modules_can_be_imported_with_declared_dependencies_or_name_the_missing_extra(distribution: str) -> None:
    needed = declared(distribution, {})
    foreign = {
        requirement
        for every in needed.values()
        for requirement in every
        if re.split(r"[^\w-]", requirement)[0] not in SOURCES
    }
    python = python_with(sorted(foreign))
    count, errors = imported(python, distribution, [SOURCES[name][1] for name in needed])
    assert count > 5
    unexplained = {
        name: error
        for name, error in errors.items()
        # A private module is imported by a public one, which names the extra.
        if "pip install" not in error and "._" not in name and name not in LOADED_BY
    }
    assert unexplained == {}


@pytest.mark.parametrize("distribution", SOURCES)
def test_modules_are_imported_with_all_extras(distribution: str) -> None:
    _, errors = imported(Path(sys.executable), distribution, [source for _, source in SOURCES.values()])
    assert errors == {}
