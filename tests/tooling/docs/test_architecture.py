"""docs/architecture.md names every package of the daemon, and only directories and files that exist."""

import re
from collections.abc import Iterator

from tests.support.markdown_items import items
from tests.tooling.docs.shell import ROOT
from tests.tooling.import_contracts.contracts import modules

SOURCES = (
    "milo_discoveryd",
    "clients/python/src",
    "clients/cli/src",
    "objects/src",
    "controllers/src",
    "publishing/src",
    "kube/src",
)
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def section(heading: str) -> str:
    return TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def packages() -> Iterator[tuple[set[str], str]]:
    """Yield the packages that an item names, with its text on which of their modules are pure."""
    for item in items(section("Packages")):
        text, _, pure = item.text.partition(" *Pure:* ")
        yield set(re.findall(r"`([\w/]+)`", text.partition(": ")[0])), pure.removesuffix(".")


def test_package_list_includes_every_package_of_the_daemon() -> None:
    existing = {f"milo_discoveryd/{path.parent.name}" for path in (ROOT / "milo_discoveryd").glob("*/__init__.py")}
    named = {name for names, _ in packages() for name in names}
    assert {name for name in named if name.startswith("milo_discoveryd/")} == existing
    assert [name for name in named if not (ROOT / name).is_dir()] == []


def test_package_list_identifies_the_pure_modules() -> None:
    pure = set(modules("pure"))
    of_the_daemon = [(names.pop(), text) for names, text in packages() if "milo_discoveryd/" in "".join(names)]
    assert len(of_the_daemon) > 15
    for package, text in of_the_daemon:
        if package == "milo_discoveryd/server":
            continue  # the list says "most of `calls`"
        names = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        dotted = package.replace("/", ".")
        found = names if dotted in pure else {name for name in names if f"{dotted}.{name}" in pure}
        listed = set(re.findall(r"`(\w+)`", text))
        assert found == (names - listed if text.startswith(("yes", "all but")) else listed), package


def test_decision_table_refers_to_existing_files() -> None:
    files = re.findall(r"`(\w+/[\w/]+\.py)`", section("Where is it decided?"))
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_section_on_the_life_of_a_change_refers_to_existing_files() -> None:
    picture, text = section("Life of a change").split("```")[1:]
    modules_of_picture = re.findall(r"\w+(?:/[a-z_]+)+", picture)
    assert len(modules_of_picture) > 10
    files = {f"{module}.py" for module in modules_of_picture} | set(re.findall(r"`([\w/]+\.py)`", text))
    assert [file for file in files if not any((ROOT / root / file).is_file() for root in ("", *SOURCES))] == []
