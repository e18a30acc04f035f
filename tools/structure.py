"""Prints classes with too many attributes or constructor arguments, and import cycles; status 1 if there are any.

An attribute is what a class assigns to `self`, or names in `__slots__`. Cycles include imports for type checkers.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCES = tuple(
    ROOT / name
    for name in (
        "milo_discoveryd",
        "clients/python/src/milo_discovery",
        "clients/cli/src/milo_discovery_cli",
        "objects/src/milo_objects",
        "controllers/src/milo_controllers",
        "publishing/src/milo_publishing",
        "kube/src/milo_kube",
        "sandbox/src/milo_sandbox",
        "conformance/src/milo_conformance",
    )
)
GENERATED = "v1"
MOST_ATTRIBUTES = 14
MOST_ARGUMENTS = 8


class Size(NamedTuple):
    attributes: int
    arguments: int


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(source.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text()
        )
        for source in SOURCES
        for path in sorted(source.rglob("*.py"))
        if GENERATED not in path.relative_to(source).parts
    }


def size(definition: ast.ClassDef) -> Size:
    attributes: set[str] = set()
    arguments = 0
    for node in definition.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            attributes.update(_assigned(node))
            if node.name == "__init__":
                given = node.args
                arguments = len([*given.posonlyargs, *given.args, *given.kwonlyargs]) - 1
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            attributes.update(child.value for child in ast.walk(node.value) if isinstance(child, ast.Constant))
    return Size(len(attributes), arguments)


def _assigned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_stored and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr


def sizes(parsed: Mapping[str, ast.Module]) -> dict[str, Size]:
    return {
        f"{module}.{node.name}": size(node)
        for module, tree in parsed.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def imports(parsed: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    return {module: set(_imported(tree, parsed)) - {module} for module, tree in parsed.items()}


def _imported(tree: ast.Module, parsed: Mapping[str, ast.Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in parsed)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                submodule = f"{node.module}.{name.name}"
                if submodule in parsed or node.module in parsed:
                    yield submodule if submodule in parsed else node.module


def circles(graph: Mapping[str, set[str]]) -> set[tuple[str, ...]]:
    """Return the sets of modules that import each other, directly or indirectly."""
    reached = {module: _reachable(module, graph) for module in graph}
    return {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }


def _reachable(module: str, graph: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    left = list(graph[module])
    while left:
        found = left.pop()
        if found not in reached:
            reached.add(found)
            left += graph[found]
    return reached


def problems() -> Iterator[str]:
    parsed = modules()
    measured = sizes(parsed)
    for name in sorted(measured, key=measured.__getitem__, reverse=True):
        attributes, arguments = measured[name]
        if attributes > MOST_ATTRIBUTES or arguments > MOST_ARGUMENTS:
            yield (
                f"{name} has {attributes} attributes and a constructor with {arguments} arguments: at most "
                f"{MOST_ATTRIBUTES} and {MOST_ARGUMENTS}; divide it, or pass a struct of settings"
            )
    for circle in sorted(circles(imports(parsed))):
        yield f"modules import each other: {', '.join(circle)}"


def main() -> int:
    found = list(problems())
    sys.stdout.writelines(f"{problem}\n" for problem in found)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
