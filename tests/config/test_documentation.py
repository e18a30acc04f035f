"""docs/settings.md says what is."""

import re
from pathlib import Path

from milo_discoveryd.config import layers

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_in_the_document_and_no_other() -> None:
    documented = re.findall(r"^\| `([a-z_.]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(layers.dotted(key) for key in layers.LEAVES)
