"""Types of the daemon have names of their own, so that a search for one finds one."""

import ast
from collections import defaultdict
from pathlib import Path

import milo_discoveryd

PACKAGE = Path(milo_discoveryd.__file__).parent


def test_types_of_the_daemon_have_distinct_names() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
