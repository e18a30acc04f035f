"""Large classes and import cycles are found, including cycles of imports that are for type checkers only."""

import ast

from tools.structure import Size, circles, imports, sizes

LARGE = """
class Large:
    __slots__ = ("named",)

    def __init__(self, one, *, two=2):
        self.one, self._two = one, two

    def change(self):
        self.changed: int = 1
        self.one.other = 2
"""
CIRCLE = {
    "a": "import b.c",
    "b.c": "from b import d",
    "b.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import Name",
    "e": "import a",
}


def test_class_size_counts_attributes_and_constructor_arguments() -> None:
    assert sizes({"module": ast.parse(LARGE)}) == {"module.Large": Size(4, 2)}


def test_import_cycle_includes_imports_for_type_checkers() -> None:
    graph = imports({module: ast.parse(text) for module, text in CIRCLE.items()})
    assert circles(graph) == {("a", "b.c", "b.d")}
