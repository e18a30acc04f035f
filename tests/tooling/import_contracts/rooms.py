"""What .importlinter says of the rooms, for the tests that ask more of them."""

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / ".importlinter"


def contracts() -> dict[str, str]:
    """The names of the contracts, by their keys."""
    config = _config()
    sections = [section for section in config.sections() if section.startswith("importlinter:contract:")]
    return {section.rpartition(":")[2]: config[section]["name"] for section in sections}


def pure_modules() -> list[str]:
    return _config()["importlinter:contract:pure"]["source_modules"].split()


def _config() -> ConfigParser:
    config = ConfigParser()
    config.read(CONFIG)
    return config
