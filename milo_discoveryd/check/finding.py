"""What a check found, and how it is printed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    level: Level
    what: str
    """What was looked at, in a word or two."""
    seen: str
    mend: str = ""

    def lines(self) -> Iterator[str]:
        yield f"{self.level:<5} {self.what}: {self.seen}"
        if self.mend:
            yield f"      -> {self.mend}"


def ok(what: str, seen: str) -> Finding:
    return Finding("ok", what, seen)


def warn(what: str, seen: str, mend: str = "") -> Finding:
    return Finding("warn", what, seen, mend)


def fail(what: str, seen: str, mend: str) -> Finding:
    return Finding("fail", what, seen, mend)
