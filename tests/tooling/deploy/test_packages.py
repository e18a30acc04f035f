"""The packages as they are released: one version, and sdists that build the same wheels as the tree."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import milo_discovery
from milo_discoveryd import __version__
from tests.end_to_end.examples.building import tool
from tests.tooling.deploy.manifests import ROOT
from tools.release import maven_artifact

PACKAGES = {
    "milo_discoveryd": ROOT,
    "milo_discovery_client": ROOT / "clients" / "python",
    "milo_discovery_cli": ROOT / "clients" / "cli",
    "milo_objects": ROOT / "objects",
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
def test_wheel_built_from_the_sdist_equals_the_wheel_built_from_the_tree(
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
    assert {f"milo-discovery-client~={__version__}", f"milo-kube~={__version__}"} <= set(projects[0]["dependencies"])
    assert getattr(milo_discovery, "__version__", __version__) == __version__


@pytest.mark.builds
@pytest.mark.timeout(1800)  # the first build downloads the plugins of the profile
def test_release_has_classes_sources_and_javadoc_for_maven_central(tmp_path: Path) -> None:
    """The profile `release` of the pom, without the signatures, which need the owner's key."""
    tool("mvn")
    maven_artifact(tmp_path)
    directory = tmp_path / "maven" / "com" / "miloapis" / "discovery" / __version__
    name = f"discovery-{__version__}"
    jars = {path.name: set(zipfile.ZipFile(path).namelist()) for path in directory.glob("*.jar")}
    assert set(jars) == {f"{name}.jar", f"{name}-sources.jar", f"{name}-javadoc.jar"}
    assert "com/miloapis/discovery/Fleet.class" in jars[f"{name}.jar"]
    assert "com/miloapis/discovery/Fleet.java" in jars[f"{name}-sources.jar"]
    assert "com/miloapis/discovery/v1/Cluster.java" in jars[f"{name}-sources.jar"], "the generated code too"
    assert "com/miloapis/discovery/Fleet.html" in jars[f"{name}-javadoc.jar"]
    assert (directory / f"{name}.pom").read_text() == (ROOT / "clients/java/pom.xml").read_text()


def test_pom_has_what_maven_central_requires() -> None:
    pom = ElementTree.parse(ROOT / "clients/java/pom.xml").getroot()

    def text(path: str) -> str:
        found = pom.findtext("{*}" + path.replace("/", "/{*}"))
        assert found, f"the pom has no {path}"
        return found

    for path in (
        "name",
        "description",
        "licenses/license/name",
        "developers/developer/name",
        "scm/developerConnection",
    ):
        assert text(path)
    assert text("version") == __version__
    assert text("url").startswith("https://")
    assert text("scm/url").startswith("https://")
    assert text("scm/connection").startswith("scm:git:https://")
    release = next(one for one in pom.iterfind("{*}profiles/{*}profile") if one.findtext("{*}id") == "release")
    plugins = [one.text for one in release.iterfind("{*}build/{*}plugins/{*}plugin/{*}artifactId")]
    assert plugins == ["maven-source-plugin", "maven-javadoc-plugin", "maven-gpg-plugin"]
