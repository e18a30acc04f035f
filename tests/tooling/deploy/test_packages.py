"""The packages as they are released: one version, and sdists that build the same wheels as the tree."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import milo_discovery
from milo_discoveryd import __version__
from tests.tooling.deploy.manifests import ROOT

PACKAGES = {
    "milo_discoveryd": ROOT,
    "milo_discovery_client": ROOT / "clients" / "python",
    "milo_controllers": ROOT / "controllers",
    "milo_publishing": ROOT / "publishing",
    "milo_kube": ROOT / "kube",
    "milo_sandbox": ROOT / "sandbox",
    "milo_discovery_conformance": ROOT / "conformance",
}


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which Python finds the build backend."""
    directory = tmp_path_factory.mktemp("builder")
    lock = str(ROOT / "requirements" / "build.txt")
    run(
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(directory),
        "--require-hashes",
        "-r",
        lock,
    )
    return {**os.environ, "PYTHONPATH": str(directory)}


def run(module: str, *arguments: str, cwd: Path | None = None, environ: dict[str, str] | None = None) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=cwd, env=environ, check=True, timeout=100)


def contents(directory: Path) -> set[str]:
    [wheel] = directory.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.builds
@pytest.mark.parametrize("name", PACKAGES)
def test_wheel_from_the_sdist_equals_the_wheel_from_the_tree(
    name: str, builder: dict[str, str], tmp_path: Path
) -> None:
    def build(kind: str, source: Path, out: Path) -> None:
        run("hatchling", "build", "-t", kind, "-d", str(out), cwd=source, environ=builder)

    build("sdist", PACKAGES[name], tmp_path)
    [sdist] = tmp_path.glob("*.tar.gz")
    assert sdist.name == f"{name}-{__version__}.tar.gz"
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path], check=True)
    build("wheel", tmp_path / f"{name}-{__version__}", tmp_path / "from-sdist")
    build("wheel", PACKAGES[name], tmp_path / "from-tree")
    assert contents(tmp_path / "from-sdist") == contents(tmp_path / "from-tree")


def test_packages_have_one_version() -> None:
    projects = [tomllib.loads((directory / "pyproject.toml").read_text())["project"] for directory in PACKAGES.values()]
    assert not any("test" in project.get("optional-dependencies", ()) for project in projects)
    assert {project.get("version", __version__) for project in projects} == {__version__}
    assert {f"milo-discovery-client=={__version__}", f"milo-kube=={__version__}"} <= set(projects[0]["dependencies"])
    assert getattr(milo_discovery, "__version__", __version__) == __version__
