"""Class names are unique, so that a search for a name finds one class."""

import ast
from collections import defaultdict

from tests.tooling.import_contracts.contracts import PACKAGES

SHARED = {"Cluster", "DisengageReason", "Event", "EventType", "Fleet"}
"""Names from the protocol that the daemon and the client library each use for a type of their own."""
OF_OBJECTS = {
    *("Index", "Kind", "NotServed", "ObjectChanged", "ObjectStore", "Objects", "Scope", "Store", "Synced", "View"),
}
"""Public names of milo_objects, in the words of its readers, which others use for a type of their own."""


def test_classes_of_all_packages_have_distinct_names() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if "_gen" not in path.parts:
                names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
                for name in names:
                    places[name].append(path.relative_to(package.parent).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1}.keys() == SHARED | OF_OBJECTS
