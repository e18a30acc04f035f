"""The lists of settings: their sentences and defaults."""

import pytest

from milo_discoveryd.config import layers, load
from tools import settings_reference

ENTRIES = list(settings_reference.entries())
LEAVES = {layers.dotted(key) for key in layers.LEAVES}
GIVEN = [each for each in ENTRIES if each.name in LEAVES and each.default.startswith("`")]


def test_setting_help_is_a_sentence() -> None:
    assert [each.name for each in ENTRIES if not each.help.endswith(".") or "|" in each.help] == []


@pytest.mark.parametrize("entry", GIVEN, ids=lambda entry: entry.name)
def test_documented_default_equals_the_setting(entry: settings_reference.Entry) -> None:
    given = {entry.name: entry.default.strip("`")}
    assert load(given, {}, None) == load({}, {}, None)
