"""Finds docstrings and comments that refer to names that do not exist.

A name in backticks must occur outside of the product's comments and docstrings: in code, a setting, a metric, a
document, a manifest or the proto file. A name that was renamed in the code occurs nowhere.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = (
    "milo_discoveryd/", "clients/python/src/", "clients/cli/src/", "objects/src/", "controllers/src/",
    "publishing/src/", "kube/src/", "sandbox/src/", "conformance/src/",
)  # fmt: skip
NAMED = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")
WORD = re.compile(r"[A-Za-z_]\w*")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and docstrings of a module, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def code(source: str) -> str:
    """Return a module without its comments and docstrings."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[line] = ""
    return re.sub(r"(?m)#.*$", "", "\n".join(lines))


def missing(source: str, words: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each name in a module's comments and docstrings with a part that is not in `words`."""
    for line, text in sorted(prose(source)):
        for name in NAMED.findall(text):
            if not words.issuperset(WORD.findall(name)):
                yield line, name


def main() -> int:
    words: set[str] = set()
    modules: list[tuple[Path, str]] = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.suffix == ".py" and path.relative_to(ROOT).as_posix().startswith(PRODUCT):
            modules.append((path, text))
            text = code(text)
        words.update(WORD.findall(text))
        words.add(path.stem)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: refers to `{name}`, which does not exist"
        for path, text in modules
        for line, name in missing(text, words)
    ]
    sys.stdout.writelines(f"{problem}\n" for problem in wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
