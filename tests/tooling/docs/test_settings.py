"""The lists of settings: their sentences and defaults."""

import pytest

from milo_discoveryd.config import layers, load
from tools import settings_reference

ENTRIES = list(settings_reference.entries())
LEAVES = {layers.dotted(key) for key in layers.LEAVES}
GIVEN = [entry for entry in ENTRIES if entry.name in LEAVES and entry.default.startswith("`")]


def test_setting_help_is_a_sentence() -> None:
    assert [entry.name for entry in ENTRIES if not entry.help.endswith(".") or "|" in entry.help] == []


@pytest.mark.parametrize("entry", GIVEN, ids=lambda entry: entry.name)
def test_documented_default_equals_the_default_of_the_setting(entry: settings_reference.Entry) -> None:
    given = {entry.name: entry.default.strip("`")}
    assert load(given, {}, None) == load({}, {}, None)
