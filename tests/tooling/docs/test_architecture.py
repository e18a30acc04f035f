"""The tables of docs/architecture.md name every package, and files that exist."""

import re

from tests.tooling.docs.shell import ROOT

SOURCES = ("milo_discoveryd", "clients/python/src")
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def section(heading: str) -> str:
    return TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def first_cells(table: str) -> set[str]:
    return set(re.findall(r"^\| `([\w/]+)` \|", table, re.MULTILINE))


def test_packages_table_names_every_package_of_the_daemon() -> None:
    packages = {f"milo_discoveryd/{path.parent.name}" for path in (ROOT / "milo_discoveryd").glob("*/__init__.py")}
    named = first_cells(section("Packages"))
    assert {name for name in named if name.startswith("milo_discoveryd/")} == packages
    assert [name for name in named if not (ROOT / name).is_dir()] == []


def test_decision_table_names_existing_files() -> None:
    files = re.findall(r"`(\w+/[\w/]+\.py)`", section("Where is it decided?"))
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_data_flow_names_files_that_exist() -> None:
    files = re.findall(r"`([\w/]+\.py)`", section("Data flow"))
    missing = [file for file in files if not any((ROOT / each / file).is_file() for each in SOURCES)]
    assert missing == []
