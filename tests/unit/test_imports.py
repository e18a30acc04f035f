"""Imports at less than they cost."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from milo_discoveryd.imports import for_good, lazily, without


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that says what of it was loaded."""
    folder = tmp_path / "parcel"
    folder.mkdir()
    (folder / "__init__.py").write_text("loaded = ['parcel']\nfrom parcel import heavy, light\n")
    (folder / "heavy.py").write_text("import parcel\nparcel.loaded.append('heavy')\nweight = 100\n")
    (folder / "light.py").write_text("import parcel\nparcel.loaded.append('light')\nweight = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("parcel", "parcel.heavy", "parcel.light"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    return "parcel"


def test_what_is_imported_lazily_is_loaded_when_it_is_used(package: str) -> None:
    with lazily(f"{package}.heavy"):
        parcel = importlib.import_module(package)
    assert parcel.loaded == ["parcel", "light"]
    assert parcel.heavy.weight == 100
    assert parcel.loaded == ["parcel", "light", "heavy"]


def test_who_imports_a_lazy_module_later_has_it_whole(package: str) -> None:
    with lazily(f"{package}.heavy"):
        importlib.import_module(package)
    assert importlib.import_module(f"{package}.heavy").weight == 100


def test_a_name_that_nobody_has_is_missing_lazily_as_well() -> None:
    with lazily("nobody_has_this"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("nobody_has_this")


def test_a_withheld_package_is_missing_for_as_long(package: str) -> None:
    with without(package), pytest.raises(ModuleNotFoundError):
        importlib.import_module(package)
    assert importlib.import_module(package).loaded == ["parcel", "heavy", "light"]


def test_a_package_that_is_in_use_is_not_withheld(package: str) -> None:
    parcel = importlib.import_module(package)
    with without(package):
        assert importlib.import_module(package) is parcel


def test_the_collector_does_not_look_at_what_was_imported_for_good() -> None:
    with for_good():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    try:
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(kept)
    finally:
        gc.unfreeze()


def test_a_daemon_that_follows_projects_imports_nothing_that_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", _CONNECTED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


_CONNECTED = """
import asyncio, sys
from milo_discoveryd import cli

async def connect():
    from milo_discoveryd.credentials.authentication.tls import TlsIdentity
    from milo_discoveryd.watchers.connection import Connection

    identity = TlsIdentity(authorities=None, certificate=None)
    await Connection("https://127.0.0.1:1", identity, tls_server_name=None, proxy=None).aclose()
    print(*sys.modules.keys() & {"rich", "cryptography", "aiohttp.web", "requests", "kubernetes.config.kube_config"})

cli.run_reporting_errors = lambda start: asyncio.run(connect())
cli.main(["run"])
"""
