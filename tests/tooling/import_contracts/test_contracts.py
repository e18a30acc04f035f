"""The import contracts cover every package, and fail on an import that they forbid."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

from milo_discoveryd.sources.kind import KINDS
from tests.tooling.import_contracts.contracts import CONFIG, PACKAGES, ROOT, contracts, modules

FORBIDDEN = {
    "layers": ("milo_discoveryd/sources/reading.py", "import milo_discoveryd.log.events"),
    "pure": ("milo_discoveryd/log/change_log.py", "from asyncio import Event as Bell"),
    "settings": ("milo_discoveryd/watchers/probing.py", "import milo_discoveryd.config"),
    "kinds": ("milo_discoveryd/sources/single.py", "import milo_discoveryd.sources.project"),
    "kubernetes": ("milo_discoveryd/watchers/driver.py", "import kubernetes"),
    "http": ("milo_discoveryd/watchers/probing.py", "import httptools"),
    "http2": ("milo_kube/http/client.py", "import milo_kube.http.http2"),
    "grpc": ("milo_discoveryd/telemetry/http.py", "import grpc.aio"),
    "click": ("milo_discovery/options.py", "import click"),
    "command-line": ("milo_discoveryd/check/finding.py", "import milo_discovery_cli.text_output"),
    "sandbox": ("milo_sandbox/names.py", "import milo_discoveryd.model.cluster"),
    "sandbox-layers": ("milo_sandbox/resources.py", "import milo_sandbox.api"),
    "conformance": ("milo_conformance/failure.py", "import milo_discovery.model"),
    "sandbox-store": ("milo_sandbox/history.py", "import time"),
    "production": ("milo_discoveryd/check/finding.py", "import milo_sandbox.names"),
    "distributions": ("milo_discovery/model.py", "import milo_controllers.kinds"),
    "private": ("milo_publishing/errors.py", "import milo_discovery._session"),
    "objects-layers": ("milo_objects/projection.py", "import milo_objects.kinds"),
    "controllers-layers": ("milo_controllers/kinds.py", "import milo_controllers.request"),
    "shared-layers": ("milo_kube/retry_after.py", "import milo_kube.reflect.backoff"),
    "client-layers": ("milo_discovery/watch.py", "import milo_discovery.fleet"),
}
"""For each contract, a file and an import that breaks the contract there."""
START_UP = {"__init__", "__main__", "app", "check", "cli", "config", "wiring"}
"""The parts of the daemon that may read settings."""


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """Return the report of lint-imports on the packages in a directory."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", CONFIG, "--no-cache"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (directory, ROOT))), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def copied(directory: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(package, directory / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory


def unwrapped(report: str) -> str:
    return " ".join(report.split())


def test_each_import_contract_fails_on_a_forbidden_import(tmp_path: Path) -> None:
    directory = copied(tmp_path)
    for module, line in FORBIDDEN.values():
        path = directory / module
        path.write_text(f"{path.read_text()}\n{line}\n")
    report = unwrapped(lint(directory).stdout)
    assert FORBIDDEN.keys() == contracts().keys()
    for name in contracts().values():
        assert f"{name} BROKEN" in report


def test_layers_contract_fails_on_a_package_without_a_layer(tmp_path: Path) -> None:
    directory = copied(tmp_path)
    (directory / "milo_discoveryd" / "unlisted").mkdir()
    (directory / "milo_discoveryd" / "unlisted" / "__init__.py").touch()
    report = unwrapped(lint(directory).stdout)
    assert "- milo_discoveryd.unlisted" in report


def test_settings_import_contract_covers_every_module_that_does_not_start_the_daemon() -> None:
    parts = {path.stem for path in PACKAGES[0].iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {module.partition(".")[2] for module in modules("settings")} == parts - START_UP


def test_kinds_import_contract_covers_every_kind() -> None:
    assert {*modules("kinds", "modules")} == {place.partition(":")[0] for place in KINDS.built_in.values()}


def test_validator_of_the_matrix_shares_no_code_with_what_it_validates() -> None:
    module = ast.parse((ROOT / "tests" / "end_to_end" / "matrix" / "validator.py").read_text())
    imported = {alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(module) if isinstance(node, ast.ImportFrom)}
    assert imported
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
