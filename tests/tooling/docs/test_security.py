"""docs/reviewers/security.md reviews every direct dependency."""

import re
import tomllib

from tests.support.markdown_items import items
from tests.support.rows import ROOT

PACKAGES = ("clients/python", "clients/cli", "objects", "controllers", "publishing", "kube")
TEXT = (ROOT / "docs" / "reviewers" / "security.md").read_text()


def dependencies() -> set[str]:
    """Return the dependencies of the distributions, with the optional dependencies that are used in production."""
    found: set[str] = set()
    for directory in (ROOT, *(ROOT / name for name in PACKAGES)):
        project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        optional = [requirement for extra in ("traces", "kubernetes", "http2") for requirement in extras.get(extra, ())]
        found |= {re.split(r"[^\w-]", requirement)[0] for requirement in (*project["dependencies"], *optional)}
    return {name for name in found if not name.startswith("milo-")}


def test_security_page_reviews_all_dependencies_and_no_other_packages() -> None:
    listed = (item.text.partition(": ")[0] for item in items(TEXT.partition("\n## Dependencies\n")[2]))
    assert {name for names in listed for name in re.findall(r"`([\w.-]+)`", names)} == dependencies()
