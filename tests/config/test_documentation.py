"""docs/settings.md says what is."""

import re
from functools import reduce
from pathlib import Path

import pytest

from milo_discoveryd.config import Settings, layers, load

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
ROWS = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \|", DOCUMENT.read_text(), re.MULTILINE))


def value(settings: Settings, name: str) -> object:
    return reduce(getattr, name.split("."), settings)


def test_every_setting_is_in_the_document_and_no_other() -> None:
    assert sorted(ROWS) == sorted(layers.dotted(key) for key in layers.LEAVES)


@pytest.mark.parametrize(("name", "said"), ROWS.items())
def test_the_default_that_is_said_is_the_default(name: str, said: str) -> None:
    default = value(load({}, {}, None), name)
    if said.startswith("`"):
        given = load({name: said.strip("`")}, {}, None)
        assert value(given, name) == default
    else:
        assert default in (None, "", (), {}), f"the document says {said!r}, in words, of {default!r}"
