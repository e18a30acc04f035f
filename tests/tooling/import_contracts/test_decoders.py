"""The types that msgspec decodes are prepared at import: their first use in two threads at once crashes the process.

docs/reviewers/upstream.md describes the defect.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.tooling.import_contracts.contracts import PACKAGES, ROOT


def unprepared(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the reason of each call that may build the description of a type after the import."""
    module = ast.parse(source)
    prepared = {ast.unparse(call.args[0]) for node in module.body for call in calls(node, "Decoder") if call.args}
    for call in calls(module, "decode"):
        if any(keyword.arg == "type" for keyword in call.keywords):
            yield call.lineno, "decodes with type=: use a Decoder that is built at import"
    for call in calls(module, "convert"):
        kind = ast.unparse(call.args[1])
        if kind not in prepared:
            yield call.lineno, f"converts to {kind}: build a Decoder of it at import"


def calls(node: ast.AST, name: str) -> Iterator[ast.Call]:
    for found in ast.walk(node):
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Attribute) and found.func.attr == name:
            is_msgspec = ast.unparse(found.func).startswith("msgspec.")
            if is_msgspec:
                yield found


def test_types_are_prepared_at_import() -> None:
    files = [file for package in PACKAGES if package.name != "milo_sandbox" for file in package.rglob("*.py")]
    found = [
        f"{file.relative_to(ROOT)}:{line}: {reason}" for file in files for line, reason in unprepared(file.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "late",
    [
        "import msgspec\ndef parse(body): return msgspec.json.decode(body, type=Answer)",
        "import msgspec\ndef parse(value): return msgspec.convert(value, Answer)",
        "import msgspec\ndef parse(value):\n    msgspec.json.Decoder(Other)\n    return msgspec.convert(value, Answer)",
    ],
)
def test_type_that_is_prepared_later_is_found(late: str) -> None:
    assert [*unprepared(late)]


def test_prepared_type_is_accepted() -> None:
    early = "import msgspec\nmsgspec.json.Decoder(Answer)\ndef parse(value): return msgspec.convert(value, Answer)"
    assert not [*unprepared(early)]
