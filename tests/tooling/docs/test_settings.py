"""The documents say of settings what is."""

from functools import reduce

import pytest

from milo_discoveryd.config import Settings, load
from tools import settings_reference

ENTRIES = list(settings_reference.entries())
GIVEN = [each for each in ENTRIES if "[" not in each.name and each.default.startswith("`")]


def value(settings: Settings, name: str) -> object:
    return reduce(getattr, name.split("."), settings)


def test_the_tables_of_settings_are_fresh() -> None:
    documents = settings_reference.rendered()
    assert [path.name for path in documents] == ["kubeconfigs.md", "security.md", "settings.md"]
    assert [path for path, text in documents.items() if path.read_text() != text] == [], "run ./dev gen"


def test_every_setting_says_what_it_is_in_a_sentence_that_a_table_can_hold() -> None:
    assert [each.name for each in ENTRIES if not each.help.endswith(".") or "|" in each.help] == []


@pytest.mark.parametrize("entry", GIVEN, ids=lambda entry: entry.name)
def test_the_default_that_is_said_can_be_given_and_is_the_default(entry: settings_reference.Entry) -> None:
    given = {entry.name: entry.default.strip("`")}
    assert value(load(given, {}, None), entry.name) == value(load({}, {}, None), entry.name)
