"""The shell commands in the documents, with the output that is shown. Only the standard library is needed."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "deploy/**/*.md",
        "clients/python/*.md",
        "clients/cli/*.md",
        "clients/go/**/*.md",
        "controllers/*.md",
        "objects/*.md",
        "publishing/*.md",
        "kube/*.md",
        "examples/**/*.md",
        "sandbox/*.md",
    )
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    text: str
    shown: str = ""
    """The output below a command with a prompt."""

    def parts(self) -> Iterator[tuple[str, ...]]:
        """Yield the words of each command of the line: `|`, `&&` and the `--` of `kubectl exec` separate commands."""
        words = shlex.split(self.text, comments=True)
        begins = 0
        for at, word in enumerate(words):
            if word in ("|", "&&", "--"):
                yield tuple(words[begins:at])
                begins = at + 1
        yield tuple(words[begins:])


@dataclass(frozen=True)
class Block:
    """Commands that are run in sequence, in one directory."""

    document: Path
    commands: tuple[Command, ...]

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}: {self.commands[0].text}"


def _commands(language: str, text: str) -> Iterator[Command]:
    text = text.replace("\\\n", " ")
    if language == "sh":
        yield from (Command(line) for line in text.splitlines() if shlex.split(line, comments=True))
    elif language in ("", "console"):
        for typed, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            yield Command(typed, shown)


def _blocks(document: Path) -> Iterator[Block]:
    for _, language, text in _FENCED.findall(document.read_text()):
        if commands := tuple(_commands(language, text)):
            yield Block(document, commands)


BLOCKS = tuple(block for document in DOCUMENTS for block in _blocks(document))
