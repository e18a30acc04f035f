"""The contracts of who imports whom hold, and would notice if they didn't."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.tooling.import_contracts.rooms import CONFIG, ROOT, contracts

OFFENCES = {
    "layers": ("milo_discoveryd/reflect/backoff.py", "import milo_discoveryd.registry.events"),
    "pure": ("milo_discoveryd/registry/log.py", "from asyncio import Event as Bell"),
    "settings": ("milo_discoveryd/watchers/proxy.py", "import milo_discoveryd.config"),
    "modes": ("milo_discoveryd/modes/single.py", "import milo_discoveryd.modes.project"),
    "kubernetes": ("milo_discoveryd/check/places.py", "import kubernetes"),
    "grpc": ("milo_discoveryd/telemetry/http.py", "import grpc.aio"),
    "sandbox": ("milo_sandbox/names.py", "import milo_discoveryd.model.cluster"),
    "production": ("milo_discoveryd/check/finding.py", "import milo_sandbox.names"),
    "client": ("milo_discovery/model.py", "import milo_discoveryd.model"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """What lint-imports says of the packages in the folder."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", CONFIG, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def copied(folder: Path) -> Path:
    for package in (
        ROOT / "milo_discoveryd",
        ROOT / "clients/python/src/milo_discovery",
        ROOT / "sandbox/src/milo_sandbox",
    ):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_every_contract_is_kept(tmp_path: Path) -> None:
    said = lint(copied(tmp_path))
    assert said.returncode == 0, said.stdout
    assert "0 broken" in said.stdout


def test_every_contract_notices_an_import_that_breaks_it(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    for module, offence in OFFENCES.values():
        path = folder / module
        path.write_text(f"{path.read_text()}\n{offence}\n")
    said = lint(folder).stdout
    assert OFFENCES.keys() == contracts().keys()
    for name in contracts().values():
        assert f"{name} BROKEN" in said
