"""The contracts of .importlinter, for the tests that use them."""

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / ".importlinter"
PACKAGES = (
    ROOT / "milo_discoveryd",
    ROOT / "clients/python/src/milo_discovery",
    ROOT / "clients/cli/src/milo_discovery_cli",
    ROOT / "objects/src/milo_objects",
    ROOT / "controllers/src/milo_controllers",
    ROOT / "publishing/src/milo_publishing",
    ROOT / "kube/src/milo_kube",
    ROOT / "sandbox/src/milo_sandbox",
    ROOT / "conformance/src/milo_conformance",
)


def contracts() -> dict[str, str]:
    """Return the name of each contract, by its key."""
    config = _config()
    sections = [section for section in config.sections() if section.startswith("importlinter:contract:")]
    return {section.rpartition(":")[2]: config[section]["name"] for section in sections}


def modules(contract: str, option: str = "source_modules") -> list[str]:
    return _config()[f"importlinter:contract:{contract}"][option].split()


def unit_tests(module: str) -> list[Path]:
    """Return the tests of a pure module: the directory of its package in unit/, or the files with its name."""
    package, *path = module.split(".")
    root = ROOT / {"milo_objects": "objects", "milo_controllers": "controllers", "milo_kube": "kube"}.get(package, ".")
    place = root.joinpath("tests", "unit", *path)
    return [place] if place.is_dir() else sorted(place.parent.glob(f"test_{place.name}*.py"))


def unit_tests_of_pure_modules() -> set[Path]:
    """Return the directories and files of the unit tests of pure modules."""
    return {path for module in modules("pure") for path in unit_tests(module)}


def _config() -> ConfigParser:
    config = ConfigParser()
    config.read(CONFIG)
    return config
