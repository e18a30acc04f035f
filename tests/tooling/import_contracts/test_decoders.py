"""The types that msgspec decodes are prepared at import: their first use in two threads at once crashes the process.

docs/reviewers/upstream.md describes the defect.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.tooling.import_contracts.contracts import PACKAGES, ROOT

LATER = {
    "kube/src/milo_kube/reflect/wire.py": "the kind of object is an argument; built on the event loop, for each watch",
    "objects/src/milo_objects/projection.py": "the type follows from the paths of a kind; built with its Kind",
    "controllers/src/milo_controllers/kinds.py": "the model is an operator's; built with its Kind",
}
"""Modules that build decoders in functions, and why these do not run in several threads."""
IN_A_FUNCTION = "builds a Decoder in a function: build it at import"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def unprepared(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the reason of each call that may build the description of a type after the import."""
    module = ast.parse(source)
    late = {id(call) for node in ast.walk(module) if isinstance(node, FUNCTIONS) for call in calls(node, "Decoder")}
    decoders = [*calls(module, "Decoder")]
    prepared = {ast.unparse(call.args[0]) for call in decoders if call.args and id(call) not in late}
    for call in decoders:
        if id(call) in late:
            yield call.lineno, IN_A_FUNCTION
    for call in calls(module, "decode"):
        if any(keyword.arg == "type" for keyword in call.keywords):
            yield call.lineno, "decodes with type=: use a Decoder that is built at import"
    for call in calls(module, "convert"):
        kind = ast.unparse(call.args[1])
        if kind not in prepared:
            yield call.lineno, f"converts to {kind}: build a Decoder of it at import"
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "msgspec":
            if {alias.name for alias in node.names} & {
                "json",
                "msgpack",
                "yaml",
                "toml",
                "Decoder",
                "decode",
                "convert",
            }:
                yield node.lineno, "imports from msgspec what decodes: write msgspec.convert, msgspec.json.Decoder"
        elif isinstance(node, ast.Import) and any(
            alias.asname and alias.name.partition(".")[0] == "msgspec" for alias in node.names
        ):
            yield node.lineno, "imports msgspec under another name"


def calls(node: ast.AST, name: str) -> Iterator[ast.Call]:
    for found in ast.walk(node):
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Attribute) and found.func.attr == name:
            is_msgspec = ast.unparse(found.func).startswith("msgspec.")
            if is_msgspec:
                yield found


def test_decoder_types_are_built_at_import() -> None:
    files = [file for package in PACKAGES if package.name != "milo_sandbox" for file in package.rglob("*.py")]
    found = {str(file.relative_to(ROOT)): [*unprepared(file.read_text())] for file in files}
    assert [file for file in LATER if not found[file]] == [], "these modules build no decoder in a function any more"
    late = [
        f"{file}:{line}: {reason}"
        for file, places in found.items()
        for line, reason in places
        if file not in LATER or reason != IN_A_FUNCTION
    ]
    assert not late, "\n".join(late)


@pytest.mark.parametrize(
    "late",
    [
        "import msgspec\ndef parse(body): return msgspec.json.decode(body, type=Answer)",
        "import msgspec\ndef parse(value): return msgspec.convert(value, Answer)",
        "import msgspec\nmsgspec.json.Decoder(Other)\ndef parse(value): return msgspec.convert(value, Answer)",
        "import msgspec\ndef parse(body): return msgspec.json.Decoder(Answer).decode(body)",
        "import msgspec\nclass Parser:\n    def __init__(self): self.decoder = msgspec.json.Decoder(Answer)",
        "import msgspec\nparse = lambda body: msgspec.json.Decoder(Answer).decode(body)",
        "from msgspec import convert\ndef parse(value): return convert(value, Answer)",
        "from msgspec.json import decode\ndef parse(body): return decode(body, type=Answer)",
        "from msgspec import json\ndef parse(body): return json.decode(body, type=Answer)",
        "import msgspec as m\ndef parse(value): return m.convert(value, Answer)",
    ],
)
def test_decoder_type_that_is_built_in_a_function_is_reported(late: str) -> None:
    assert [*unprepared(late)]


def test_decoder_type_that_is_built_at_import_is_accepted() -> None:
    early = "import msgspec\nmsgspec.json.Decoder(Answer)\ndef parse(value): return msgspec.convert(value, Answer)"
    assert not [*unprepared(early)]
    assert not [*unprepared("from msgspec.structs import replace\ndef newer(value): return replace(value, version=2)")]
