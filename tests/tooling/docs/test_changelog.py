"""The notes of the next release."""

import tomllib

from tests.tooling.docs.shell import ROOT

TYPES = {
    kind["directory"]
    for kind in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]["type"]
}
NOTES = sorted(path for path in (ROOT / "changelog.d").iterdir() if path.name != "template.md")


def test_each_changelog_note_has_a_type_and_a_text() -> None:
    wrong = [path.name for path in NOTES if path.suffixes[-2:] not in [[f".{kind}", ".md"] for kind in TYPES]]
    assert wrong == []
    assert [path.name for path in NOTES if not path.read_text(encoding="utf-8").strip()] == []
